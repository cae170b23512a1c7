"""Scores by lm-eval against a plain loop over log-likelihoods, and what it is kept from."""

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, PreTrainedModel

from paretopress.evaluators.runner.whole_model import whole_model
from paretopress.evaluators.tasks.harness import Harness, Score
from paretopress.spaces.model.checkpoint import Checkpoint
from tests.tasks import (
    accuracies,
    cached_in,
    documents,
    log_likelihoods,
    perplexity,
    write_likelihood,
    write_task,
)

lm_eval = pytest.importorskip("lm_eval")
QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart-model"


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cached_in(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return whole_model(Checkpoint(QUICKSTART), dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(QUICKSTART)


def scores(model: PreTrainedModel, tokenizer: Any, *tasks: Path) -> dict[tuple[str, str], Score]:
    found = Harness([str(task) for task in tasks]).scores(model, tokenizer, 4)
    return {(score.task, score.metric): score for score in found}


def test_scores_are_those_of_a_plain_loop(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = scores(model, tokenizer, write_task(tmp_path, "names"), write_likelihood(tmp_path))
    exact = log_likelihoods(model, tokenizer)
    plain, normed = accuracies(exact)
    assert plain > 0.5 > 0.25  # of four choices
    accuracy = found["names", "acc"]
    assert (accuracy.value, found["names", "acc_norm"].value) == (plain, normed)
    count = len(documents())
    assert accuracy.samples == count
    assert accuracy.error == pytest.approx((plain * (1 - plain) / (count - 1)) ** 0.5)
    assert accuracy.higher is True
    likelihood = found["likelihood", "perplexity"]
    assert likelihood.value == pytest.approx(perplexity(exact), rel=1e-5)
    assert likelihood.error is not None
    assert likelihood.higher is False
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks and a group of them, in the place of the thousands that lm-eval has."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "known"
    folder.mkdir()
    for name in ("names_a", "names_b"):
        write_task(folder, name, dataset_kwargs={"data_files": {"test": str(folder / "names.jsonl")}})
    means = [{"metric": "acc", "weight_by_size": True}]
    group = {"group": "all_names", "task": ["names_a", "names_b"], "aggregate_metric_list": means}
    (folder / "group.yaml").write_text(yaml.safe_dump(group))

    def these(include_defaults: bool) -> Any:
        return TaskManager(include_path=folder if include_defaults else None, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", these)


@pytest.mark.usefixtures("known")
def test_tasks_and_groups_by_name(model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    own = write_task(tmp_path, "names")
    found = Harness([str(own), "all_names"]).scores(model, tokenizer, 4)
    values = {score.task: (score.value, score.samples) for score in found if score.metric == "acc"}
    value, count = values["names"]
    one = (value, count)
    assert values == {"names": one, "names_a": one, "names_b": one, "all_names": (value, 2 * count)}
    with pytest.raises(ValueError, match="task 'names_a' is given twice"):
        Harness(["names_a", "all_names"])
    message = "'names' is no .yaml file and unknown to lm-eval; the nearest are names_b, names_a, all_names"
    with pytest.raises(ValueError, match=message):
        Harness(["names"])


def test_generated_answers(model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    task = write_task(
        tmp_path,
        "generated",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[right]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match"}],
    )
    right = 0
    for document in documents():
        tokens_BT = torch.tensor([tokenizer(document["prompt"])["input_ids"]])
        start = tokens_BT.shape[1]
        for _ in range(4):
            with torch.inference_mode():
                last_B1 = model(input_ids=tokens_BT).logits[:, -1:].argmax(-1)
            tokens_BT = torch.cat([tokens_BT, last_B1], 1)
        text = tokenizer.decode(tokens_BT[0, start:])
        right += text.partition("\n")[0] == document["choices"][document["right"]]
    assert right > 0
    assert scores(model, tokenizer, task)["generated", "exact_match"].value == right / len(documents())


def test_a_model_is_let_go(tokenizer: Any, tmp_path: Path) -> None:
    harness = Harness([str(write_task(tmp_path, "names"))])
    model = whole_model(Checkpoint(QUICKSTART), dtype=torch.float32, device=torch.device("cpu"))
    held = weakref.ref(model.get_parameter("lm_head.weight"))
    gc.collect()
    gc.disable()
    try:
        harness.scores(model, tokenizer, 4)
        del model
        assert held() is None
    finally:
        gc.enable()


def test_nothing_stays_changed(tmp_path: Path) -> None:
    import lm_eval.utils

    before = (lm_eval.utils.env, sys.modules.get("evaluate"), os.environ.get("DISABLE_MULTIPROC"), sys.stdout)
    Harness([str(write_task(tmp_path, "names"))])
    with pytest.raises(ValueError, match="lm-eval cannot load"):
        Harness([str(write_task(tmp_path, "wrong", doc_to_text="{{nothing}}"))])
    after = (lm_eval.utils.env, sys.modules.get("evaluate"), os.environ.get("DISABLE_MULTIPROC"), sys.stdout)
    assert after == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"doc_to_text": "{{cycler.__init__.__globals__.os.getpid()}}"},
            "SecurityError: access to attribute",
        ),
        (
            {"metric_list": [{"metric": "own"}]},
            "no metric 'own' and would run code for it from the Hugging Face Hub; set trust_rem",
        ),
        (
            {"metric_list": [{"metric": "acc", "hf_evaluate": True, "aggregation": "mean"}]},
            "no metric 'acc' and would run code for it from the Hugging Face Hub",
        ),
        ({"unsafe_code": True}, "'bad' runs code that models write, which is not allowed; set trust_remote"),
        (
            {"doc_to_text": "{{nothing}}"},
            r"cannot load .*bad\.yaml \(UndefinedError: 'nothing' is undefined\)",
        ),
        ({"dataset_kwargs": {"data_files": "none.jsonl"}}, r"bad\.yaml \(FileNotFoundError: .*none\.jsonl"),
        ({"test_split": "train"}, r"cannot load .*bad\.yaml \(KeyError: "),
        ({"wrong_key": 1}, r"cannot load .*bad\.yaml \(TypeError: .*wrong_key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_tasks_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Harness([str(write_task(tmp_path, "bad", **changes))])


def test_templates_that_fail_later(model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    first = documents()[0]["right"]
    text = f"{{{{prompt if right == {first} else nothing}}}}"
    harness = Harness([str(write_task(tmp_path, "later", doc_to_text=text))])
    with pytest.raises(ValueError, match="a template of a task fails .*'nothing' is undefined"):
        harness.scores(model, tokenizer, 4)


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    tasks = [str(write_task(folder, "names")) for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(ValueError, match="task 'names' is given twice; give it once"):
        Harness(tasks)


def test_lm_eval_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"--tasks needs lm-eval; pip install 'paretopress\[eval\]'"
    ):
        Harness([str(write_task(tmp_path, "names"))])
