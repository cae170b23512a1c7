"""The model that a GGUF file holds, in which blocks may lack their attention or their MLP.

llama.cpp's architecture `deci` is its Llama with a number of heads and an MLP width for each block. A block may have no
heads, except the first block, from which llama.cpp takes the size of a head. If a block had no MLP, llama.cpp would
leave out its attention too. In these two cases the smallest possible branch is written, with zeros as weights.

References:
    llama.cpp, src/models/deci.cpp and src/llama-model.cpp.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..artifact.tensor_files import PlannedTensor
from .gguf_families import head_size

LACKING = "deci"
_WIDTH = 32
"""Inner width of an MLP of zeros, which is the number of weights that kernels take at once."""


@dataclass(frozen=True)
class Target:
    """The model that is written to a GGUF file.

    Attributes:
        config: configuration of the source, reduced to the blocks that are kept.
        architecture: llama.cpp's name of the architecture.
        lacking: kind of the missing branch, by the number of the block among the kept blocks.
    """

    config: Any
    architecture: str
    lacking: Mapping[int, str] = field(default_factory=dict)

    def heads(self, count: int) -> int | list[int]:
        """Return the number of heads: `count` if no block lacks a branch, else a list with the number of each block."""
        return self._each("attention", count, lambda block: int(block == 0))

    def widths(self, width: int) -> int | list[int]:
        """Return the MLP width: `width` if no block lacks a branch, else a list with the width of each block."""
        return self._each("mlp", width, lambda block: _WIDTH)

    @property
    def zeroed(self) -> dict[int, str]:
        """The part of `lacking` where llama.cpp needs the branch, so that it is written with zeros."""
        return {block: kind for block, kind in self.lacking.items() if kind == "mlp" or block == 0}

    def zeros(self) -> list[PlannedTensor]:
        """Return the tensors of the branches in `zeroed`: matrices in float16, norms in float32."""
        hidden, size = self.config.hidden_size, head_size(self.config)
        shapes = {
            "attention": {
                "attn_norm": (hidden,),
                **dict.fromkeys(("attn_q", "attn_k", "attn_v"), (size, hidden)),
                "attn_output": (hidden, size),
            },
            "mlp": {
                "ffn_norm": (hidden,),
                **dict.fromkeys(("ffn_gate", "ffn_up"), (_WIDTH, hidden)),
                "ffn_down": (hidden, _WIDTH),
            },
        }
        return [
            _zeros(f"blk.{block}.{name}.weight", shape)
            for block, kind in self.zeroed.items()
            for name, shape in shapes[kind].items()
        ]

    def _each(self, kind: str, usual: int, lacking: Callable[[int], int]) -> int | list[int]:
        if not self.lacking:
            return usual
        blocks = range(self.config.num_hidden_layers)
        return [lacking(block) if self.lacking.get(block) == kind else usual for block in blocks]


def _zeros(name: str, shape: tuple[int, ...]) -> PlannedTensor:
    kind, dtype = ("F32", torch.float32) if len(shape) == 1 else ("F16", torch.float16)
    return PlannedTensor(name, kind, shape, lambda: torch.zeros(shape, dtype=dtype))
