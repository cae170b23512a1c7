"""Profiles scored without being written: the model in memory, and its scores beside those of an export."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from paretopress.evaluators.runner.numerics import EvaluationConfig
from paretopress.evaluators.runner.whole_model import whole_model
from paretopress.evaluators.tasks.harness import Harness, Score
from paretopress.exporters.artifact.compression import Compression
from paretopress.exporters.evaluate import Compared, compare_scores, only_device
from paretopress.exporters.profiled_checkpoint import ProfiledCheckpoint
from paretopress.search.run.configuration import load_config
from paretopress.spaces.model.checkpoint import Checkpoint
from tests.architectures import core_first, random_tokens, save_model
from tests.exporters.cases import QUICKSTART, Case, logits, reloaded
from tests.tasks import accuracies, cached_in, log_likelihoods, perplexity, write_likelihood, write_task

CPU = torch.device("cpu")


def profiled(case: Case, assignment: dict[str, str]) -> ProfiledCheckpoint:
    return ProfiledCheckpoint(case.checkpoint, Compression(case.structure, case.database, assignment, CPU))


def in_memory(case: Case, assignment: dict[str, str], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return whole_model(profiled(case, assignment), dtype=dtype, device=CPU)


@pytest.mark.parametrize(
    "name", core_first(["gemma2", "gpt2", "gpt_neo", "gpt_neox", "llama", "opt", "phi3", "qwen3"])
)
def test_a_profile_in_memory_is_the_model_edited_by_hand(name: str, tmp_path: Path) -> None:
    case = Case(save_model(name, tmp_path / name), tmp_path, ("w3g16", "s50"))
    last = len(case.structure.blocks) - 1
    assignment = case.assignment({0: ("attention",), 1: ("attention", "mlp"), last: ("mlp",)})
    assignment[case.structure.ends.embedding.path] = "w3g16"
    found, edited = in_memory(case, assignment), case.edited(assignment)
    assert torch.equal(logits(found), logits(edited))
    assert not torch.allclose(logits(found), logits(in_memory(case, {})), atol=1e-2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    in_memory(case, assignment)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(QUICKSTART, tmp_path_factory.mktemp("databases"), ("w2g128", "w4g128"))


def dropping(case: Case) -> dict[str, str]:
    """Levels in turn, the first block and two branches dropped."""
    return case.assignment({0: ("attention", "mlp"), 3: ("attention",), 5: ("mlp",)})


def test_a_profile_in_memory_is_its_export(quickstart: Case, tmp_path: Path) -> None:
    assignment = dropping(quickstart)
    quickstart.export(assignment, tmp_path / "out")
    found, written = in_memory(quickstart, assignment, torch.float16), reloaded(tmp_path / "out")
    assert torch.equal(logits(found), logits(written))


def test_dropped_blocks_generate_as_without_a_cache(quickstart: Case) -> None:
    model: Any = in_memory(quickstart, dropping(quickstart))
    tokens_BT = random_tokens(2, 8)
    cached, plain = (
        model.generate(tokens_BT, max_new_tokens=12, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, plain)
    assert cached.shape == (2, 20)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    with cached_in(folder / "cache"):
        yield Harness([str(write_task(folder, "names")), str(write_likelihood(folder))])


def settings(folder: Path, *overrides: str) -> Any:
    path = folder / "run.yaml"
    path.write_text(f"model: {QUICKSTART}\nspace: {{levels: [w2g128]}}\nbudgets: [{{bits: 4}}]\n")
    chosen = ("evaluation.device=cpu", "evaluation.micro_batch=4", "evaluation.threads=1", *overrides)
    return load_config(path, list(chosen))


def values(rows: list[Compared]) -> dict[str, tuple[float, float]]:
    """Of every metric: the score and the dense model's."""
    return {row.score.metric: (row.score.value, row.dense.value if row.dense else 0.0) for row in rows}


def test_scores_of_a_profile_and_of_the_dense_model(
    quickstart: Case, harness: Harness, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    assignment = dict.fromkeys((linear.path for linear in quickstart.structure.linears), "w2g128")
    rows = compare_scores(config, profiled(quickstart, assignment), harness)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    rounded = log_likelihoods(in_memory(quickstart, assignment), tokenizer)
    found = values(rows)
    assert found["acc"][0] == accuracies(rounded)[0]
    assert found["perplexity"][0] == pytest.approx(perplexity(rounded), rel=1e-5)
    assert found["acc"][0] < found["acc"][1]
    assert found["perplexity"][0] > 2 * found["perplexity"][1]
    alone = compare_scores(config, profiled(quickstart, assignment), harness, dense=False)
    assert [row.score for row in alone] == [row.score for row in rows]
    assert [row.dense for row in alone] == [None] * len(rows)


def test_models_that_do_not_fit(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paretopress.exporters.evaluate.free_memory", lambda device: 7_000_000)
    message = (
        r"tasks need the whole model, .* MB in float32, and 7 MB are free on cpu; give evaluation.device"
    )
    with pytest.raises(ValueError, match=message):
        compare_scores(settings(tmp_path), Checkpoint(QUICKSTART), harness)


def test_tasks_run_on_one_device() -> None:
    assert only_device(EvaluationConfig(device="cuda:1")) == torch.device("cuda:1")
    message = "tasks run on one device, not on cuda:0,cuda:1; set evaluation.device=cuda:0"
    with pytest.raises(ValueError, match=message):
        only_device(EvaluationConfig(device="cuda:0,cuda:1"))


def test_records_hold_finite_numbers_only() -> None:
    score = Score("t", "perplexity", float("inf"), None, 3, False)
    assert Compared(score, None).record() == {
        "task": "t",
        "metric": "perplexity",
        "value": None,
        "error": None,
        "samples": 3,
        "higher": False,
    }
    dense = Score("t", "perplexity", 2.5, 0.5, 3, False)
    record = Compared(score, dense).record()
    assert (record["dense"], record["dense_error"]) == (2.5, 0.5)
