"""The commands of the tutorial and of the how-to pages, as a reader types them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.tiny import ROOT, subprocess_environment, tiny_config, write_text
from tests.tasks import write_task


def blocks(page: str) -> list[str]:
    """The commands of a page, without those that install packages."""
    found = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(r"^pip install [^&\n]*(&& )?", "", block, flags=re.MULTILINE) for block in found]


def run(block: str, folder: Path) -> None:
    environment = subprocess_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_tutorial_works(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = blocks("tutorial.md")
    assert len(commands) >= 5
    for block in commands:
        run(block, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    report = (tmp_path / "runs" / "quickstart" / "report.html").read_text()
    assert "refit" in report


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_how_to_pages_works(tmp_path: Path) -> None:
    """On a small model, with configurations of the same names that take a few seconds."""
    pytest.importorskip("ray")
    pytest.importorskip("llama_cpp")
    pytest.importorskip("lm_eval")
    text = write_text(tmp_path / "text.jsonl")
    model = tmp_path / "DIR"
    model.symlink_to(ROOT / "configs" / "quickstart-model")
    write_task(tmp_path, "FILE")
    budgets = [{"bits": 3.25}, {"bits": 4.25}]
    levels = {"levels": ["w2g16", "w3g16", "w4g16", "w6g16"], "units": {"tie": "vllm"}}
    configs = {
        "bits": {"space": levels, "budgets": budgets},
        "quickstart": {"space": levels, "budgets": budgets},
        "gguf": {"space": {"levels": ["q4_0", "q5_0", "q8_0"], "format": "gguf"}, "budgets": budgets},
    }
    (tmp_path / "configs").mkdir()
    for name, changes in configs.items():
        content = tiny_config(model, text, name=name, **changes)
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    run("paretopress search configs/quickstart.yaml", tmp_path)
    commands = [
        block
        for page in ("cluster", "export", "levels-and-budgets", "memory", "tasks", "text")
        for block in blocks(f"how-to/{page}.md")
    ]
    assert len(commands) >= 7
    for number, block in enumerate(commands):
        run(block.replace("--output model", f"--output model-{number}"), tmp_path)
