"""The comparison of searches with every state of a model's drops."""

from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.methods.drop import chosen, compare, plan
from benchmarks.methods.drop_rows import Result, rows, table, tokens_by_seed
from benchmarks.methods.drop_states import Measured, drops_of, feasible, is_equal, states
from paretopress.evaluators.population.population import Assignment, PopulationEvaluator
from paretopress.evaluators.trial import Fidelity
from paretopress.search.run.configuration import load_config, parse_config
from tests.end_to_end.tiny import LENGTH, save_tiny, tiny_config, write_text
from tests.toys import drop_space, everything

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dropped", range(7))
def test_states_are_all_profiles_of_so_many_drops(dropped: int) -> None:
    space = drop_space(3)
    plain = [profile for profile in everything(space) if space.labels(profile).count("drop") == dropped]
    found = states(space, dropped)
    assert sorted(found) == sorted(plain)
    assert len(found) == comb(6, dropped)
    assert {drops_of(space, profile) for profile in found} == {dropped}


def test_equal_counts() -> None:
    space = drop_space(2)
    equal = [profile for profile in states(space, 2) if is_equal(space, profile)]
    assert len(equal) == 4
    assert not any(is_equal(space, profile) for profile in states(space, 3))
    assert is_equal(space, states(space, 0)[0])


def test_budgets_are_all_by_default_and_those_with_few_states_are_measured() -> None:
    assert chosen(16, None) == list(range(1, 16))
    assert chosen(16, [15, 2, 2]) == [2, 15]
    assert feasible(32, range(1, 32), 20_000) == [1, 2, 3, 29, 30, 31]
    assert feasible(16, range(1, 16), 20_000) == list(range(1, 16))
    for count in (0, 16):
        with pytest.raises(ValueError, match=f"{count} of 16 branches leave nothing to choose; drop 1 to 15"):
            chosen(16, [count])


VALUES = st.lists(
    st.tuples(st.integers(1, 4), st.booleans(), st.floats(0, 9).map(lambda value: round(value, 1))),
    min_size=1,
    max_size=30,
)


def measured_of(values: list[tuple[int, bool, float]]) -> Measured:
    drops, equal, means = zip(*values, strict=True)
    return Measured(np.array(drops), np.array(equal), np.array(means, np.float64), 1.0, frozenset(drops))


@given(VALUES, st.integers(1, 4), st.floats(0, 9).map(lambda value: round(value, 1)))
def test_rank_and_optima_are_those_of_the_states_within_the_budget(
    values: list[tuple[int, bool, float]], dropped: int, value: float
) -> None:
    measured = measured_of(values)
    within = [mean for drops, _, mean in values if drops >= dropped]
    assert measured.within(dropped).tolist() == sorted(within)
    assert measured.rank(dropped, value) == 1 + sum(mean < value for mean in within)
    equal = [mean for drops, is_equal_, mean in values if drops == dropped and is_equal_]
    assert measured.best_equal(dropped) == min(equal, default=np.inf)


def result(method: str, dropped: int, kl: float, seed: int = 0, tokens: int = 1_000_000) -> Result:
    return Result(method, dropped, seed, kl, dropped, tokens, 1.0, {})


def test_rows_and_table_say_what_was_found() -> None:
    measured = measured_of([(1, False, 0.1), (1, False, 0.2), (2, True, 0.5), (2, False, 0.4)])
    results = [
        result("frontier", 1, 0.1, tokens=3_000_000),
        result("frontier", 2, 0.4, tokens=3_000_000),
        result("frontier", 3, 0.9, tokens=3_000_000),
        result("evolution", 1, 0.1),
        result("evolution", 1, 0.2, seed=1),
        result("evolution", 2, 0.4),
        result("evolution", 3, 0.8),
        result("evolution, equal", 2, 0.5),
    ]
    found = rows(measured, results)
    assert [row["found"] for row in found] == [True, True, False, True, False, True, True, False]
    assert [row["rank"] for row in found] == [1, 1, None, 1, 2, 1, None, 2]
    assert [row["own"] for row in found] == [None] * 7 + [True]
    assert tokens_by_seed([row for row in found if row["method"] == "frontier"]) == {0: 3_000_000}
    assert tokens_by_seed([row for row in found if row["method"] == "evolution"]) == {
        0: 3_000_000,
        1: 1_000_000,
    }
    lines = table(found, 4).splitlines()
    assert lines[0] == "| dropped | states | optimum KL | frontier | evolution | evolution, equal |"
    assert lines[2] == "| 1 | 4 | 0.10000 | 1/1, 0.10000, rank 1 | 1/2, 0.15000, rank 2, 1.00 M | - |"
    assert lines[3].endswith("| 0/1 (own 1/1), 0.50000, rank 2, 1.00 M |")
    assert lines[4].startswith("| 3 | 4 | 0.80000 (best known) | 0/1, 0.90000 | 1/1, 0.80000, 1.00 M |")
    assert lines[5] == "| all |  |  | 2/3, 3.00 M | 3/4, 2.00 M | 0/1, 1.00 M |"


