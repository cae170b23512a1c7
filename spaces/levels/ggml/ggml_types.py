"""The storage types of llama.cpp, which store a row as blocks of consecutive weights that share scales.

| labels | weights in a block |
| --- | --- |
| `q4_0`, `q4_1`, `q5_0`, `q5_1`, `q8_0`, `iq4_nl` | 32 weights |
| `q2_k` ... `q6_k`, `iq2_xxs`, `iq2_xs`, `iq2_s`, `iq3_xxs`, `iq3_s`, `iq4_xs` | 256 weights |

References:
    llama.cpp, ggml/src/ggml-common.h.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Blocks:
    """A storage type of llama.cpp.

    Attributes:
        name: llama.cpp's name of the type, in upper case.
        number: number of the type in GGUF files.
        weights: number of weights in one block.
        bytes: stored bytes of one block.
    """

    name: str
    number: int
    weights: int
    bytes: int

    def row_bytes(self, in_features: int) -> int:
        """Return the bytes of a row of `in_features` weights; a last block that is not full counts as a whole one."""
        return -(-in_features // self.weights) * self.bytes


_ALL = (
    Blocks("Q4_0", 2, 32, 18),
    Blocks("Q4_1", 3, 32, 20),
    Blocks("Q5_0", 6, 32, 22),
    Blocks("Q5_1", 7, 32, 24),
    Blocks("Q8_0", 8, 32, 34),
    Blocks("Q2_K", 10, 256, 84),
    Blocks("Q3_K", 11, 256, 110),
    Blocks("Q4_K", 12, 256, 144),
    Blocks("Q5_K", 13, 256, 176),
    Blocks("Q6_K", 14, 256, 210),
    Blocks("IQ2_XXS", 16, 256, 66),
    Blocks("IQ2_XS", 17, 256, 74),
    Blocks("IQ3_XXS", 18, 256, 98),
    Blocks("IQ4_NL", 20, 32, 18),
    Blocks("IQ3_S", 21, 256, 110),
    Blocks("IQ2_S", 22, 256, 82),
    Blocks("IQ4_XS", 23, 256, 136),
)
GGML_TYPES = {blocks.name.lower(): blocks for blocks in _ALL}
"""Storage types by label, which is the name in lower case."""
