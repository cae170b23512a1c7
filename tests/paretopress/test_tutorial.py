"""The tutorial's own commands, one after the other, as a reader types them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.tiny import ROOT, subprocess_environment


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_tutorial_works(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = subprocess_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        if block.startswith("pip install"):
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "model" / "model.safetensors").is_file()
    report = (tmp_path / "runs" / "quickstart" / "report.html").read_text()
    assert "refit" in report
