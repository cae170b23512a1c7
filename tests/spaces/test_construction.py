"""Spaces laid out over a hand-made structure with round numbers."""

import dataclasses
from itertools import pairwise
from typing import get_args

import pytest

from paretopress.spaces.budget import BudgetConfig, in_units, parse_bytes
from paretopress.spaces.configuration import LadderConfig, SpaceConfig, UnitsConfig
from paretopress.spaces.construction import build_space
from paretopress.spaces.levels.labels import parse_label, stored_bits
from paretopress.spaces.levels.sizes import SIZE_RULES
from paretopress.spaces.model.structure import Block, Branch, Ends, Linear, Structure
from paretopress.spaces.space import Space

HIDDEN, INNER, VOCABULARY = 128, 256, 50


def structure(blocks: int = 2) -> Structure:
    found = []
    for i in range(blocks):
        q, k, o = (Linear(f"h.{i}.attn.{name}", HIDDEN, HIDDEN) for name in "qko")
        up, down = Linear(f"h.{i}.mlp.up", HIDDEN, INNER), Linear(f"h.{i}.mlp.down", INNER, HIDDEN)
        attention = Branch("attention", (f"h.{i}.attn",), (q, k, o), ((q.path, k.path), (o.path,)), 2)
        mlp = Branch("mlp", (f"h.{i}.mlp",), (up, down), ((up.path,), (down.path,)), 0)
        found.append(Block(i, f"h.{i}", (attention, mlp)))
    embedding = Linear("embed", HIDDEN, VOCABULARY)
    return Structure("ToyForCausalLM", "h", tuple(found), 0, Ends(embedding, embedding, tied=True))


def parameters(model: Structure) -> dict[str, int]:
    found = {"embed.weight": VOCABULARY * HIDDEN, "norm.weight": HIDDEN}
    for block in model.blocks:
        found[f"{block.path}.norm.weight"] = HIDDEN
        for linear in block.linears:
            found[f"{linear.path}.weight"] = linear.in_features * linear.out_features
        found[f"{block.path}.mlp.down.bias"] = HIDDEN
    return found


def lay_out(config: SpaceConfig) -> Space:
    model = structure()
    return build_space(model, config, parameters=parameters(model), dense_bits=16)