def test_a_state_that_drops_more_than_asked_counts() -> None:
    measured = measured_of([(1, False, 0.3), (2, False, 0.2)])
    (row,) = rows(measured, [result("frontier", 1, 0.3)])
    assert (row["optimum"], row["found"], row["rank"]) == (0.2, False, 2)


def test_one_run_serves_all_budgets_where_it_can_and_equal_counts_need_a_number_to_divide() -> None:
    config = load_config(Path("configs/benchmarks/drop.yaml"))
    measured = measured_of([(1, False, 0.1), (3, False, 0.1)])
    runs = list(plan(config, drop_space(2), [1, 2, 3], 2, measured, long=5))
    named = [(run.method, run.budgets, run.seed) for run in runs]
    assert [n for n in named if n[0] == "frontier"] == [("frontier", (1, 2, 3), s) for s in (0, 1)]
    assert [n for n in named if n[0] == "greedy"] == [("greedy", (1, 2, 3), 0)]
    assert [n[1:] for n in named if n[0] == "evolution"] == [((k,), s) for k in (1, 2, 3) for s in (0, 1)]
    assert [n[1:] for n in named if n[0] == "evolution, equal"] == [((2,), 0), ((2,), 1)]
    assert [n[1:] for n in named if n[0] == "evolution, long"] == [((2,), 0)]
    settings = {run.method: run.search for run in runs}
    assert settings["evolution"] == {"method": "evolution", "drop_balance": False}
    assert settings["evolution, equal"]["drop_balance"] is True
    assert settings["evolution, long"]["generations"] == 5
    assert len({run.name for run in runs}) == len(runs)


def test_the_optimum_of_a_small_model_and_nothing_measured_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "text.jsonl")
    model = save_tiny(tmp_path / "model", text)
    search = [{"method": "evolution", "drop_balance": False, "generations": 2}]
    content = tiny_config(model, text, space={"drop": "branches"}, budgets=[{"dropped": 1}], search=search)
    content["data"]["calibration"]["tokens"] = content["archive_tokens"] = 4 * LENGTH
    config = parse_config(content, "test")
    asked: list[frozenset[tuple[str, str]]] = []
    measure = PopulationEvaluator.measure

    def recorded(
        self: PopulationEvaluator, assignments: Sequence[Assignment], fidelity: Fidelity
    ) -> tuple[list[list[float]], list[list[float]]]:
        asked.extend(frozenset(assignment.items()) for assignment in assignments if assignment)
        return measure(self, assignments, fidelity)

    monkeypatch.setattr(PopulationEvaluator, "measure", recorded)
    found = compare(config, tmp_path / "table", [1, 2, 3])
    # A search may also ask for the model without any branch, which is no state of a budget.
    assert 14 <= len(asked) == len(set(asked)) <= 15
    assert "14 states of 1, 2, 3 drops on 256 tokens: 0.00 M tokens" in capsys.readouterr().out
    assert {row["dropped"] for row in found["rows"]} == {1, 2, 3}
    for row in found["rows"]:
        assert row["exhaustive"]
        assert row["kl"] >= row["optimum"]
        assert row["found"] == (row["rank"] == 1)
        assert row["tokens"] > 4 * LENGTH
    assert all(row["found"] for row in found["rows"] if row["method"] == "frontier")

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(PopulationEvaluator, "measure", refuse)
    again = compare(config, tmp_path / "table", [1, 2, 3])
    for before, after in zip(found["rows"], again["rows"], strict=True):
        assert before | {"seconds": 0} == after | {"seconds": 0}
