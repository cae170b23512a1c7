"""The command that compares methods on landscapes."""

import pytest

from benchmarks.methods.landscapes import config_of, main
from paretopress.search.frontier.frontier import FrontierConfig


def test_a_method_is_a_name_or_settings() -> None:
    assert config_of("frontier") == FrontierConfig()
    assert config_of("{method: frontier, offspring: 0}") == FrontierConfig(offspring=0)


def test_the_command_prints_what_methods_find_by_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--units", "14", "--seeds", "0", "--methods", "frontier", "evolution", "--tokens", "1e5", "2e6"])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith(("frontier", "evolution"))]
    assert len(rows) == 4
    for row in rows:
        assert float(row[1]) >= float(row[2]) > 0
    assert float(rows[0][2]) < float(rows[0][1])
