"""The names that `import paretopress` gives."""

import pytest

import paretopress


def test_every_public_name_is_there_and_others_are_refused() -> None:
    for name in paretopress.__all__:
        assert getattr(paretopress, name) is not None
    with pytest.raises(AttributeError, match="module 'paretopress' has no attribute 'searhc'"):
        _ = paretopress.searhc
