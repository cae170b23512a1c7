"""Sums over the units of one profile, and the same sums after one unit has moved to another level.

Array names carry their axes: U units, F levels of all units one after the other, B blocks, D directions.
"""

import numpy as np
import numpy.typing as npt

from ...spaces.space import DENSE, Profile, Space

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Moves:
    """All moves of a single unit from a profile to another level.

    Dropping a branch takes its units, which are in the same block, out of every sum. Restoring a branch brings them
    back at the levels that the profile gives them. In the dense model no unit counts.

    Args:
        space: space of the profile.
        profile: profile that the units move from.

    Attributes:
        space: space of the profile.
        profile: profile that the units move from.
        key_U: level index of each unit, or -1 where the unit does not count.
        unit_F: index of the unit that each level belongs to.
        labels: maps unit name to the labels of the levels that the unit can move to, without the level that it has;
            they are empty for a unit under a dropped branch.
        other_F: whether each level is one that its unit can move to.
    """

    def __init__(self, space: Space, profile: Profile) -> None:
        self.space = space
        self.profile = profile
        units = space.units
        counts_U = [len(unit.levels) for unit in units]
        level_U = np.array(profile or [0] * len(units))
        parent_U = np.array([-1 if unit.parent is None else unit.parent for unit in units])
        drop_F = np.array([level.label == "drop" for unit in units for level in unit.levels], np.int64)
        self.unit_F: Ints = np.repeat(np.arange(len(units)), counts_U)
        self._at_U: Ints = np.cumsum([0, *counts_U[:-1]]) + level_U
        self._counted_U = np.array([profile != DENSE and space.active(profile, u) for u in range(len(units))])
        self.key_U: Ints = np.where(self._counted_U, level_U, -1)
        self._child_U: Ints = np.flatnonzero(parent_U >= 0)
        self._parents: Ints = parent_U[self._child_U]
        self._brought_F: Ints = drop_F[self._at_U][self.unit_F] - drop_F if profile else 0 * drop_F
        self._block_U: Ints = np.unique([unit.block for unit in units], return_inverse=True)[1]
        self.labels = {unit.name: self._labels(u) for u, unit in enumerate(units)}
        self.other_F = np.array([label in self.labels[unit.name] for unit in units for label in unit.index])

    def sums(self, term_F: Floats) -> tuple[float, Floats]:
        """Return the sum over units of a term that each level has, and that sum after the move to each level, (F,).

        Args:
            term_F: value of the term at each level.
        """
        here = float(self._here(term_F).sum())
        return here, here + self._changes(term_F)

    def pairs(self, amplitude_DF: Floats) -> tuple[float, Floats]:
        """Return the sum of inner products over pairs of units, and that sum after the move to each level, (F,).

        Pairs in one block count twice, pairs in neighbouring blocks once.

        Args:
            amplitude_DF: vector of each level, one row per direction.
        """
        pairs, change_F = 0.0, np.zeros(len(self.unit_F))
        for amplitude_F in amplitude_DF:
            here_U, moved_F = self._here(amplitude_F), self._changes(amplitude_F)
            sum_B = np.bincount(self._block_U, here_U)
            reach_B = 2 * sum_B
            reach_B[1:] += sum_B[:-1]
            reach_B[:-1] += sum_B[1:]
            pairs += float((sum_B**2).sum() - (here_U**2).sum() + (sum_B[1:] * sum_B[:-1]).sum())
            change_F += moved_F * (reach_B[self._block_U][self.unit_F] + moved_F)
            change_F -= self._changes(amplitude_F**2)
        return pairs, pairs + change_F

    def _labels(self, u: int) -> tuple[str, ...]:
        labels = enumerate(self.space.units[u].index)
        if not self.profile:
            return tuple(label for _, label in labels if label not in ("dense", "keep"))
        return tuple(label for i, label in labels if self.key_U[u] not in (-1, i))

    def _here(self, term_F: Floats) -> Floats:
        return np.where(self._counted_U, term_F[self._at_U], 0.0)

    def _changes(self, term_F: Floats) -> Floats:
        inside_U = np.bincount(self._parents, term_F[self._at_U[self._child_U]], len(self._at_U))
        return term_F - self._here(term_F)[self.unit_F] + self._brought_F * inside_U[self.unit_F]
