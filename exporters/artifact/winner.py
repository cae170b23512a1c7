"""What every format writes: a model, its levels, and one profile with what is known of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...search.folder.runfolder import RunFolder
from ...search.jobs.front_making import profile_of
from ...search.jobs.refitted import kept_refit
from ...search.run.configuration import RunConfig, load_config
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import Structure
from ...spaces.profile_file import ProfileFile, read_profile
from ...spaces.storage.database import LevelDatabase
from ...spaces.storage.files import read_json
from .choosing import Choice, choose_point
from .layer_labels import layer_labels


@dataclass(frozen=True)
class Winner:
    """A model and one profile of it.

    Attributes:
        model: the dense model.
        database: where the levels are; None if nothing but `drop` is assigned.
        assignment: layer path to label; what is not named is dense, `drop` names whole branches.
        profile: the profile and what is known of it.
        config: the run's resolved configuration; None without a run.
        refitted: whether the levels are those of a refit.
        trust_remote_code: allow Python code that comes with the checkpoint (it is copied along).
        measured: held-out figures that its own run has of these very weights; empty if it has none.
        run: the folder of the run that it is from; None without one.
        inspect: looks at a written model, or GGUF file, before it appears, and gives what its record shall say; raises to refuse it.
    """

    model: DenseModel
    database: LevelDatabase | None
    assignment: Mapping[str, str]
    profile: ProfileFile = field(default_factory=lambda: ProfileFile({}))
    config: RunConfig | None = None
    refitted: bool = False
    trust_remote_code: bool = False
    measured: Mapping[str, float] = field(default_factory=dict)
    run: Path | None = None
    inspect: Callable[[DenseModel | Path], Mapping[str, Any]] | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The dense model's files."""
        return self.model.checkpoint

    @property
    def structure(self) -> Structure:
        """The dense model's blocks, branches and linear layers."""
        return self.model.structure

    @property
    def counted(self) -> str:
        """The format whose files budgets in bytes count (`space.format`)."""
        return "packed" if self.config is None else self.config.space.format

    @property
    def sources(self) -> dict[str, Path]:
        """The folders that an export reads, by what they are called; an export never touches them."""
        found = {"the model": self.checkpoint.path}
        if self.database is not None:
            found["the levels"] = self.database.path
        if self.run is not None:
            run = self.run.resolve()
            found |= {"the run": run, "the level databases": run.parent / "databases"}
        return found


class Winners:
    """The points of a finished run's front, and any profile over its levels.

    Args:
        run: the run's folder; its level database lies beside it, in `databases/`.

    Raises:
        FileNotFoundError: the run has no front.
    """

    def __init__(self, run: Path) -> None:
        folder = RunFolder(run)
        front = folder.read_front()
        if front is None:
            raise FileNotFoundError(f"{run} has no front yet; let the search finish, then export")
        self._run = run
        self._front = front
        self._config = load_config(run / "config.yaml")

    def choose(
        self,
        budget: str | None = None,
        profile: Path | None = None,
        *,
        point: int | None = None,
        size: str | None = None,
    ) -> Winner:
        """A point of the front, or a profile file's; the arguments are those of `Choice`.

        A profile whose refit was kept comes with the refitted levels.

        Raises:
            ValueError: not exactly one way to choose is given, the front has no such point, or the profile is of
                another model.
            FileNotFoundError: the levels are gone.
        """
        known = self._chosen(Choice(budget, point, size, profile))
        config = self._config
        model = DenseModel.open(config.model, trust_remote_code=config.trust_remote_code)
        if known.fingerprint not in (None, model.checkpoint.fingerprint):
            raise ValueError(
                f"the profile is of another model than {config.model}; give a profile of this one"
            )
        return self.with_levels(model, known)

    def with_levels(self, model: DenseModel, known: ProfileFile) -> Winner:
        """A profile of the run's model with the levels that stand for it: a refit's, or the run's own."""
        assignment = layer_labels(known.units, model.structure)
        database = kept_refit(self._run, known.units)
        if database is not None:
            database.verify()
            point = self._front.kept_refit(known.units)
            known = replace(known, heldout=_finite(point.heldout()) if point else {})
        point = next((point for point in self._front.points if point.profile == known.units), None)
        return Winner(
            model,
            (database or self._plain()) if set(assignment.values()) - {"drop"} else None,
            assignment,
            known,
            self._config,
            refitted=database is not None,
            trust_remote_code=self._config.trust_remote_code,
            measured=_finite(point.heldout()) if point else {},
            run=self._run,
        )

    def _chosen(self, choice: Choice) -> ProfileFile:
        front = self._front
        choice.check(front)
        if choice.profile is not None:
            return read_profile(choice.profile)
        point = choose_point(front, choice)
        return profile_of(point, front)

    def _plain(self) -> LevelDatabase:
        path = self._run.parent / "databases" / self._front.fingerprints["database"]
        manifest = path / "manifest.json"
        if not manifest.exists():
            raise FileNotFoundError(
                f"{path} does not exist; build the run's levels again with `paretopress build`"
            )
        return LevelDatabase(path, read_json(manifest)["recipe"])


def _finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}
