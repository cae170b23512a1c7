"""Digests of the results of a checkout for fixed seeds, which show whether a change of the code altered any result.

    python -m benchmarks.same_results record OLD_CHECKOUT before.json
    python -m benchmarks.same_results record . after.json
    python -m benchmarks.same_results compare before.json after.json

`record` runs the command line of the checkout in a temporary folder: the quickstart, a short search by every method and
over every kind of space, sensitivities, a refit, and an export in every format. It takes about ten minutes on two CPU
cores. Digests cover profiles, values, costs, held-out figures, journals without their times, the searchers' final
states, and every file of every export. They leave out prose, times, versions and paths.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = Path(__file__).parents[1] / "configs" / "quickstart-model"
"""The quickstart model of this checkout, which is used for every checkout."""

_TEXT: dict[str, Any] = {
    "length": 128,
    "calibration": {"tokens": 8192},
    "validation": {"tokens": 3072},
    "heldout": {"tokens": 3072},
}
_BASE: dict[str, Any] = {
    "model": str(MODEL),
    "data": _TEXT,
    "space": {"levels": ["w2g128", "w3g128", "w4g128", "w6g128"]},
    "builder": {"quantizer": "rtn", "tokens": 4096},
    "evaluation": {"device": "cpu", "dtype": "float32", "threads": 1, "micro_batch": 4},
    "budgets": [{"bits": 2.75}, {"bits": 3.5}],
    "archive_tokens": 1024,
}
_SHORT: dict[str, Any] = {"survivors": [3, 1], "tokens": [256, 1024]}
_FRONTIER: dict[str, Any] = {
    "method": "frontier",
    "tokens": 512,
    "around": 512,
    "check": 512,
    "offspring": 4,
    "rounds": 2,
}

RUNS: dict[str, dict[str, Any]] = {
    "frontier": {"search": [_FRONTIER]},
    "evolution": {"search": [{"method": "evolution", "generations": 5, "offspring": 8, **_SHORT}]},
    "dp-kl": {"search": [{"method": "dp", "errors": "kl", "tokens": 256, "rounds": 2}]},
    "dp-nmse": {
        "search": [{"method": "dp", "errors": "nmse"}],
        "builder": {"quantizer": "gptq", "tokens": 4096},
    },
    "cmaes": {"search": [{"method": "optuna", "sampler": "cmaes", "trials": 24}]},
    "tpe": {"search": [{"method": "optuna", "sampler": "tpe", "trials": 24}]},
    "nsga2": {"search": [{"method": "optuna", "sampler": "nsga2", "trials": 24}]},
    "greedy": {"search": [{"method": "greedy", "tokens": 256}], "budgets": [{"bits": 5.8}]},
    "random": {"search": [{"method": "random", "samples": 24}]},
    "series": {
        "search": [{"method": "dp", "tokens": 256}, {"method": "evolution", "generations": 2, **_SHORT}]
    },
    "sparse": {
        "space": {"levels": ["s40", "s60", "s80", "2:4"]},
        "builder": {"pruner": "sparsegpt", "tokens": 4096},
        "budgets": [{"sparsity": 0.6}],
        "search": [_FRONTIER],
    },
    "drop": {"space": {"drop": "branches"}, "budgets": [{"dropped": 4}], "search": [_FRONTIER]},
    "joint": {
        "space": {"levels": ["w3g128a", "w4g128", "2:4+w4g128"], "drop": "branches"},
        "budgets": [{"bits": 3.5, "macs": 0.8}],
        "search": [_FRONTIER],
    },
    "packed": {
        "space": {
            "levels": ["w3g128", "w4g128", "w8g128"],
            "units": {"tie": "vllm"},
            "format": "compressed-tensors",
        },
        "budgets": [{"bytes": 2_900_000}],
        "search": [_FRONTIER],
    },
    "gguf": {
        "space": {"levels": ["q4_0", "q5_0", "q8_0"], "units": {"ends": True}, "format": "gguf"},
        "budgets": [{"bytes": 1_900_000}],
        "search": [_FRONTIER],
    },
}
"""Settings that the configuration of a run adds to the common part, by name of the run."""

EXPORTS = (
    ("frontier", "hf"),
    ("packed", "compressed-tensors"),
    ("drop", "nemotron-nas"),
    ("drop", "hf"),
    ("drop", "evopress"),
    ("gguf", "gguf"),
    ("gguf", "llama-quantize"),
    ("packed", "llm-compressor"),
    ("frontier", "evopress"),
    ("sparse", "hf"),
    ("dp-nmse", "hf"),
)
"""Run and export format; the run `dp-nmse` is refitted before its export."""

_TIMES = {"seconds", "dense_tokens_per_second"}
_OTHER = {"format_version", "name", "model", "versions", "files", "path"}


def record(checkout: Path, output: Path) -> None:
    """Run all searches and exports with the code of `checkout` and write their digests to `output`."""
    digests: dict[str, str] = {}
    folder = Path(tempfile.mkdtemp(prefix="same-results-"))
    try:
        for name, changes in RUNS.items():
            run = folder / name / "run"
            config = folder / f"{name}.yaml"
            config.write_text(json.dumps(_BASE | {"name": "run"} | changes))
            _command(checkout, "search", config, "--run", run)
            if name == "dp-nmse":
                _command(checkout, "refit", run)
            if name == "frontier":
                _command(checkout, "sensitivities", config, "--run", run, "--check", "--tokens", "512")
            digests |= {f"{name}/{key}": value for key, value in _run_digests(run)}
        for name, form in EXPORTS:
            target = folder / "exports" / f"{name}-{form}"
            options = ("--point", "1", "--format", form, "--no-measure", "--output", target)
            _command(checkout, "export", folder / name / "run", *options)
            digests |= {f"{target.name}/{key}": value for key, value in _export_digests(target)}
    finally:
        shutil.rmtree(folder)
    output.write_text(json.dumps(digests, indent=1) + "\n")
    print(f"{output}: {len(digests)} digests")


def compare(before: Path, after: Path) -> int:
    """Print the differences between two records, and return the exit code: 1 if there are any, else 0."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    for key in different:
        print(f"different: {key}" if key in old and key in new else f"only in one: {key}")
    print(f"{len(old.keys() & new.keys())} in both, {len(different)} different")
    return 1 if different else 0


