"""Every format with every family: written, which an export does only if it verifies itself, or refused with a reason.

docs/reference/formats.md has the same table, with the tests that look deeper into a cell.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.formats import FORMATS
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.profile_file import ProfileFile
from tests.exporters.cases import Case, half_model

pytestmark = pytest.mark.slow

_HEADS: dict[str, Any] = {"head_dim": 32}
_GEMMA: dict[str, Any] = {**_HEADS, "query_pre_attn_scalar": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Mistral": ("mistral", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", _HEADS),
    "Gemma 2": ("gemma2", _GEMMA),
    "Gemma 3": ("gemma3_text", _GEMMA),
    "Phi-3": ("phi3", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-Neo": ("gpt_neo", {"num_hidden_layers": 4, "attention_types": [[["global", "local"], 2]]}),
    "OPT": ("opt", {"ffn_dim": 256, "word_embed_proj_dim": 128}),
}
"""Family to the type of transformers and what differs from other small models."""

GGUF: dict[str, str] = {
    "GPT-Neo": "models of type 'gpt_neo' are not written as GGUF",
    "OPT": "models of type 'opt' are not written as GGUF",
}
"""Families that the format `gguf` refuses, and how its message begins; the others are written."""

REFUSED: dict[str, dict[str, str]] = {
    "hf": {},
    "compressed-tensors": {"GPT-2": "holds only torch.nn.Linear layers, not a Conv1D"},
    "nemotron-nas": dict.fromkeys(
        ("Gemma 2", "Gemma 3", "Phi-3", "GPT-2", "GPT-NeoX", "GPT-Neo", "OPT"),
        "nemotron-nas has code for Llama, Mistral, Qwen2 and Qwen3, and this is",
    ),
    "gguf": GGUF,
    "llama-quantize": {
        "GPT-Neo": "recipes for models of type 'gpt_neo' are not written",
        "OPT": "recipes for models of type 'opt' are not written",
    },
    "llm-compressor": {"GPT-2": "recipes of llm-compressor quantise only torch.nn.Linear layers"},
    "evopress": {},
}
"""Format to the families that it refuses, and what its message says; the others are written."""

LEVELS = dict.fromkeys(FORMATS, "w4g32") | {"gguf": "q4_0", "llama-quantize": "q4_0"}
"""Format to the level that every linear layer has."""
LLAMA_CPP = find_spec("llama_cpp") is not None
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"


@dataclass(frozen=True)
class Family:
    """One family's small model in bfloat16 with its levels."""

    name: str
    case: Case

    def winner(self, form: str) -> Winner:
        """Every linear layer at the level of the format."""
        labels = {linear.path: LEVELS[form] for linear in self.case.structure.linears}
        case = self.case
        return Winner(DenseModel(case.checkpoint, case.structure), case.database, labels, ProfileFile(labels))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name, changes = FAMILIES[request.param]
    path = half_model(name, tmp_path_factory.mktemp("models") / name, torch.bfloat16, **changes)
    labels = sorted({level for level in LEVELS.values() if LLAMA_CPP or level.startswith("w")})
    return Family(request.param, Case(path, tmp_path_factory.mktemp("levels"), labels))


@pytest.mark.parametrize("form", FORMATS)
def test_a_family_is_written_and_verified_or_refused(family: Family, form: str, tmp_path: Path) -> None:
    if form == "gguf" and not LLAMA_CPP:
        pytest.skip("llama-cpp-python is not installed")
    output, winner = tmp_path / "out", family.winner(form)
    if message := REFUSED[form].get(family.name):
        with pytest.raises(ValueError, match=message):
            FORMATS[form].write(winner, output, False)
        assert not output.exists()
    else:
        FORMATS[form].write(winner, output, False)
        record = json.loads((output / "paretopress.json").read_text())
        assert (record["format"], record["layers"]) == (form, winner.assignment)


def test_embedding_and_head_take_levels_too(family: Family, tmp_path: Path) -> None:
    """Files may name them otherwise than the model does, as those of GPT-NeoX name the head."""
    case = family.case
    ends = case.structure.ends
    labels = dict.fromkeys((linear.path for linear in ends.linears[: 1 if ends.tied else 2]), "w4g32")
    winner = Winner(DenseModel(case.checkpoint, case.structure), case.database, labels, ProfileFile(labels))
    FORMATS["hf"].write(winner, tmp_path / "out", False)
    written = Checkpoint(str(tmp_path / "out"))
    for path in labels:
        dense, found = (file.tensor(f"{path}.weight").float() for file in (case.checkpoint, written))
        assert not torch.equal(dense, found)


def test_the_document_has_this_table() -> None:
    lines = DOCUMENT.read_text().splitlines()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")
    ]
    head = next(row for row in rows if row[1:] == list(FORMATS))
    found = {row[0]: row[1:] for row in rows[rows.index(head) + 2 :][: len(FAMILIES)]}
    assert found == {
        name: ["refused" if name in REFUSED[form] else "written" for form in FORMATS] for name in FAMILIES
    }
