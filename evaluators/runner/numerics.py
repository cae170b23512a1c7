"""The configuration of evaluations, their numerics and their memory."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class EvaluationConfig(BaseModel):
    """Settings of how profiles are evaluated. All of them except the memory limits are part of the fingerprint.

    Attributes:
        dtype: type of weights and hidden states; losses are always float32. `auto` takes float32 on a CPU and the
            stored type on a GPU.
        device: device that evaluations run on, `cpu` or `cuda`; `cuda:0,cuda:1` spreads the blocks over both. `auto`
            takes a GPU if there is one.
        micro_batch: number of sequences that always run together; `auto` takes as many as make 1,024 tokens, or 2,048
            on a GPU.
        threads: number of CPU threads; `auto` takes the cores that this process may use.
        memory: bytes of each device that evaluations may use (building levels has its own needs). `auto` takes nine
            tenths of the free memory on a GPU, and half of it on a CPU. Blocks that do not fit are streamed, and
            populations that do not fit are evaluated in tiles. The limit never changes a value.
        host_memory: bytes of host memory that may be pinned, for blocks that are streamed and for the teacher's hidden
            states; `auto` takes half of the free memory. The limit never changes a value.
        chunk: number of positions whose logits exist at once; `auto` takes 512, or on a GPU as many as need 512 MiB.
        compile: whether blocks and losses run through `torch.compile`; `auto` decides on a GPU by a fixed rule from
            the sizes of the model and the micro-batch.
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
