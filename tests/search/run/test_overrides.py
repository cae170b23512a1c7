"""Overrides of a configuration, `--set key=value`."""

from pathlib import Path

import pytest
import yaml

from paretopress.search.run.configuration import load_config
from tests.end_to_end.tiny import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def test_an_item_of_a_list_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        yaml.safe_dump(yaml.safe_load(QUICKSTART.read_text()) | {"budgets": [{"bits": 3}, {"bits": 4}]})
    )
    config = load_config(path, ["budgets.1.bits=3.5", "budgets.0={bits: 2.75}"])
    assert [budget.bits for budget in config.budgets] == [2.75, 3.5]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "budgets.first.bits=3",
            "--set budgets.first.bits: 'first' is not an index of a list of 3; count from 0",
        ),
        ("budgets.3.bits=3", "--set budgets.3.bits: '3' is not an index of a list of 3; count from 0"),
        ("name.first=a", "--set name.first: 'name' is a value, not a mapping; correct the key"),
        ("name", "--set 'name' has no value; write --set key=value"),
        ("name=[a", "--set 'name=[a': the value is not YAML; put it in quotes"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match="--set") as caught:
        load_config(QUICKSTART, [override])
    assert str(caught.value) == message
