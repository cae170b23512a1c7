"""The input of every export format: a model, its levels, and one profile with the known facts about it."""

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
    """A dense model and the profile at which it is exported.

    Attributes:
        model: the dense model that is the source.
        database: level database with the assigned levels; None if only `drop` is assigned.
        assignment: maps layer path to label. Layers that are not named are dense. `drop` is the label of all
            layers of a branch or of none.
        profile: the profile with its costs and figures.
        config: configuration of the run; None without a run.
        refitted: whether the levels are those of a refit.
        trust_remote_code: whether to run Python code that comes with the checkpoint, which is copied to the export.
        measured: held-out figures that the run measured with exactly these weights; empty if there are none.
        run: folder of the run that the profile comes from; None without a run.
        inspect: function that examines a written model, or GGUF file, before the output folder appears. It returns
            entries for the record and raises an exception to refuse the model.
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
        """The files of the dense model."""
        return self.model.checkpoint

    @property
    def structure(self) -> Structure:
        """The blocks, branches and linear layers of the dense model."""
        return self.model.structure

    @property
    def base(self) -> str:
        """The name of the dense model: its repository, or the name of its folder without the path on this machine."""
        named = self.config.model if self.config else self.profile.model
        return named if named and not Path(named).is_dir() else self.checkpoint.path.name

    @property
    def counted(self) -> str:
        """The format whose files are counted by budgets in bytes (`space.format`); `packed` without a run."""
        return "packed" if self.config is None else self.config.space.format

    @property
    def sources(self) -> dict[str, Path]:
        """The folders that an export reads and never changes, by their names in messages."""
        found = {"the model": self.checkpoint.path}
        if self.database is not None:
            found["the levels"] = self.database.path
        if self.run is not None:
            run = self.run.resolve()
            found |= {"the run": run, "the level databases": run.parent / "databases"}
        return found


class Winners:
    """Maker of winners from a finished run: points of its front, and any other profile of its model.

    Args:
        run: folder of the run; its level database lies beside it, in `databases/`.

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
        """Return the winner for a point of the front or for a profile file; the arguments are those of `Choice`.

        A profile whose refit was kept gets the refitted levels.

        Raises:
            ValueError: not exactly one argument is given, the front has no such point, or the profile belongs to
                another model.
            FileNotFoundError: the levels no longer exist.
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
        """Return the winner for a profile, with the levels of its refit if that was kept, else the run's own levels.

        The held-out figures of a refitted profile are replaced by those that were measured after the refit.

        Raises:
            ValueError: a unit of the profile is not in the model, or a file of the refitted levels is damaged.
            FileNotFoundError: the levels no longer exist.
        """
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
        """Return the profile that a choice names, after checking that the choice is unambiguous."""
        front = self._front
        choice.check(front)
        if choice.profile is not None:
            return read_profile(choice.profile)
        point = choose_point(front, choice)
        return profile_of(point, front)

    def _plain(self) -> LevelDatabase:
        """Open the run's own level database, without refitted levels."""
        path = self._run.parent / "databases" / self._front.fingerprints["database"]
        manifest = path / "manifest.json"
        if not manifest.exists():
            raise FileNotFoundError(
                f"{path} does not exist; build the run's levels again with `paretopress build`"
            )
        return LevelDatabase(path, read_json(manifest)["recipe"])


def _finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Return the figures that are known, without those that are None."""
    return {name: value for name, value in figures.items() if value is not None}
