"""The study loop: what is measured, what is counted, where it stops, how it goes on."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.text.packing import Sequences
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.asking.series import SeriesSearcher
from paretopress.search.study.answers import Answers
from paretopress.search.study.archive import ParetoArchive
from paretopress.search.study.looks import Looks
from paretopress.search.study.study import Study
from paretopress.spaces.space import Profile
from paretopress.workers.pool import LocalPool
from tests.toys import CALIBRATION, LENGTH, ToyEvaluator, bits_limits, bits_space

FINGERPRINT, DATA = "0" * 32, "1" * 32
SPACE = bits_space()
LIMITS = bits_limits(SPACE)


class Script:
    """A searcher that asks what it is given; what it was told decides nothing."""

    leg = 0
    final = True

    def __init__(self, asks: Sequence[Sequence[tuple[Profile, Fidelity]]]) -> None:
        self.asks = asks
        self.turn = 0
        self.told: list[list[float]] = []

    def ask(self) -> list[Trial]:
        first = sum(len(ask) for ask in self.asks[: self.turn])
        wanted = self.asks[self.turn] if self.turn < len(self.asks) else []
        return [Trial(first + i, *request) for i, request in enumerate(wanted)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        self.told.append([e.fitness for e in evaluations])
        self.turn += 1

    def state_dict(self) -> dict[str, Any]:
        return {"turn": self.turn, "told": self.told}

    def load_state_dict(self, state: Any) -> None:
        self.turn, self.told = state["turn"], state["told"]


def at(start: int, stop: int, seed: int = 0) -> Fidelity:
    return Fidelity(seed, start, stop, LENGTH)


def profiles(count: int) -> list[Profile]:
    rng = np.random.default_rng(0)
    return [tuple(int(rng.integers(4)) for _ in SPACE.units) for _ in range(count)]


def make(
    folder: Path,
    asks: Sequence[Sequence[tuple[Profile, Fidelity]]],
    *,
    constant: bool = False,
    library: Journal | None = None,
    **settings: Any,
) -> Study:
    evaluator = ToyEvaluator(SPACE, noise=0.1, constant=constant)
    return Study(
        Script(asks),
        Answers(
            LocalPool(evaluator),
            Journal(folder / "journal.jsonl", FINGERPRINT),
            space=SPACE,
            data={"calibration": DATA, "validation": "2" * 32},
            library=library,
        ),
        ParetoArchive(SPACE, "bits", CALIBRATION.archive),
        budgets={"b": LIMITS},
        **settings,
    )


def make_looks(patience: int | None) -> Looks:
    """Over 20 documents of so few tokens that looks are many."""
    sequences = Sequences("validation", np.zeros((20, 2), np.int32), np.arange(20, dtype=np.int32))
    return Looks(SPACE, {"b": LIMITS}, sequences, patience=patience)


def measured(study: Study, data: str = "calibration") -> list[tuple[Profile, int, int]]:
    """Profile, seed and position of all that the workers did."""
    assert isinstance(study.answers.pool, LocalPool)
    assert isinstance(study.answers.pool.evaluator, ToyEvaluator)
    return [
        (trial.profile, trial.fidelity.seed, position)
        for trial in study.answers.pool.evaluator.seen
        for position in range(trial.fidelity.start, trial.fidelity.stop)
        if trial.fidelity.data == data
    ]


def random_asks(seed: int) -> list[list[tuple[Profile, Fidelity]]]:
    """Overlapping ranges of few profiles, the archive's among them."""
    rng = np.random.default_rng(seed)
    known = profiles(6)
    asks = []
    for _ in range(8):
        ask = []
        for _ in range(int(rng.integers(1, 7))):
            start, stop = sorted(rng.choice(17, 2, replace=False).tolist())
            fidelity = CALIBRATION.archive if rng.random() < 0.3 else at(start, stop, int(rng.integers(2)))
            ask.append((known[int(rng.integers(len(known)))], fidelity))
        asks.append(ask)
    return asks


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_measured_twice_and_every_answer_is_right(seed: int, tmp_path: Path) -> None:
    asks = random_asks(seed)
    study = make(tmp_path, asks)
    study.run()
    found = measured(study)
    assert len(found) == len(set(found))
    evaluator = ToyEvaluator(SPACE, noise=0.1)
    assert isinstance(study.searcher, Script)
    for ask, told in zip(asks, study.searcher.told, strict=True):
        trials = [Trial(0, *request) for request in ask]
        assert told == [e.fitness for e in evaluator.evaluate(trials)]
    assert study.progress.tokens == LENGTH * len(found)
    taught = {(seed, position) for _, seed, position in found}
    assert study.progress.teacher_tokens == LENGTH * len(taught)


