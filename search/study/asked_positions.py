"""Which positions of the text were asked of which model, so that tokens are counted once."""

from collections.abc import Iterable

from ...evaluators.trial import Fidelity, Trial

_Positions = dict[tuple[str, int], set[int]]
"""Key of a model (or name of the data, for the teacher) and seed to positions."""


class AskedPositions:
    """Counts tokens: every position of a model once, every position of the text once for the teacher."""

    def __init__(self) -> None:
        self._models: _Positions = {}
        self._teacher: _Positions = {}

    def note(self, key: str, fidelity: Fidelity) -> int:
        """Note that a model was asked at a fidelity.

        Returns:
            The tokens that are new for the model.
        """
        positions = range(fidelity.start, fidelity.stop)
        here = self._models.setdefault((key, fidelity.seed), set())
        before = len(here)
        here.update(positions)
        self._teacher.setdefault((fidelity.data, fidelity.seed), set()).update(positions)
        return fidelity.length * (len(here) - before)

    def new_tokens(self, trials: Iterable[Trial], keys: Iterable[str]) -> tuple[int, int]:
        """Count the tokens of profiles and of the teacher that trials would add; nothing is noted."""
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
