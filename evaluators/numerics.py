"""How profiles are evaluated: numerics and memory."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class EvaluationConfig(BaseModel):
    """How profiles are evaluated; everything here but the memory limits belongs to the fingerprint.

    Attributes:
        dtype: of weights and hidden states; losses are always float32.
        device: `auto` takes a GPU when there is one.
        micro_batch: sequences that a block runs at once; `auto` makes 1,024 tokens of them, 8,192 on a GPU.
        threads: CPU threads; `auto` takes the machine's cores.
        memory: bytes for hidden states; `auto` takes a quarter of what is free. Never changes a value.
        cache: bytes for unpacked levels; `auto` likewise. Never changes a value.
        resident: keep the dense blocks on the device; `auto` when they take less than half of what is free.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    threads: PositiveInt | Literal["auto"] = "auto"
    memory: int | str = "auto"
    cache: int | str = "auto"
    resident: bool | Literal["auto"] = "auto"
    chunk: int = Field(default=512, ge=1, description="positions whose logits exist at once")
