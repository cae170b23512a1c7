"""The made models: sizes of the known shapes, files that transformers loads, nothing made twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.shapes import SHAPES, Shape, prepare
from paretopress.evaluators.text.sources import SourceConfig, documents

FROM_CONFIG: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
UNTIED = Shape(3, 64, 96, 4, 4, 100, tied=False, length=32)


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-3.2b", 3.21), ("llama-8b", 8.03), ("llama-13b", 13.02)]
)
def test_a_shape_has_the_parameters_of_its_model(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = FROM_CONFIG(SHAPES[name].config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("shape", [SHAPES["tiny"], UNTIED], ids=["tied", "untied"])
def test_a_made_model_loads_and_repeats_the_last_token(tmp_path: Path, shape: Shape) -> None:
    text = prepare(tmp_path, shape, 7)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.tie_word_embeddings == shape.tied
    rows = list(documents(SourceConfig(source=str(text))))
    assert len(rows) == 7
    tokens = torch.from_numpy(rows[0]).long()
    assert tokens.shape == (1, shape.length)
    with torch.no_grad():
        loss = float(model(tokens, labels=tokens).loss)
    assert loss < torch.tensor(float(shape.vocabulary)).log()
    with safe_open(tmp_path / "model-ends.safetensors", framework="pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not shape.tied)  # noqa: SIM118 (not a dict)


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    prepare(tmp_path, UNTIED, 5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert prepare(tmp_path, UNTIED, 5) == tmp_path / "text-32x5.safetensors"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare(tmp_path, UNTIED, 6)
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 3
    assert len(list(tmp_path.iterdir())) == len(before) + 1