def _command(checkout: Path, *arguments: str | Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "paretopress", *map(str, arguments)]
    answer = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{' '.join(command)} ended with {answer.returncode}: {answer.stderr.strip()}")
    print(f"{arguments[0]} {Path(arguments[1]).parent.name}/{Path(arguments[1]).name}", flush=True)


def _run_digests(run: Path) -> Iterator[tuple[str, str]]:
    front = json.loads((run / "front.json").read_text())
    for key in (
        "points",
        "baselines",
        "progress",
        "looks",
        "dense",
        "fingerprints",
        "weights",
        "evaluations",
        "tokens",
    ):
        yield f"front {key}", _digest(_plain(front.get(key)))
    yield "checkpoint", _digest(_plain(json.loads((run / "checkpoint.json").read_text())))
    yield "journal", _digest([_line(line) for line in (run / "journal.jsonl").read_text().splitlines()])
    for path in sorted(run.rglob("profiles/*.yaml")):
        text = [line for line in path.read_text().splitlines() if not line.startswith(("model:", "#"))]
        yield path.relative_to(run).as_posix(), _digest(text)
    for path in sorted((run / "sensitivities").glob("*.json")):
        yield path.relative_to(run).as_posix(), _digest(_plain(json.loads(path.read_text())))
    for path in (
        *sorted(run.parent.rglob("databases/*/*.safetensors")),
        *sorted(run.rglob("refits/*/*.safetensors")),
    ):
        yield path.relative_to(run.parent).as_posix(), _file_digest(path)


def _export_digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name == "paretopress.json":
            yield path.name, _digest(_plain(json.loads(path.read_text())))
        elif path.name == "config.json":
            config = json.loads(path.read_text())
            yield (
                path.name,
                _digest({key: value for key, value in config.items() if key != "transformers_version"}),
            )
        elif path.suffix not in (".md", ".py"):
            yield path.name, _file_digest(path)


def _line(line: str) -> Any:
    """Decode a line of the journal without its checksum and its seconds."""
    content = json.loads(line[9:])
    if isinstance(content, list):
        del content[9]
    return content


def _plain(value: Any) -> Any:
    """Return a JSON value without times, paths, names and versions."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in _TIMES | _OTHER}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", checkout, output]:
            record(Path(checkout), Path(output))
        case ["compare", before, after]:
            sys.exit(compare(Path(before), Path(after)))
        case _:
            sys.exit(__doc__)
