"""What travels, what stays, and what a job finds."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paretopress.evaluators.text.sources import documents
from paretopress.parcel import copy_package, pack, unpack
from paretopress.search.run.configuration import RunConfig, parse_config

ROOT = Path(__file__).parents[2]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A configuration in the working directory that names files of every kind."""
    here = tmp_path / "here"
    for name, text in {
        "llama/config.json": "{}",
        "llama/weights/model.safetensors": "w" * 1000,
        "llama/.git/HEAD": "hidden",
        "table.yaml": "32x32: {w2g16: 1.0}",
        "runs/llama/front.json": "{}",
        "runs/llama/journal.jsonl": "long",
        "texts/b.txt": "second",
        "texts/a.txt": "first",
        "texts/deep/c.jsonl": '{"text": "third"}\n',
        "valid.txt": "validation",
    }.items():
        write(here / name, text)
    monkeypatch.chdir(here)
    return {
        "model": "llama",
        "name": "mine",
        "data": {
            "source": "texts/**/*.*",
            "validation": {"source": "valid.txt", "tokens": 4096},
            "heldout": {"source": "stdlib", "tokens": 4096},
        },
        "space": {"levels": ["w2g16"], "latency": "table.yaml"},
        "budgets": [{"bits": 4}],
        "start_from": "runs/llama",
    }


def config_of(content: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(content)


def send(config: RunConfig, tmp_path: Path, run: Path, name: str = "parcel") -> RunConfig:
    """What the job has of a configuration."""
    (tmp_path / name).mkdir()
    pack(config, tmp_path / name, 10_000)
    return parse_config(unpack(tmp_path / name / "mine.yaml", run), "job")


def test_a_job_finds_what_the_configuration_named(content: dict[str, Any], tmp_path: Path) -> None:
    config, run = config_of(content), tmp_path / "there" / "runs" / "mine"
    found = send(config, tmp_path, run)
    model = Path(found.model)
    assert model.parts[:-3] == (run / "inputs").parts
    assert model.parts[-2:] == ("model", "llama")
    assert sorted(str(p.relative_to(model)) for p in model.rglob("*") if p.is_file()) == [
        "config.json",
        "weights/model.safetensors",
    ]
    assert found.space.latency is not None
    assert Path(found.space.latency).read_text() == "32x32: {w2g16: 1.0}"
    assert found.start_from is not None
    assert [path.name for path in Path(found.start_from).iterdir()] == ["front.json"]
    sources = [s.source for s in (found.data.validation, found.data.heldout) if s.source]
    assert list(documents(found.data.source)) == list(documents(config.data.source)) != []
    assert list(documents(sources[0])) == ["validation"]
    assert sources[1].source == "stdlib"
    assert found.workers.kind == "ray"
    kept = {"model", "data", "space", "start_from", "workers"}
    assert found.model_dump(exclude=kept) == config.model_dump(exclude=kept)


def test_what_is_sent_again_is_kept_once_and_what_differs_apart(
    content: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "mine"
    (run / "inputs").mkdir(parents=True)
    (run / "inputs" / "mine.txt").write_text("not ours")
    first = send(config_of(content), tmp_path, run)
    weights = Path(first.model) / "weights" / "model.safetensors"
    before = weights.read_text(), weights.stat().st_ino
    assert send(config_of(content), tmp_path, run, "again") == first
    Path("llama/weights/model.safetensors").write_text("v" * 1000)
    Path("texts/b.txt").unlink()
    other = send(config_of(content), tmp_path, run, "other")
    assert (Path(other.model) / "weights" / "model.safetensors").read_text() == "v" * 1000
    assert list(documents(other.data.source)) == ["first", "third"]
    assert (weights.read_text(), weights.stat().st_ino) == before
    assert (run / "inputs" / "mine.txt").read_text() == "not ours"


def test_what_is_too_big_or_elsewhere_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "parcel").mkdir()
    content["data"]["source"] = "hf:org/texts"
    content["workers"] = "local"
    parcel = pack(config_of(content), tmp_path / "parcel", 900)
    assert parcel.stays == [
        "data.source.source hf:org/texts",
        f"model {Path.cwd() / 'llama'} (0 MB, too large to send)",
    ]
    assert sorted(parcel.travels) == ["runs/llama", "table.yaml", "valid.txt"]
    job = parse_config(unpack(tmp_path / "parcel" / "mine.yaml", tmp_path / "run"), "job")
    assert job.model == str(Path.cwd() / "llama")
    assert job.data.source.source == "hf:org/texts"
    assert job.workers.kind == "local"
    content["model"] = "org/model-8b"
    (tmp_path / "hub").mkdir()
    assert "model org/model-8b" in pack(config_of(content), tmp_path / "hub", 900).stays


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"start_from": "runs/none"}, "start_from 'runs/none'"),
        ({"data": {"source": "none/*.txt"}}, "data.source.source"),
    ],
)
def test_what_is_nowhere_is_refused(
    change: dict[str, Any], place: str, content: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=f"{place}.* is not on this machine; correct it, or give an absolute path"
    ):
        pack(config_of(content | change), tmp_path, 900)


@pytest.mark.parametrize("installed", [False, True])
def test_the_package_is_copied_from_a_checkout_and_from_an_installation(
    installed: bool, tmp_path: Path
) -> None:
    copied = copy_package(tmp_path)
    if installed:  # what is there now holds no link, like an installation
        program = "import sys; from pathlib import Path; from paretopress.parcel import copy_package; "
        program += "copy_package(Path(sys.argv[1]))"
        (tmp_path / "second").mkdir()
        subprocess.run([sys.executable, "-c", program, "second"], cwd=tmp_path, check=True)
        copied = tmp_path / "second" / "paretopress"
    names = {str(p.relative_to(copied)) for p in copied.rglob("*") if p.is_file()}
    here = {p for p in (ROOT / "paretopress").rglob("*") if "__pycache__" not in p.parts}
    rooms = {
        p
        for room in ("spaces", "evaluators", "workers", "search", "exporters")
        for p in (ROOT / room).rglob("*.py")
    }
    wanted = {str(p.relative_to(ROOT / "paretopress")) for p in here if p.is_file()} | {
        str(p.relative_to(ROOT)) for p in rooms
    }
    assert {name for name in names if "__pycache__" not in name} == wanted
    assert not [p for p in copied.rglob("*") if p.is_symlink()]
