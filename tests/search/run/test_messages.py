"""Remedies for unknown names."""

from paretopress.spaces.nearest import nearest


def test_the_nearest_name_stands_before_all_known() -> None:
    assert nearest("fischer", ["kl", "fisher"]) == "did you mean 'fisher'? known: fisher, kl"
    assert nearest("xyz", ["kl", "fisher"]) == "known: fisher, kl"


def test_long_lists_are_cut_but_all_of_them_looked_through() -> None:
    layers = [f"layers.{n:02}.q_proj" for n in range(32)]
    found = nearest("layers.31.q_prj", layers)
    assert found.startswith("did you mean 'layers.31.q_proj'? known: layers.00.q_proj, ")
    assert found.endswith(", layers.19.q_proj and 12 more")