@pytest.mark.parametrize("seed", range(5))
def test_it_goes_on_from_every_step_and_from_none(seed: int, tmp_path: Path) -> None:
    asks = random_asks(seed)
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole", asks)
    whole.run()
    wanted = whole.state_dict()
    wanted["progress"].pop("seconds")
    for stop in range(len(asks)):
        folder = tmp_path / str(stop)
        folder.mkdir()
        first = make(folder, asks)
        for _ in range(stop):
            assert first.step()
        state = json.loads(json.dumps(first.state_dict()))
        first.answers.evaluate(first.searcher.ask()[:1])
        second = make(folder, asks)
        assert second.resume(state)
        second.run()
        third = make(folder, asks)
        third.run()
        assert measured(third) == []
        for study in (second, third):
            found = study.state_dict()
            found["progress"].pop("seconds")
            assert found == wanted
        assert set(measured(first) + measured(second)) == set(measured(whole))
        assert len(measured(first) + measured(second)) == len(measured(whole))


def falling_asks(constant: bool) -> list[list[tuple[Profile, Fidelity]]]:
    """Every ask has a profile that is better on the archive's prefix than all before, really or (constant) by luck."""
    found = itertools.product((0, 1), repeat=len(SPACE.units))
    trials = [Trial(0, profile, CALIBRATION.archive) for profile in itertools.islice(found, 0, None, 5)]
    evaluator = ToyEvaluator(SPACE, noise=0.1, constant=constant)
    ranked = sorted(evaluator.evaluate(trials), key=lambda e: -e.fitness)
    return [[(e.trial.profile, CALIBRATION.archive), (e.trial.profile, at(0, 10))] for e in ranked]


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("constant", [True, False])
def test_looks_are_the_same_from_every_step_and_from_none(
    constant: bool, patience: int | None, tmp_path: Path
) -> None:
    asks = falling_asks(constant)
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole", asks, constant=constant, looks=make_looks(patience))
    whole.run()
    wanted = whole.state_dict()
    wanted["progress"].pop("seconds")
    assert len(wanted["looks"]["taken"]) >= 3
    for stop in range(whole.progress.steps + 1):
        folder = tmp_path / str(stop)
        folder.mkdir()
        first = make(folder, asks, constant=constant, looks=make_looks(patience))
        for _ in range(stop):
            assert first.step()
        state = json.loads(json.dumps(first.state_dict()))
        first.step()
        second = make(folder, asks, constant=constant, looks=make_looks(patience))
        assert second.resume(state)
        second.run()
        third = make(folder, asks, constant=constant, looks=make_looks(patience))
        third.run()
        for study in (second, third):
            found = study.state_dict()
            found["progress"].pop("seconds")
            assert found == wanted
            assert study.stopped == whole.stopped
        for data in ("calibration", "validation"):
            assert measured(third, data) == []
            both = measured(first, data) + measured(second, data)
            assert sorted(both) == sorted(measured(whole, data))


def test_looks_end_a_search_and_more_patience_lets_it_go_on(tmp_path: Path) -> None:
    asks = falling_asks(constant=True)
    studies = []
    for name, looks in {"without": None, "patient": make_looks(None), "hasty": make_looks(2)}.items():
        (tmp_path / name).mkdir()
        studies.append(make(tmp_path / name, asks, constant=True, looks=looks))
        studies[-1].run()
    without, patient, hasty = studies
    assert (without.stopped, patient.stopped, hasty.stopped) == (None, None, "looks")
    assert hasty.progress.steps < patient.progress.steps == len(asks)
    assert patient.progress.total_tokens == without.progress.total_tokens
    more = make(tmp_path / "hasty", asks, constant=True, looks=make_looks(None))
    assert more.resume(hasty.state_dict())
    more.run()
    assert more.state_dict()["looks"] == patient.state_dict()["looks"]
    assert more.progress.tokens == patient.progress.tokens


def test_looks_end_no_method_before_the_last_of_a_series(tmp_path: Path) -> None:
    """A budget that stagnates says nothing about the next one's."""
    asks = falling_asks(constant=True)
    hasty = make(tmp_path, asks, constant=True, looks=make_looks(2))
    series = SeriesSearcher(
        [lambda scored: Script(asks), lambda scored: Script(asks[:1])], CALIBRATION.archive
    )
    hasty.searcher = series
    hasty.run()
    assert series.final
    assert hasty.progress.steps > len(asks)


