"""Whole models against `from_pretrained`, for every architecture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from paretopress.evaluators.runner.whole_model import whole_model
from paretopress.spaces.model.checkpoint import Checkpoint
from tests.architectures import ARCHITECTURES, core_first, random_tokens, save_model

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart-model"
CPU = torch.device("cpu")


def same(path: Path, dtype: torch.dtype) -> None:
    found = whole_model(Checkpoint(path), dtype=dtype, device=CPU)
    plain: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    assert found.dtype == dtype
    assert not found.training
    theirs = plain.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.state_dict().items())
    tokens_BT = random_tokens(2)
    with torch.inference_mode():
        assert torch.equal(found(input_ids=tokens_BT).logits, plain(input_ids=tokens_BT).logits)


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_every_architecture_is_the_model_that_transformers_opens(name: str, tmp_path: Path) -> None:
    same(save_model(name, tmp_path / name), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_types_and_ties(dtype: torch.dtype) -> None:
    same(QUICKSTART, dtype)
    model = whole_model(Checkpoint(QUICKSTART), dtype=dtype, device=CPU)
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


def test_generation_stops_where_the_folder_says() -> None:
    model = whole_model(Checkpoint(QUICKSTART), dtype=torch.float32, device=CPU)
    assert model.generation_config is not None
    stored = GenerationConfig.from_pretrained(QUICKSTART)
    assert model.generation_config.to_dict() == stored.to_dict()
