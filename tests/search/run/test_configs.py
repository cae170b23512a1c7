"""The ready configurations are valid, and mistakes in them are answered well."""

from pathlib import Path

import pytest
import yaml

from paretopress.search.run.configuration import load_config

CONFIGS = Path(__file__).parents[3] / "configs"


RUNS = sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "cluster.yaml"})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_configuration_is_valid_and_says_how_to_use_it(path: Path) -> None:
    assert load_config(path).name == path.stem
    assert f"paretopress search configs/{path.name}" in path.read_text()
    assert load_config(path, ["model=elsewhere"]).model == "elsewhere"


def write(tmp_path: Path, **changes: object) -> Path:
    content = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text()) | changes
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serch": 1}, r"serch: unknown key 'serch'; did you mean 'search'\? known: archive_tokens, budgets"),
        ({"data": {"lenght": 4}}, r"data.lenght: unknown key 'lenght'; did you mean 'length'\?"),
        ({"search": {"method": "dp", "token": 4}}, r"unknown key 'token'; did you mean 'tokens'\?"),
        ({"search": {"method": "evolve"}}, "search.0: .*'evolve'"),
        ({"budgets": {"bit": 3}}, r"unknown key 'bit'; did you mean 'bits'\?"),
        ({"budgets": []}, "budgets: "),
        ({"space": {"levels": ["w4"], "units": {"tie": "all"}}}, "space.units.tie: "),
        ({"workers": {"kind": "ray", "gpuz": 1}}, r"workers.gpuz: unknown key 'gpuz'; did you mean 'gpus'\?"),
        ({"workers": "rey"}, r"workers: unknown kind 'rey'; did you mean 'ray'\? known: local, ray"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        load_config(write(tmp_path, **changes))
    assert "\n" not in str(found.value)


def test_overrides_reach_inside(tmp_path: Path) -> None:
    path = write(tmp_path)
    config = load_config(path, ["data.length=256", "budgets={bits: 4}", "space.units.tie=vllm"])
    assert (config.data.length, config.budgets[0].bits, config.space.units.tie) == (256, 4.0, "vllm")
    with pytest.raises(ValueError, match="--set 'seed' has no value; write --set key=value"):
        load_config(path, ["seed"])
    with pytest.raises(ValueError, match="'archive_tokens' is a value, not a mapping"):
        load_config(path, ["archive_tokens.inner=1"])


@pytest.mark.parametrize(
    ("workers", "overrides", "kind", "number"),
    [
        (None, [], "local", None),
        (None, ["workers=local"], "local", None),
        ("ray", ["workers.number=2"], "ray", 2),
        (None, ["workers=ray", "workers.number=2"], "ray", 2),
        ({"kind": "ray", "number": 2}, ["workers=ray"], "ray", 2),
        ({"kind": "ray", "number": 2}, ["workers=local"], "local", None),
    ],
)
def test_workers_are_named_or_described(
    tmp_path: Path, workers: object, overrides: list[str], kind: str, number: int | None
) -> None:
    changes = {} if workers is None else {"workers": workers}
    found = load_config(write(tmp_path, **changes), overrides).workers
    assert found.kind == kind
    assert getattr(found, "number", None) == number


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration at .*ready ones are in configs/"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="is not a YAML mapping"):
        load_config(tmp_path / "list.yaml")
