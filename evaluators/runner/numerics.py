"""How profiles are evaluated: numerics and memory."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class EvaluationConfig(BaseModel):
    """How profiles are evaluated; everything here but the memory limits belongs to the fingerprint.

    Attributes:
        dtype: type of weights and hidden states; losses are always float32. `auto` takes float32 on a CPU, the stored type on a GPU.
        device: where evaluations run: `cpu`, `cuda`; `auto` takes a GPU when there is one; `cuda:0,cuda:1` spreads the blocks over both.
        micro_batch: sequences that always run together; `auto` makes 1,024 tokens of them, 2,048 on a GPU.
        threads: number of CPU threads; `auto` takes the cores that this process may use.
        memory: bytes of each device that evaluating may use (building levels has its own needs); `auto` takes nine tenths of
            what is free on a GPU, half of it on a CPU. What does not fit streams, and what is too large comes in tiles. It
            never changes a value.
        host_memory: bytes that may be pinned for blocks that stream and the teacher's states; `auto` takes half of
            what is free. It never changes a value.
        chunk: number of positions whose logits exist at once; `auto` takes 512, on a GPU as many as need 512 MiB.
        compile: whether blocks and losses run through `torch.compile`; `auto` decides by rule on a GPU, from the sizes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?(,cuda:\d+)*)$")
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    threads: PositiveInt | Literal["auto"] = "auto"
    memory: int | str = "auto"
    host_memory: int | str = "auto"
    chunk: PositiveInt | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
