"""Count of the tokens of a search, in which no token of a model counts twice."""

from collections.abc import Iterable

from ...evaluators.trial import Fidelity, Trial

_Positions = dict[tuple[str, int], set[int]]
"""Positions in an order of sequences, by key of a model and seed of the order.

For the teacher, the name of the data set takes the place of the key.
"""


class AskedPositions:
    """Counts the tokens of the trials of a search.

    Every position of an order of sequences counts once for each model, and once for the teacher. Two seeds are two
    orders, so a sequence that occurs in both counts twice.
    """

    def __init__(self) -> None:
        self._models: _Positions = {}
        self._teacher: _Positions = {}

    def note(self, key: str, fidelity: Fidelity) -> int:
        """Count a model's evaluation at a fidelity.

        Args:
            key: journal's key of the model and the data set.
            fidelity: sequences that the model is evaluated on.

        Returns:
            The number of tokens that had not been counted for the model before.
        """
        positions = range(fidelity.start, fidelity.stop)
        here = self._models.setdefault((key, fidelity.seed), set())
        before = len(here)
        here.update(positions)
        self._teacher.setdefault((fidelity.data, fidelity.seed), set()).update(positions)
        return fidelity.length * (len(here) - before)

    def new_tokens(self, trials: Iterable[Trial], keys: Iterable[str]) -> tuple[int, int]:
        """Return how many tokens trials would add, without counting them.

        Args:
            trials: trials that are not counted yet.
            keys: journal's key of the model and the data set for each trial.

        Returns:
            The number of new tokens of models, and that of the teacher.
        """
        models: _Positions = {}
        teacher: _Positions = {}
        tokens = teacher_tokens = 0
        for trial, key in zip(trials, keys, strict=True):
            fidelity = trial.fidelity
            positions = set(range(fidelity.start, fidelity.stop))
            model, text = (key, fidelity.seed), (fidelity.data, fidelity.seed)
            asked = positions.difference(self._models.get(model, ()), models.get(model, ()))
            unseen = positions.difference(self._teacher.get(text, ()), teacher.get(text, ()))
            tokens += fidelity.length * len(asked)
            teacher_tokens += fidelity.length * len(unseen)
            models.setdefault(model, set()).update(positions)
            teacher.setdefault(text, set()).update(positions)
        return tokens, teacher_tokens
