"""The model that a GGUF file holds, and what stands there for branches that are dropped alone.

llama.cpp's `deci` is its Llama with other heads and another MLP in every block. A block may have no heads, but not the
first one, of which llama.cpp has the size of a head; and of a block without an MLP it would leave out the attention too.
There a branch of zeros remains, as small as can be.

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
"""Inner width of an MLP of zeros: as much as kernels take at once."""


@dataclass(frozen=True)
class Target:
    """A model to write.

    Attributes:
        config: configuration of the source with the blocks that are kept.
        architecture: llama.cpp's name of it.
        lacking: numbers of the blocks, as they are written, that lack a branch, to its kind.
    """

    config: Any
    architecture: str
    lacking: Mapping[int, str] = field(default_factory=dict)

    def heads(self, count: int) -> int | list[int]:
        """How many heads blocks have, where they all have `count` if none lacks attention."""
        return self._each("attention", count, lambda block: int(block == 0))

    def widths(self, width: int) -> int | list[int]:
        """Inner widths of the blocks' MLPs, which all are `width` if no block lacks its MLP."""
        return self._each("mlp", width, lambda block: _WIDTH)

    @property
    def zeroed(self) -> dict[int, str]:
        """The blocks of `lacking` where zeros stand for the branch."""
        return {block: kind for block, kind in self.lacking.items() if kind == "mlp" or block == 0}

    def zeros(self) -> list[PlannedTensor]:
        """The tensors of `zeroed`: matrices in 16 bits, norms in 32."""
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
