"""The benchmark's own arithmetic on a tiny model: cases, windows, tables, and the command as a whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from benchmarks.opening import Wanted
from benchmarks.speed.company import arithmetic, compare, launches, require_equal, sensitivity
from benchmarks.speed.floor import Work
from benchmarks.speed.generation import Bench, Plan, Stage
from benchmarks.speed.parts import summary
from benchmarks.speed.population import main
from benchmarks.speed.profiling import IDLE, OTHER, StageProfiler, by_kind, kind_of
from benchmarks.speed.scaling import CPU, scaling
from benchmarks.tables import table

pytestmark = pytest.mark.slow

SMALL = ["--offspring", "5", "--survivors", "2", "1", "--tokens", "128", "512"]


def test_the_first_generation_meets_the_dense_model_once_per_sequence(bench: Bench) -> None:
    stages = bench.generation("first", 0)
    assert [stage.name for stage in stages] == ["6 x 128", "4 x 256", "3 x 640"]
    assert [stage.untaught for stage in stages] == [1, 1, 3]
    assert set(stages[1].candidates) == set(stages[0].best(4))
    assert stages[2].candidates == (bench.parent, *stages[1].best(2))
    assert stages[0].fidelity.start == 0
    assert bench.generation("steady", 1)[0].fidelity.start >= 5


def test_what_nested_stages_know_is_not_measured_again(bench: Bench) -> None:
    steady, nested = bench.generation("steady", 0), bench.generation("nested", 0)
    assert [stage.untaught for stage in steady + nested] == [0] * 6
    assert [stage.name for stage in nested] == ["6 x 128", "4 x 128", "2 x 384"]
    starts = [stage.fidelity.start - nested[0].fidelity.start for stage in nested]
    assert starts == [0, 1, 2]
    assert nested[-1].work.total < steady[-1].work.total


def test_values_do_not_depend_on_the_case(bench: Bench) -> None:
    profiles, plan = bench.offspring(0), bench.plan
    first = bench.stage(profiles, plan.fidelity(1, 0, 128), 2)
    again = bench.stage(profiles[::-1], plan.fidelity(1, 0, 128), 0)
    assert first.values == again.values[::-1]


def test_windows_end_with_the_pool(bench: Bench) -> None:
    pool = len(bench.assembly.data["calibration"])
    assert bench.unseen(3) == 0
    assert bench.unseen(pool - 4) == 4  # whole micro-batches of two
    after = -(-pool // 2) * 2 + 1
    with pytest.raises(ValueError, match=rf"sequences up to {after} are needed, there are {pool}; lower"):
        bench.unseen(1)


def test_plans_that_cannot_be_nested_are_refused() -> None:
    with pytest.raises(ValueError, match="2 survivors for 3 token counts"):
        Plan(8, (2, 1))
    with pytest.raises(ValueError, match="do not grow"):
        Plan(8, (2, 1), (512, 512))
    assert Plan().fidelity(0, 5, 8192).length == 2048
    assert Plan().fidelity(2, 5, 8192).sequences == Plan().window(8192) == 16


def test_a_sensitivity_population_changes_every_unit_once(bench: Bench) -> None:
    population = sensitivity(bench)
    differ = [
        [u for u, (a, b) in enumerate(zip(profile, bench.parent, strict=True)) if a != b]
        for profile in population
    ]
    assert differ == [[u] for u in range(len(bench.assembly.space.units))]


def test_medians_are_of_whole_runs(bench: Bench) -> None:
    made = bench.stage(bench.offspring(0)[:1], bench.plan.fidelity(0, 0, 128), 0)

    def stage(seconds: float, flops: int) -> Stage:
        return replace(made, seconds=seconds, work=Work(linear=flops, apart=2 * flops))

    runs = [[stage(1, 2), stage(5, 4)], [stage(2, 2), stage(1, 4)], [stage(3, 2), stage(2, 4)]]
    rows = summary(runs, rate=2.0, published={"seconds": [8.0, 10.0], "whole": 18.0})["median"]
    assert [row["ours s"] for row in rows] == [2, 2, 5]
    assert [row["floor s"] for row in rows] == [1, 2, 3]
    assert [row["published / ours"] for row in rows] == [4, 5, 3.6]
    assert [row["ours / floor"] for row in rows] == [2, 1, 5 / 3]
    assert rows[2]["blocks left"] == 0.5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopB_TNT", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("Memcpy HtoD (Pageable -> Device)", "transfer"),
        ("Memcpy DtoD (Device -> Device)", OTHER),
        ("void cunn_SoftMaxForward<8, float>", "softmax and divergence"),
        ("triton_unpack_codes", "decode"),
        ("void at::native::elementwise_kernel<mul>", OTHER),
    ],
)
def test_kernels_are_sorted_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_what_no_kernel_covers_is_idle() -> None:
    found = by_kind([("aten::mm", 2.0), ("aten::addmm", 1.0), ("flash", 0.5)], wall=5.0)
    assert found["matrix products"] == 3
    assert found[IDLE] == 1.5
    assert sum(found.values()) == 5


def test_a_profiler_tells_operators_from_named_parts() -> None:
    profiler, matrix = StageProfiler(), torch.randn(200, 200)
    with profiler(), record_function("squares"):
        torch.mm(matrix, matrix)
    (trace,) = profiler.traces
    assert [name for name, _ in trace.parts] == ["squares"]
    assert "aten::mm" in dict(trace.kernels)
    assert dict(trace.parts)["squares"] >= dict(trace.kernels)["aten::mm"] > 0


def test_tables_are_aligned() -> None:
    text = table(("name", "s"), [("a", 1.23456), ("longer", 12345), ("none", None)])
    assert text.splitlines() == [
        "name         s",
        "------  ------",
        "a         1.23",
        "longer  12,345",
        "none         -",
    ]


def test_the_command_measures_everything_and_keeps_the_figures(
    tmp_path: Path, wanted: Wanted, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--folder", str(wanted.folder), *SMALL, "--runs", "1", "--json", str(tmp_path / "f.json")]
    figures = main([*arguments, "--set", "evaluation.threads=1", "--set", "evaluation.device=cpu"])
    assert json.loads((tmp_path / "f.json").read_text()) == json.loads(json.dumps(figures))
    assert figures["equality"]["equal"]
    assert figures["generation"]["apart"] < 1e-2
    rows = figures["generation"]["first"]["median"]
    assert [row["stage"] for row in rows] == ["5 x 128", "3 x 512", "whole generation"]
    assert all(row["floor s"] < row["ours s"] for row in rows)
    assert figures["baseline"]["whole"] == pytest.approx(sum(figures["baseline"]["seconds"]))
    kinds = figures["profile"]["kinds"]
    assert [stage["stage"] for stage in kinds] == [row["stage"] for row in rows]
    assert all(stage["matrix products"] > 0 for stage in kinds)
    shown = capsys.readouterr().out
    for title in (
        "Published loop",
        "First generation",
        "Steady state",
        "Where the time goes",
        "warm-up pass",
    ):
        assert title in shown


def test_a_population_is_compared_with_one_candidate_at_a_time(wanted: Wanted) -> None:
    figures = launches(replace(wanted, plan=Plan(6, (1,), (256,))))
    assert set(figures["apart"]) == {1, 2}
    assert figures["population"] > 0


def test_every_micro_batch_is_held_against_the_floor(wanted: Wanted) -> None:
    small = replace(wanted, plan=Plan(8, (1,), (256,)), overrides=wanted.overrides[:2])
    rows = arithmetic(small, [1, 2])["rows"]
    assert [row["population, micro-batch"][-5:] for row in rows] == ["B = 1", "B = 1", "B = 2", "B = 2"]
    assert all(row["s / floor"] > 1 for row in rows)
    # 7 layers in each of 4 blocks change 4, 3, 2 or 1 blocks; 3 blocks of the parent are shared.
    assert rows[1]["blocks left"] == pytest.approx((7 * (4 + 3 + 2 + 1) + 3) / (28 * 4))


def test_cost_is_shown_along_four_axes(wanted: Wanted) -> None:
    axes = replace(
        CPU,
        shape=replace(CPU.shape, blocks=1),
        population=4,
        tokens=128,
        populations=(2, 4),
        more_tokens=(128, 256),
        blocks=(1, 2),
        hidden=(128, 256),
    )
    figures = scaling(wanted, axes)
    assert [row["candidates"] for row in figures["population"]] == [2, 4]
    assert [row["blocks"] for row in figures["blocks"]] == [1, 2]
    first, second = (row["parameters"] for row in figures["parameters"])
    assert second == 4 * first
    for rows in figures.values():
        assert rows[1]["floor s"] > rows[0]["floor s"]


def test_values_do_not_depend_on_company(bench: Bench) -> None:
    assert len(compare(bench)["values"]) == 2


def test_values_that_depend_on_company_are_an_error() -> None:
    require_equal({"alone": [1.0, 2.0], "in company": [1.0, 2.0]})
    with pytest.raises(RuntimeError, match=r"values depend on company: \[1.0\] alone, \[1.1\] in company"):
        require_equal({"alone": [1.0], "in company": [1.1]})
