"""Estimates of the time that parts of a population take, given the blocks that neighbouring profiles share.

Shapes: P profiles in sorted order, U units, u units of one block, B blocks, where embedding and head count as blocks.
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
    """The work of a population of sorted profiles.

    The unit of time is the time that one block takes for all sequences of one profile.

    Attributes:
        levels_PB: number that stands for the levels of a profile in a block; different blocks have different numbers.
        run_P: number of blocks from the first block in which a profile differs from the profile before it; at least 1.
        installed_P: number of blocks with levels that no profile before has in that block.
        install: time to install the levels of one block.
    """

    levels_PB: Ints
    run_P: Ints
    installed_P: Ints
    install: float

    @classmethod
    def of(cls, profiles: Sequence[Profile], space: Space, install: float = 0) -> "Population":
        """Make a population of sorted profiles.

        Args:
            profiles: profiles in sorted order, where the empty profile stands for the dense model.
            space: space of the profiles.
            install: time to install the levels of one block.
        """
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
        """Divide the profiles into groups of neighbours with about equal work.

        Args:
            wanted: largest number of groups.
            runs: number of runs that the sequences are cut into, each of which installs every block.

        Returns:
            Index of the first profile of every group, and the number of profiles at the end.
        """
        return edges(self.run_P + runs * self.install * self.installed_P, wanted)

    def work(self, edges: Sequence[int], runs: int, teachers: int) -> float:
        """Estimate the time that all parts take together, when one worker runs one part after the other.

        Args:
            edges: index of the first profile of every group, and the number of profiles at the end.
            runs: number of runs that the sequences are cut into.
            teachers: number of times that the dense model runs for each sequence.
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
    """Divide items in order into at most `wanted` groups of about equal total size.

    Args:
        sizes: size of every item.
        wanted: largest number of groups.

    Returns:
        Index of the first item of every group, and the number of items at the end.
    """
    middles, whole = np.cumsum(sizes) - sizes / 2, sizes.sum()
    inner = np.searchsorted(middles, whole * np.arange(1, wanted) / wanted)
    return sorted({0, *inner.tolist(), len(sizes)})
