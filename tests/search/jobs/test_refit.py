"""Which refits are kept, and where their levels are looked for."""

from pathlib import Path

import numpy as np
import pytest

from paretopress.search.folder.front import Front, Point, Refit
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs.refit import verdict
from paretopress.search.jobs.refitted import kept_refit, open_refit, refit_folder
from paretopress.search.study.selection import document_means, sign_flip
from paretopress.spaces.storage.database import LevelDatabase

RNG = np.random.default_rng(0)


def values(documents: int, gain: float) -> tuple[list[float], list[float], list[int]]:
    """Values before and after, two sequences a document."""
    before = RNG.uniform(0.5, 1.0, size=2 * documents)
    after = before - gain + RNG.normal(0, 0.05, size=2 * documents)
    return before.tolist(), after.tolist(), np.repeat(np.arange(documents), 2).tolist()


@pytest.mark.parametrize("points", [1, 7])
def test_a_better_refit_is_kept(points: int) -> None:
    before, after, documents = values(25, 0.05)
    found = verdict(before, after, documents, 0, points)
    gains = document_means(before, documents) - document_means(after, documents)
    assert found["validation_gain"] == pytest.approx(np.mean(before) - np.mean(after))
    assert found["p_value"] == pytest.approx(points * sign_flip(gains, 0))
    assert found["kept"]


def test_a_refit_that_is_not_better_is_not_kept() -> None:
    before, after, documents = values(25, 0.0)
    assert not verdict(after, after, documents, 0, 1)["kept"]
    better = verdict(before, [v - 0.1 for v in before], documents, 0, 1)
    worse = verdict(before, [v + 0.1 for v in before], documents, 0, 1)
    assert better["kept"]
    assert worse == {"kept": False, "validation_gain": pytest.approx(-0.1), "p_value": 1.0}


def test_the_more_points_the_more_it_takes() -> None:
    before, after, documents = values(25, 0.05)
    assert not verdict(before, after, documents, 0, 501)["kept"]
    assert verdict(before, after, documents, 0, 20_000)["p_value"] == 1.0


def test_nothing_is_claimed_from_few_documents() -> None:
    before, after, documents = values(19, 0.3)
    found = verdict(before, after, documents, 0, 1)
    assert found == {"kept": False, "validation_gain": pytest.approx(0.3, abs=0.05), "p_value": None}


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_values_that_are_not_finite_keep_nothing(bad: float) -> None:
    before, after, documents = values(25, 0.3)
    nothing = {"kept": False, "validation_gain": None, "p_value": None}
    assert verdict([bad, *before[1:]], after, documents, 0, 1) == nothing
    assert verdict(before, [bad, *after[1:]], documents, 0, 1) == nothing


def written(folder: Path, recipe: dict[str, int]) -> LevelDatabase:
    database = open_refit(folder, recipe)
    database.write("block-000", {}, {})
    return database


def test_levels_of_another_profile_make_room(tmp_path: Path) -> None:
    folder = tmp_path / "bits-3"
    assert not open_refit(folder, {"a": 1}).has("block-000")
    written(folder, {"a": 1})
    assert open_refit(folder, {"a": 1}).has("block-000")
    (folder / "notes.txt").write_text("mine")
    assert not open_refit(folder, {"a": 2}).has("block-000")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_only_kept_levels_of_the_very_profile_are_used(tmp_path: Path) -> None:
    units = {"a": "w3"}
    assert kept_refit(tmp_path / "none", units) is None
    with RunFolder(tmp_path) as folder:
        folder.settle_config({"model": "m"})
    database = written(refit_folder(tmp_path, "bits 3, bytes 2"), {"a": 1})
    refit = Refit(database=database.fingerprint, kept=True, heldout_kl=1.0, heldout_perplexity=2.0)
    dropped = refit.model_copy(update={"kept": False})
    point = Point(budget="bits 3, bytes 2", profile=units, heldout_kl=3.0, heldout_perplexity=4.0)
    with RunFolder(tmp_path) as folder:
        for found, figures in ((refit, (1.0, 2.0)), (dropped, (3.0, 4.0))):
            front = folder.write_front(Front(points=[point.model_copy(update={"refit": found})]))
            levels = kept_refit(tmp_path, units)
            assert (levels is not None) == found.kept
            assert levels is None or levels.fingerprint == database.fingerprint
            assert kept_refit(tmp_path, {"a": "w4"}) is None
            assert tuple(front.find("2").heldout().values()) == figures
        other = refit.model_copy(update={"database": "another"})
        folder.write_front(Front(points=[point.model_copy(update={"refit": other})]))
        with pytest.raises(FileNotFoundError, match="build them again with `paretopress refit`"):
            kept_refit(tmp_path, units)


def test_budgets_are_found_by_name_or_last_word() -> None:
    front = Front(points=[Point(budget=name) for name in ("bits 3", "bits 4", "bytes 4")])
    assert front.find("3") == front.find("bits 3") == Point(budget="bits 3")
    with pytest.raises(ValueError, match=r"'bits 5' is not one of this run's; .*known: bits 3, bits 4"):
        front.find("bits 5")
    with pytest.raises(ValueError, match=r"'4' may mean any of bits 4, bytes 4; give the whole name"):
        front.find("4")