@pytest.mark.parametrize("harm", ["damaged", "cut"])
def test_a_journal_that_lost_values_is_not_gone_on_from(harm: str, tmp_path: Path) -> None:
    asks = random_asks(0)
    first = make(tmp_path, asks)
    for _ in range(4):
        first.step()
    state = first.state_dict()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"[", b"(", 1) if harm == "damaged" else b""
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    second = make(tmp_path, asks)
    assert not second.resume(state)
    assert (second.progress.steps, len(second.archive.entries), second.searcher.ask()[0].number) == (0, 0, 0)
    second.run()
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole", asks)
    whole.run()
    assert second.state_dict()["archive"] == whole.state_dict()["archive"]
    assert second.progress.tokens == whole.progress.tokens


def test_a_checkpoint_of_a_repetition_counts_only_what_was_asked_again(tmp_path: Path) -> None:
    """The journal holds later steps already when a search is repeated from its beginning."""
    asks = random_asks(1)
    whole = make(tmp_path, asks)
    whole.run()
    repeated = make(tmp_path, asks)
    repeated.step()
    state = repeated.state_dict()
    resumed = make(tmp_path, asks)
    assert resumed.resume(state)
    resumed.run()
    assert resumed.progress.tokens == whole.progress.tokens
    assert resumed.progress.evaluations == whole.progress.evaluations


def test_what_others_measured_is_taken_in_part(tmp_path: Path) -> None:
    profile = profiles(1)[0]
    (tmp_path / "other").mkdir()
    other = make(tmp_path / "other", [[(profile, at(2, 4))], [(profile, at(6, 7))]])
    other.run()
    library = Journal(tmp_path / "none", FINGERPRINT, [tmp_path / "other" / "journal.jsonl"])
    study = make(tmp_path, [[(profile, at(0, 8))]], library=library)
    study.run()
    assert [position for _, _, position in measured(study)] == [0, 1, 4, 5, 7]
    (trial,) = (Trial(0, profile, at(0, 8)),)
    (wanted,) = ToyEvaluator(SPACE, noise=0.1).evaluate([trial])
    own = Journal(tmp_path / "journal.jsonl", FINGERPRINT)
    found = own.lookup(study.answers.key(profile, "calibration"), trial)
    assert found is not None
    assert found.values == wanted.values


@pytest.mark.parametrize("seed", range(5))
def test_the_token_limit_is_kept_and_may_be_raised(seed: int, tmp_path: Path) -> None:
    asks = random_asks(seed)
    whole = make(tmp_path, asks)
    whole.run()
    for limit in range(0, whole.progress.total_tokens, 7 * LENGTH):
        folder = tmp_path / str(limit)
        folder.mkdir()
        study = make(folder, asks, max_tokens=limit)
        study.run()
        assert study.finished
        assert study.progress.total_tokens <= limit
        again = make(folder, asks, max_tokens=limit)
        again.resume(study.state_dict())
        again.run()
        assert again.progress.steps == study.progress.steps
        more = make(folder, asks)
        assert more.resume(again.state_dict())
        more.run()
        assert more.progress.steps == len(asks)
        assert more.progress.tokens == whole.progress.tokens


def test_no_step_begins_after_the_time_limit(tmp_path: Path) -> None:
    study = make(tmp_path, random_asks(0), max_time=1e-9)
    study.run()
    assert study.finished
    assert study.progress.steps == 1


def test_without_a_teacher_none_of_its_tokens_count(tmp_path: Path) -> None:
    asks = [[(profile, at(0, 4)) for profile in profiles(3)]]
    folders = [tmp_path / name for name in ("with", "without")]
    for folder in folders:
        folder.mkdir()
    with_teacher, without = make(folders[0], asks), make(folders[1], asks, teacher=False)
    for study in (with_teacher, without):
        study.run()
    assert (with_teacher.progress.teacher_tokens, without.progress.teacher_tokens) == (4 * LENGTH, 0)
    assert with_teacher.progress.tokens == without.progress.tokens


def test_it_tells_of_answers_within_a_step(tmp_path: Path) -> None:
    study = make(tmp_path, [[(profile, at(0, 4)) for profile in profiles(3)]])
    told: list[int] = []
    study.answers.on_answer = told.append
    study.run()
    assert told == [4 * LENGTH, 8 * LENGTH, 12 * LENGTH]
