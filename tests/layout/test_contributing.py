"""The recipes of CONTRIBUTING.md, followed: what is added as they say can be searched with, exported and listed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Tiny
from tests.end_to_end.tiny import ROOT, save_tiny, write_text

pytestmark = pytest.mark.slow

METHOD = '''"""The search method `mine`: the uniform profile and nothing else."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..asking.calibration_sequences import Workload
from ..asking.method import MethodConfig, Task
from ..asking.turns import Request, Turns


class MineConfig(MethodConfig):
    """Settings of `mine`."""

    summary: ClassVar[str] = "the uniform profile and nothing else"

    method: Literal["mine"] = "mine"

    def build(self, task: Task) -> "MineSearcher":
        """Build the searcher for a task."""
        return MineSearcher(task.space, task.calibration, task.seed, [task.space.uniform(task.limits)])


class MineSearcher(Turns):
    """A searcher that measures the uniform profile."""

    def _next(self) -> list[Request]:
        return [] if self.archived else [(profile, self.calibration.archive) for profile in self.starts]

    def _learn(self, profiles: list[Any], fitness: list[float]) -> None:
        pass

    def _save(self) -> dict[str, Any]:
        return {}

    def _load(self, state: Mapping[str, Any]) -> None:
        pass

    def workload(self) -> Workload:
        """Return the work of the uniform profile."""
        return Workload().add(1, self.calibration.archive)
'''
FORMAT = '''"""The recipe `mine`: the labels of all layers as lines of text."""

from pathlib import Path

from ..artifact.appearing import appearing
from ..artifact.model_card import write_card
from ..artifact.record import write_record
from ..artifact.winner import Winner


