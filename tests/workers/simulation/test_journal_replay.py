"""Replays answer what was recorded, and say what was not."""

from pathlib import Path

import pytest

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.slopes.slope_trial import SlopeTrial
from paretopress.evaluators.trial import Trial
from paretopress.workers import Landscape, LocalPool, Replay, SimulatedPool
from tests.toys import CALIBRATION, bits_limits, bits_space
from tests.workers.simulation.simulations import DATA, EVOLUTION, ROUGH, at, random_profiles, state, study


def test_a_replay_repeats_a_recorded_search(tmp_path: Path) -> None:
    space = bits_space()
    limits = bits_limits(space)
    landscape = Landscape(space, CALIBRATION.sequences, 1, **ROUGH)
    (tmp_path / "first").mkdir()
    recorded = study(tmp_path / "first", space, limits, LocalPool(landscape), [EVOLUTION])
    recorded.run()
    replay = Replay(Journal(tmp_path / "first" / "journal.jsonl", "0" * 32), space, DATA)
    assert replay.fingerprint == "0" * 32
    again = study(tmp_path, space, limits, SimulatedPool(replay, 100), [EVOLUTION])
    again.run()
    assert state(again) == state(recorded)


def test_a_replay_says_what_was_not_recorded(tmp_path: Path) -> None:
    space = bits_space()
    (profile,) = random_profiles(space, 1)
    recorded = study(tmp_path, space, bits_limits(space), LocalPool(Landscape(space, 32)), [EVOLUTION])
    (evaluation,) = recorded.answers.pool.run([Trial(0, profile, at(2, 6))])
    recorded.answers.journal.append(recorded.answers.key(profile, "calibration"), evaluation)
    replay = Replay(Journal(tmp_path / "journal.jsonl", "0" * 32), space, DATA)
    (found,) = replay.evaluate([Trial(3, profile, at(3, 5))])
    assert found.values == evaluation.values[1:3]
    count = space.labels(profile).count("w2")
    message = rf"no values of trial 9 \({count} x w2, .*\) on calibration sequences 0\.\.2, 6\.\.8 \(seed 0, length 64\)"
    with pytest.raises(LookupError, match=message):
        list(replay.evaluate([Trial(9, profile, at(0, 8))]))


def test_a_replay_holds_no_slopes(tmp_path: Path) -> None:
    space = bits_space()
    (profile,) = random_profiles(space, 1)
    replay = Replay(Journal(tmp_path / "journal.jsonl", "0" * 32), space, DATA)
    with pytest.raises(
        LookupError, match="holds values, no slopes, and trial 4 asks for slopes; replay with"
    ):
        list(replay.evaluate([SlopeTrial(4, profile, at(0, 2))]))
