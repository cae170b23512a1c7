"""Models with level databases over all their linear layers, and what plain `transformers` makes of exports."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretopress.exporters.checkpoints.hf import export_dense
from paretopress.exporters.checkpoints.model_folder import WrittenModel
from paretopress.search.folder.front import Front, Point
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.run.configuration import RunConfig, load_config
from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import make_config, random_model, random_tokens

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart-model"
load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
LABELS = ("w3g16", "w4g16a", "s50", "2:4+w4g16")
ROUNDED = BuilderConfig(quantizer="rtn", pruner="magnitude", scales="minmax")

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "intermediate_size": 256,
}


class Case:
    """A model with a level database over all its linear layers."""

    def __init__(self, path: Path, databases: Path, labels: Sequence[str] = LABELS) -> None:
        self.path = path
        self.labels = labels
        self.model = DenseModel.open(path)
        self.checkpoint = self.model.checkpoint
        self.structure = self.model.structure
        self.database = LevelDatabase(databases / path.name, {"model": self.checkpoint.fingerprint})
        blocks = {f"block-{block.index}": block.linears for block in self.structure.blocks}
        ends = self.structure.ends
        for part, linears in {**blocks, "ends": ends.linears[:1] if ends.tied else ends.linears}.items():
            weights = {x.path: x.turn(self.checkpoint.tensor(f"{x.path}.weight")) for x in linears}
            levels = {path: build(weight, None, labels, config=ROUNDED) for path, weight in weights.items()}
            self.database.write(part, levels, {path: {} for path in levels})

    def assignment(self, dropped: Mapping[int, tuple[str, ...]]) -> dict[str, str]:
        """Levels in turn, then a dense layer, and the branches of `dropped`."""
        choices = (*self.labels, None)
        labels = {linear.path: choices[i % len(choices)] for i, linear in enumerate(self.structure.linears)}
        found = {path: label for path, label in labels.items() if label}
        for index, kinds in dropped.items():
            for branch in self.structure.blocks[index].branches:
                if branch.kind in kinds:
                    found |= {linear.path: "drop" for linear in branch.linears}
        return found

    def edited(self, assignment: Mapping[str, str]) -> PreTrainedModel:
        """The plain model with the weights of `assignment`; dropped branches have zeros in every parameter."""
        model: PreTrainedModel = load(self.path)
        for path, label in assignment.items():
            module = model.get_submodule(path)
            linear = next(
                x for x in (*self.structure.linears, *self.structure.ends.linears) if x.path == path
            )
            with torch.no_grad():
                if label == "drop":
                    for parameter in module.parameters():
                        parameter.zero_()
                else:
                    packed = self.database.load(path, label, torch.device("cpu"))
                    module.get_parameter("weight").copy_(linear.turn(packed.dense()))
        return model

    def export(self, assignment: Mapping[str, str], output: Path, **options: Any) -> WrittenModel:
        return export_dense(self.model, self.database, assignment, output, **options)


def logits(model: PreTrainedModel, vocabulary: int = 128) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=random_tokens(2) % vocabulary).logits
    return found


def reloaded(path: Path) -> PreTrainedModel:
    model: PreTrainedModel
    model, info = load(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


def finished_run(
    case: Case,
    folder: Path,
    units: Mapping[str, str],
    budgets: Sequence[str],
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A finished run as a search leaves it, over the levels of `case`, with the same profile for every budget."""
    database = LevelDatabase(folder / "databases" / case.database.fingerprint, case.database.recipe)
    shutil.copytree(case.database.path, database.path)
    figures: dict[str, Any] = {"heldout_kl": 0.5, "heldout_perplexity": 9.5, "costs": {"bits": 12}}
    run = RunFolder(folder / "run")
    with run:
        search = {"space": {"levels": list(case.labels)}, "budgets": [{"bits": 4.5}], **(config or {})}
        run.settle_config({"model": str(case.path), **search})
        fingerprints = {"model": case.checkpoint.fingerprint, "database": case.database.fingerprint}
        points = [Point(budget=name, method="dp", profile=dict(units), **figures) for name in budgets]
        run.write_front(Front(model=str(case.path), points=points, fingerprints=fingerprints))
    return run.path


def quickstart_config(length: int, heldout: int) -> RunConfig:
    """The quickstart's configuration on `heldout` tokens in sequences of `length`, with hardly any other text."""
    sets = {"data.length": length, "data.heldout.tokens": heldout, "evaluation.threads": 1}
    few = ("data.calibration.tokens", "data.validation.tokens", "builder.tokens", "archive_tokens")
    sets |= dict.fromkeys(few, 2 * length)
    return load_config(
        QUICKSTART.parent / "quickstart.yaml", [f"{key}={value}" for key, value in sets.items()]
    )


def half_model(name: str, path: Path, dtype: torch.dtype, **changes: object) -> Path:
    """A small random model stored in 16 bits."""
    model: Any = random_model(make_config(name, **{**_SIZES, **changes}))
    model.to(dtype).save_pretrained(path)
    return path
