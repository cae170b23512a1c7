"""Exports of large models: memory that does not grow with the number of blocks, and files that have a limit."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from benchmarks.exports.export_memory import LEVELS, fixed, rounded
from benchmarks.shapes import SHAPES, make_model
from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.checkpoints.compressed_tensors import PackedLayout
from paretopress.exporters.checkpoints.hf import DenseLayout
from paretopress.exporters.checkpoints.model_folder import Layout, write_model
from paretopress.exporters.checkpoints.nemotron_nas import NemotronLayout
from paretopress.exporters.formats import FORMATS
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import find_structure
from tests.exporters.cases import load

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, Callable[[Winner], Layout]] = {
    "hf": lambda _: DenseLayout(),
    "compressed-tensors": lambda winner: PackedLayout(winner.checkpoint.dtype),
    "nemotron-nas": NemotronLayout,
}
SHARD = 300_000
"""A block of the tiny shape in bfloat16: PyTorch counts a mapped file as memory, so files must not grow with the model."""


def made(folder: Path, form: str, blocks: int) -> Winner:
    """A Llama of some blocks, all of them quantised."""
    make_model(folder / "model", replace(SHAPES["tiny"], blocks=blocks, tied=False).config)
    checkpoint = Checkpoint(folder / "model")
    structure = find_structure(checkpoint.skeleton())
    return fixed(
        checkpoint, structure, rounded(checkpoint, structure, folder / "levels", {LEVELS[form]}), form
    )


def write(winner: Winner, form: str, output: Path) -> None:
    if form in LAYOUTS:
        write_model(winner, LAYOUTS[form](winner), output, device="cpu", shard_bytes=SHARD)
    else:
        FORMATS[form].write(winner, output, False)


def peak(action: Callable[[], object]) -> int:
    """Most bytes of PyTorch's that were allocated or mapped at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        action()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("form", LEVELS)
def test_memory_does_not_grow_with_the_blocks(form: str, tmp_path: Path) -> None:
    if form == "gguf" and find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    peaks = []
    for blocks in (2, 3):
        folder = tmp_path / str(blocks)
        winner = made(folder, form, blocks)
        peaks.append(peak(lambda w=winner, f=folder: write(w, form, f / "out")))  # type: ignore[misc]
    block = sum(2 * linear.in_features * linear.out_features for linear in winner.structure.blocks[0].linears)
    assert peaks[0] > block
    assert peaks[1] - peaks[0] < block / 4


@pytest.mark.parametrize("form", LAYOUTS)
def test_files_are_limited_and_named_as_transformers_names_them(form: str, tmp_path: Path) -> None:
    winner, output = made(tmp_path, form, 4), tmp_path / "out"
    write(winner, form, output)
    written = sorted(output.glob("*.safetensors"))
    count = len(written)
    assert count > 1
    assert [path.name for path in written] == [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]
    held = [load_file(path) for path in written]
    sizes = [[tensor.numel() * tensor.element_size() for tensor in tensors.values()] for tensors in held]
    assert all(sum(shard) <= SHARD or len(shard) == 1 for shard in sizes)
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        name: path.name for path, tensors in zip(written, held, strict=True) for name in tensors
    }
    assert index["metadata"]["total_size"] == sum(map(sum, sizes))
    load(winner.checkpoint.path).save_pretrained(tmp_path / "saved", max_shard_size=SHARD)
    theirs = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    pattern = r"model-\d{5}-of-\d{5}\.safetensors"
    assert all(re.fullmatch(pattern, name) for name in theirs["weight_map"].values())
    assert index.keys() == theirs.keys()
