"""What neighbouring profiles of a population share, and how long parts of it take.

P profiles in order, U units, B blocks; embeddings and head count as blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...spaces.space import Profile, Space

Sizes = npt.NDArray[np.float64] | npt.NDArray[np.int64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """Sorted profiles.

    Attributes:
        levels_PB: a number for the levels that a profile gives to a block; no two blocks have one in common.
        run_P: blocks from the first on in which a profile differs from the one before, but at least one.
        installed_P: blocks' levels that no profile before has.
        install: of one block's levels, in times that a block takes for all sequences.
    """

    levels_PB: Ints
    run_P: Ints
    installed_P: Ints
    install: float

    @classmethod
    def of(cls, profiles: Sequence[Profile], space: Space, install: float = 0) -> "Population":
        """Sorted profiles, the dense model's (empty) among them."""
        levels_PB = _numbered(profiles, space)
        blocks = levels_PB.shape[1]
        same_P = np.logical_and.accumulate(levels_PB[1:] == levels_PB[:-1], axis=1).sum(axis=1)
        first = np.unique(levels_PB, return_index=True)[1]
        return cls(
            levels_PB,
            np.maximum(blocks - np.concatenate([[0], same_P]), 1),
            np.bincount(first // blocks, minlength=len(profiles)),
            install,
        )

    def edges(self, wanted: int, runs: int = 1) -> list[int]:
        """Where at most `wanted` groups of about equal work begin, and where the last one ends.

        Args:
            wanted: number of groups, at most.
            runs: into how many the sequences are cut, each of which installs everything.
        """
        return edges(self.run_P + runs * self.install * self.installed_P, wanted)

    def work(self, edges: Sequence[int], runs: int, teachers: int) -> float:
        """Time for all parts together, in times that a block takes for all sequences.

        Args:
            edges: first profile of every group, and the number of profiles.
            runs: number of runs that the sequences are cut into.
            teachers: how often the dense model runs for each sequence.
        """
        first = np.array(edges[:-1])
        blocks = self.levels_PB.shape[1]
        ran = self.run_P.sum() + (blocks - self.run_P[first]).sum() + teachers * blocks
        group_P = np.searchsorted(first, np.arange(len(self.run_P)), side="right")
        levels = self.levels_PB.max() + 1
        installed = np.unique(group_P[:, None] * levels + self.levels_PB).size + teachers * blocks
        return float(ran + runs * self.install * installed)


def _numbered(profiles: Sequence[Profile], space: Space) -> Ints:
    units = len(space.units)
    levels_PU = np.array([profile or (-1,) * units for profile in profiles], np.int64)
    edges = np.flatnonzero(np.diff([unit.block for unit in space.units])) + 1
    numbers: list[Ints] = []
    for levels_Pu in np.split(levels_PU, edges, axis=1):
        number_P = np.unique(levels_Pu, axis=0, return_inverse=True)[1]
        numbers.append(number_P + (numbers[-1].max() + 1 if numbers else 0))
    return np.stack(numbers, axis=1)


def edges(sizes: Sizes, wanted: int) -> list[int]:
    """Where at most `wanted` runs of neighbours of about equal size begin, and where the last one ends."""
    middles, whole = np.cumsum(sizes) - sizes / 2, sizes.sum()
    inner = np.searchsorted(middles, whole * np.arange(1, wanted) / wanted)
    return sorted({0, *inner.tolist(), len(sizes)})