LINEAR = 2 * (3 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
REST = VOCABULARY * HIDDEN + HIDDEN + 2 * HIDDEN + 2 * HIDDEN


def test_costs_count_everything_stored() -> None:
    space = lay_out(SpaceConfig(levels=("w4g128", "dense", "s50", "2:4")))
    assert space.weights == LINEAR
    dense = space.parse({unit.name: "dense" for unit in space.units})
    assert space.costs(dense) == {
        "bits": 16 * LINEAR,
        "bytes": 2 * (LINEAR + REST),
        "parameters": LINEAR,
        "macs": LINEAR,
    }
    quantised = space.parse({unit.name: "w4g128" for unit in space.units})
    assert space.cost(quantised, "bits") == 4 * LINEAR + 16 * LINEAR // 128
    assert space.cost(quantised, "bytes") == (4 * LINEAR + 16 * LINEAR // 128) // 8 + 2 * REST
    sparse = space.parse({unit.name: "s50" for unit in space.units})
    assert space.cost(sparse, "bits") == LINEAR + 8 * LINEAR
    assert space.cost(sparse, "macs") == LINEAR // 2


def test_evopress_three_bits_are_three_and_a_quarter() -> None:
    numel = 6_979_321_856
    assert numel % 4096 == 0
    assert stored_bits(parse_label("w3g128a"), (numel // 4096, 4096)) == numel * 13 // 4


def test_excluded_layers_stay_dense_and_count() -> None:
    units = UnitsConfig(exclude=(r"\.down$",))
    space = lay_out(SpaceConfig(levels=("w4g128",), units=units, drop="branches"))
    assert not any("down" in unit.name for unit in space.units)
    assert space.fixed["bits"] == 0
    kept = space.cost(space.extreme("bits", largest=True), "bits")
    down = 2 * HIDDEN * INNER
    assert kept == (LINEAR - down) * 4 + (LINEAR - down) * 16 // 128 + 16 * down


def test_pins_and_bounds_narrow_the_levels() -> None:
    units = UnitsConfig(pin={r"\.o$": "w8"}, min={"attn": "w3g128"}, max={"mlp": "w4g128"})
    space = lay_out(SpaceConfig(levels=("w2g128", "w3g128", "w4g128", "w6g128"), units=units))
    labels = {unit.name: tuple(unit.index) for unit in space.units}
    assert labels["h.0.attn.o"] == ("w8",)
    assert labels["h.0.attn.q"] == ("w3g128", "w4g128", "w6g128")
    assert labels["h.1.mlp.up"] == ("w2g128", "w3g128", "w4g128")


def test_tied_layers_are_one_unit() -> None:
    space = lay_out(SpaceConfig(levels=("w4g128", "w3g128"), units=UnitsConfig(tie="vllm")))
    assert space.units[0].modules == ("h.0.attn.q", "h.0.attn.k")
    profile = space.extreme("bits")
    assert space.assignment(profile)["h.1.attn.k"] == "w3g128"
    plain = lay_out(SpaceConfig(levels=("w4g128", "w3g128")))
    assert plain.key(plain.extreme("bits")) == space.key(profile)
    assert plain.cost(plain.extreme("bits"), "bits") == space.cost(profile, "bits")


def test_dropping_everything_leaves_what_is_not_in_a_block() -> None:
    space = lay_out(SpaceConfig(drop="blocks"))
    smallest = space.extreme("bytes")
    assert space.labels(smallest) == ("drop", "drop")
    assert space.cost(smallest, "bytes") == 2 * (VOCABULARY * HIDDEN + HIDDEN)
    assert space.cost(space.extreme("bytes", largest=True), "bytes") == 2 * (LINEAR + REST)
    branches = lay_out(SpaceConfig(drop="branches"))
    assert branches.cost(branches.extreme("branches", largest=True), "branches") == 4
    assert branches.cost(branches.extreme("bytes"), "bytes") == 2 * (REST - 2 * HIDDEN)


def test_ends_are_units_and_tied_ones_are_one() -> None:
    space = lay_out(SpaceConfig(levels=("w4g128", "w8g128"), units=UnitsConfig(ends=True)))
    assert space.units[-1].name == "embed"
    assert space.weights == LINEAR + VOCABULARY * HIDDEN
    saved = 2 * VOCABULARY * HIDDEN - VOCABULARY * HIDDEN * (4 * 128 + 16) // 128 // 8
    low = space.cost(space.extreme("bytes"), "bytes")
    assert lay_out(SpaceConfig(levels=("w4g128", "w8"))).fixed["bytes"] == 2 * REST
    assert low == 2 * REST + (4 * LINEAR + 16 * LINEAR // 128) // 8 - saved


def test_combined_levels_are_neighbours_along_one_axis() -> None:
    space = lay_out(SpaceConfig(levels=("w3g128", "w4g128", "2:4+w3g128", "2:4+w4g128", "dense")))
    unit = space.units[0]
    near = {level.label: {unit.levels[n].label for n in level.neighbours} for level in unit.levels}
    assert near["2:4+w3g128"] == {"2:4+w4g128", "w3g128"}
    assert near["dense"] == {"w4g128"}
    assert near["w4g128"] == {"w3g128", "dense", "2:4+w4g128"}


def test_the_ladder_has_equal_counts_across_shapes() -> None:
    ladder = LadderConfig(base=60, step=4000, levels=2)
    space = lay_out(SpaceConfig(ladder=ladder))
    counts = {unit.name: sorted(v.costs["parameters"] for v in unit.levels) for unit in space.units}
    for found in counts.values():
        assert {b - a for a, b in pairwise(found)} == {4000}
    assert len(counts["h.0.mlp.up"]) == 5
    limits = BudgetConfig(sparsity=0.6).limits(space)
    assert set(space.labels(space.uniform(limits))) <= {"s60"}


def test_latency_comes_from_the_table() -> None:
    table = {f"{INNER}x{HIDDEN}": {"w4g128": 2.5}, f"{HIDDEN}x{INNER}": {"w4g128": 1.0}}
    table |= {f"{HIDDEN}x{HIDDEN}": {"w4g128": 0.5}, "h.1.attn.q": {"w4g128": 0.75}}
    model = structure()
    config = SpaceConfig(levels=("w4g128",), drop="branches")
    space = build_space(model, config, parameters=parameters(model), dense_bits=16, latency=table)
    assert space.cost(space.extreme("latency", largest=True), "latency") == 2 * (2500 + 1000 + 1500) + 250
    with pytest.raises(ValueError, match="latency table has no 'w3g128' for h.0.attn.q or 128x128"):
        build_space(
            model, SpaceConfig(levels=("w3g128",)), parameters=parameters(model), dense_bits=16, latency=table
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SpaceConfig(), "there is nothing to search"),
        (SpaceConfig(levels=("w9",)), "level 'w9' is unknown"),
        (
            SpaceConfig(levels=("w4",), units=UnitsConfig(exclude=("qq",))),
            "units pattern 'qq' matches no linear",
        ),
        (SpaceConfig(levels=("3:5",)), r"no level fits h.0.attn.q \(128 inputs\)"),
        (
            SpaceConfig(levels=("w3", "w4"), units=UnitsConfig(pin={"q": "3:5"})),
            "pin '3:5' does not fit the 128 inputs of h.0.attn.q",
        ),
        (SpaceConfig(levels=("w3",), units=UnitsConfig(max={"q": "w2"})), "there is nothing to search"),
    ],
)
def test_bad_spaces_are_refused(config: SpaceConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lay_out(config)


def test_budgets_become_exact_limits() -> None:
    space = lay_out(SpaceConfig(levels=("w2g128", "w4g128"), drop="branches"))
    assert BudgetConfig(bits=3.25).limits(space) == {"bits": LINEAR * 13 // 4}
    assert BudgetConfig(sparsity=0.25, macs=0.5).limits(space) == {
        "parameters": LINEAR * 3 // 4,
        "macs": LINEAR // 2,
    }
    assert BudgetConfig(dropped=1).limits(space) == {"branches": 3}
    assert BudgetConfig(bytes="60KB").limits(space) == {"bytes": 60_000}
    assert in_units("bits", LINEAR * 13 // 4, space) == 3.25
    assert in_units("branches", 3, space) == 3
    with pytest.raises(
        ValueError, match=r"'bytes 1KB' is below the cheapest profile; bytes can be \d+ to \d+"
    ):
        BudgetConfig(bytes="1KB").limits(space)
    with pytest.raises(ValueError, match="needs the cost 'latency', which this space lacks"):
        BudgetConfig(latency=2).limits(space)
    with pytest.raises(ValueError, match="a budget needs a figure"):
        BudgetConfig()


def test_sizes_with_units() -> None:
    assert parse_bytes("4.2GB") == 4_200_000_000
    assert parse_bytes("1.5 MiB") == 3 * 2**19
    assert parse_bytes(77) == 77
    with pytest.raises(ValueError, match="size 'large' is not a number with a unit"):
        parse_bytes("large")


def test_size_rules() -> None:
    assert tuple(SIZE_RULES) == get_args(SpaceConfig.model_fields["format"].annotation)
    scheme, dense = parse_label("w3g128"), parse_label("dense")
    assert SIZE_RULES["compressed-tensors"](scheme, (10, 256), 16) == 10 * 24 * 4 + 10 * 2 * 2 + 16
    assert SIZE_RULES["compressed-tensors"](dense, (10, 256), 16) == 5120
    assert SIZE_RULES["hf"](scheme, (10, 256), 16) == 5120
    assert SIZE_RULES["packed"](scheme, (10, 256), 16) == 10 * 256 * 3 // 8 + 10 * 2 * 2


def test_an_end_that_is_not_searched_still_counts() -> None:
    model = structure()
    head = Linear("head", HIDDEN, VOCABULARY)
    model = dataclasses.replace(model, ends=Ends(model.ends.embedding, head, tied=False))
    sizes = parameters(model) | {"head.weight": VOCABULARY * HIDDEN}
    units = UnitsConfig(ends=True, exclude=("^head$",))
    space = build_space(
        model, SpaceConfig(levels=("w4g128", "dense"), units=units), parameters=sizes, dense_bits=16
    )
    dense = space.extreme("bytes", largest=True)
    assert space.cost(dense, "bytes") == 2 * (LINEAR + REST + VOCABULARY * HIDDEN)
    assert space.cost(dense, "bits") == 16 * space.weights


def test_a_pin_or_exclusion_decides_for_the_whole_tied_group() -> None:
    levels = ("w3g128", "w4g128")
    pinned = lay_out(SpaceConfig(levels=levels, units=UnitsConfig(tie="vllm", pin={r"\.k$": "w6g128"})))
    assert tuple(pinned.units[0].index) == ("w6g128",)
    excluded = lay_out(SpaceConfig(levels=levels, units=UnitsConfig(tie="vllm", exclude=(r"\.k$",))))
    assert not any(".q" in unit.name or ".k" in unit.name for unit in excluded.units)
    both = UnitsConfig(tie="vllm", pin={r"\.k$": "w6", r"\.q$": "w5"})
    with pytest.raises(
        ValueError, match="h.0.attn.q, h.0.attn.k are tied but pinned to w5, w6; give them the same pin"
    ):
        lay_out(SpaceConfig(levels=levels, units=both))


def test_sparse_survivors_take_16_bits_whatever_the_model_is_stored_in() -> None:
    model = structure()
    config = SpaceConfig(levels=("s50", "dense"))
    space = build_space(model, config, parameters=parameters(model), dense_bits=32)
    assert space.cost(space.extreme("bits"), "bits") == LINEAR + 8 * LINEAR
    assert space.cost(space.extreme("bits", largest=True), "bits") == 32 * LINEAR


def test_uniform_beside_pins_is_the_largest_level_that_fits_the_others() -> None:
    levels = ("w2g128", "w3g128", "w4g128", "w6g128")
    units = UnitsConfig(pin={r"\.down$": "w6g128"}, min={r"\.up$": "w3g128"})
    space = lay_out(SpaceConfig(levels=levels, units=units))
    for label in ("w3g128", "w4g128"):
        wanted = space.parse({u.name: label if label in u.index else "w6g128" for u in space.units})
        assert space.uniform({"bits": space.cost(wanted, "bits")}) == wanted
    cheap = space.parse({u.name: next(iter(u.index)) for u in space.units})
    assert space.labels(space.uniform({"bits": space.cost(cheap, "bits")})) == space.labels(cheap)


def test_a_dropped_branch_is_zeros_in_a_dense_checkpoint() -> None:
    space = lay_out(SpaceConfig(drop="branches", format="hf"))
    costs = {space.cost(space.extreme("branches", largest), "bytes") for largest in (False, True)}
    assert costs == {2 * (LINEAR + REST)}


def test_two_limits_that_single_extremes_miss_are_met() -> None:
    space = lay_out(SpaceConfig(levels=("w2g128", "2:4+w6g128")))
    limits = BudgetConfig(bits=3.2, macs=0.8).limits(space)
    assert space.fits(space.cheapest(limits), limits)
    assert space.fits(space.uniform(limits), limits)
    with pytest.raises(ValueError, match=r"no profile is within all of .* bits, .* macs; raise one of them"):
        BudgetConfig(bits=2.2, macs=0.6).limits(space)


def test_levels_and_patterns_that_yaml_or_python_misread() -> None:
    with pytest.raises(
        ValueError, match="level 124 is a number, and YAML reads 2:4 as 124; put the level in quotes"
    ):
        SpaceConfig.model_validate({"levels": [124]})
    with pytest.raises(ValueError, match=r"units pattern '\*x' is not a regular expression"):
        lay_out(SpaceConfig(levels=("w3", "w4"), units=UnitsConfig(exclude=("*x",))))
    with pytest.raises(ValueError, match="size 'inf' is not a number with a unit"):
        parse_bytes("inf")


def test_files_of_llama_cpp_hold_its_own_types_and_whole_blocks() -> None:
    known = {"levels": ["q4_k", "dense"], "format": "gguf"}
    SpaceConfig.model_validate(known | {"drop": "blocks"})
    with pytest.raises(
        ValueError, match=r"level 'w4' is not a type of llama.cpp, .*; give levels such as q4_k, or"
    ):
        SpaceConfig.model_validate(known | {"levels": ["q4_k", "w4"]})
    with pytest.raises(ValueError, match="level 'w8' is not a type of llama.cpp"):
        SpaceConfig.model_validate(known | {"units": {"pin": {"lm_head": "w8"}}})
    with pytest.raises(ValueError, match="a ladder's sparsity is not a type of llama.cpp"):
        SpaceConfig.model_validate(known | {"ladder": {"base": 50}})
    with pytest.raises(ValueError, match="does not work with `format: gguf`, .*; give `drop: blocks`"):
        SpaceConfig.model_validate(known | {"drop": "branches"})