def export_mine(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the recipe."""
    lines = [f"{layer} {label}" for layer, label in winner.assignment.items()]
    with appearing(output, winner.sources, overwrite) as folder:
        (folder / "layers.txt").write_text("\\n".join(lines))
        write_card(folder, winner, "Labels only.")
        write_record(folder, "mine", winner, {})
    return [f"{output}: {len(lines)} layers"]
'''
LEVEL = '''"""The encoding `sign`: the signs of the weights, and the mean magnitude of each row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .encoding import Encoding

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class SignEncoding(Encoding):
    """Signs of the weights, and a scale for each row."""

    def stored_bits(self, shape: tuple[int, int]) -> int:
        """Return one bit per weight and 16 per row."""
        return shape[0] * shape[1] + 16 * shape[0]

    def encode(
        self, weight_OI: "Tensor", hessian_II: "Tensor | None", dtype: "torch.dtype"
    ) -> "Mapping[str, Tensor]":
        """Compute the signs, packed into bytes, and the scales (O, 1)."""
        from .bits import pack

        signs = pack((weight_OI >= 0).flatten().byte(), 1)
        return {"signs": signs, "scales": weight_OI.abs().mean(1, keepdim=True).to(dtype)}

    def decode(self, tensors: "Mapping[str, Tensor]", shape: tuple[int, int]) -> "Tensor":
        """Compute sign times scale."""
        from .bits import unpack

        signs = unpack(tensors["signs"], 1, shape[0] * shape[1]).view(shape)
        return (2 * signs.float() - 1) * tensors["scales"].float()
'''
PRUNER = '''def first_inputs(weight_OI: Tensor, hessian_II: Tensor | None, sparsity: Sparsity) -> Tensor:
    """Return a mask (O, I) that keeps the last weights of each row."""
    scores = torch.arange(weight_OI.shape[1], device=weight_OI.device).float().expand_as(weight_OI)
    return magnitude(scores, None, sparsity)


@dataclass(frozen=True)
class Pruner:
'''
FITNESS = '''def twice_kl(teacher: TeacherChunk, log_probs_PV: Tensor) -> Tensor:
    """Return twice the KL divergence."""
    return 2 * kl_divergence(teacher, log_probs_PV)


def cross_entropy('''


class Copy:
    """A copy of the project that may be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        skipped = shutil.ignore_patterns("__pycache__")
        for room in ("spaces", "evaluators", "workers", "search", "exporters", "paretopress"):
            shutil.copytree(ROOT / room, folder / room, symlinks=True, ignore=skipped)

    def replace(self, path: str, *changes: tuple[str, str]) -> None:
        """Replace texts that a file holds once."""
        text = (self.folder / path).read_text()
        for old, new in changes:
            assert text.count(old) == 1, (path, old)
            text = text.replace(old, new)
        (self.folder / path).write_text(text)

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        """The exit code of a command, and what it said."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        command = [sys.executable, "-m", "paretopress", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=200
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    text = write_text(folder / "text.jsonl")
    return Tiny(save_tiny(folder / "model", text), text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A project with a method, a level, a pruner, a fitness and a format more."""
    copy = Copy(tmp_path_factory.mktemp("project"))
    (copy.folder / "search" / "methods" / "mine.py").write_text(METHOD)
    copy.replace(
        "search/run/method_registry.py",
        ("| RandomConfig,", "| RandomConfig | MineConfig,"),
        ("from ..methods.random", "from ..methods.mine import MineConfig\nfrom ..methods.random"),
    )
    (copy.folder / "spaces" / "levels" / "sign_encoding.py").write_text(LEVEL)
    copy.replace(
        "spaces/levels/encoding_registry.py",
        ("{**GGML_ENCODINGS}", '{**GGML_ENCODINGS, "sign": SignEncoding()}'),
        ("import GGML_ENCODINGS\n", "import GGML_ENCODINGS\nfrom .sign_encoding import SignEncoding\n"),
    )
    copy.replace(
        "spaces/levels/masks.py",
        ("@dataclass(frozen=True)\nclass Pruner:\n", PRUNER),
        (
            "PRUNERS: dict[str, Pruner | None] = {\n",
            'PRUNERS: dict[str, Pruner | None] = {\n    "first": Pruner(first_inputs, False),\n',
        ),
    )
    copy.replace("spaces/levels/builders.py", ('Literal["sparsegpt", ', 'Literal["sparsegpt", "first", '))
    copy.replace(
        "evaluators/fitness.py",
        ('Literal["kl", ', 'Literal["kl", "twice-kl", '),
        ('    "kl": kl_divergence,\n', '    "kl": kl_divergence,\n    "twice-kl": twice_kl,\n'),
        ("def cross_entropy(", FITNESS),
    )
    (copy.folder / "exporters" / "recipes" / "mine.py").write_text(FORMAT)
    copy.replace(
        "exporters/formats.py",
        (
            "_ALL = (\n",
            '_ALL = (\n    Format("mine", "labels only", ("recipes.mine", "export_mine"), False),\n',
        ),
    )
    return copy


def test_what_is_added_is_searched_with_and_exported(copy: Copy, tiny: Tiny) -> None:
    added = {
        "search": [{"method": "mine"}],
        "space": {"levels": ["sign", "w4g16", "2:4"]},
        "builder": {"pruner": "first", "quantizer": "rtn"},
        "budgets": [{"bits": 3.0}],
    }
    fronts = []
    for fitness in ("kl", "twice-kl"):
        config = tiny.config(copy.folder, **added, fitness={"name": fitness}, name=fitness)
        code, said = copy.run("search", config)
        assert code == 0, said
        fronts.append(json.loads((copy.folder / "runs" / fitness / "front.json").read_text()))
    assert fronts[0]["method"] == "mine"
    kl, twice = (front["points"][0] for front in fronts)
    assert set(kl["profile"].values()) == {"sign", "w4g16"}
    assert twice["fitness"] == pytest.approx(2 * kl["fitness"])
    code, said = copy.run("export", "runs/kl", "--budget", "3", "--format", "mine", "--output", "mine")
    assert code == 0, said
    lines = (copy.folder / "mine" / "layers.txt").read_text().splitlines()
    assert dict(line.split() for line in lines) == kl["profile"]
    code, said = copy.run("export", "runs/kl", "--budget", "3", "--output", "dense")
    assert code == 0, said


def test_what_is_added_is_listed(copy: Copy, tiny: Tiny) -> None:
    code, said = copy.run("export", "--help")
    assert (code, "mine: labels only" in " ".join(said.split())) == (0, True), said
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"search": [{"method": "min"}]}, "'mine'"),
        ({"fitness": {"name": "twice"}}, "'twice-kl'"),
        ({"builder": {"pruner": "last"}}, "'first'"),
        ({"space": {"levels": ["signs"]}}, "q4_0, sign"),
    ]
    for number, (changes, known) in enumerate(wrong):
        code, said = copy.run("search", tiny.config(copy.folder, **changes, name=f"wrong{number}"))
        assert (code, known in said) == (2, True), said
