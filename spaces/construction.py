"""Construction of the space that is searched, from a model's structure and a user's choice of levels."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from .configuration import SpaceConfig
from .latency import Latency, nanoseconds, read_latency
from .levels.labels import kept, parse_label, stored_bits
from .levels.sizes import SIZE_RULES
from .minimums import with_minimums
from .model.dense_model import DenseModel
from .model.structure import Block, Branch, Linear, Structure, fused_groups
from .neighbours import link_neighbours
from .space import Space
from .unit import Level, Unit


def build_space(
    structure: Structure,
    config: SpaceConfig,
    *,
    parameters: Mapping[str, int],
    dense_bits: int,
    latency: Latency | None = None,
) -> Space:
    """Build the space over a model.

    The cost kinds are `bits` (stored bits of the linear weights), `bytes` (the whole model in `config.format`),
    `parameters` (linear weights that may be nonzero), `macs` (multiply-accumulates per token in linear
    layers), `branches` (number of kept branches, or of kept blocks with `drop: blocks`; only where dropping is
    allowed), `latency` (nanoseconds; only with a latency table) and one for each minimum count.

    Args:
        structure: blocks, branches and linear layers of the model.
        config: the user's choice of levels, of what may be dropped, and of the units.
        parameters: maps the name of every stored parameter of the model to its number of elements.
        dense_bits: number of bits of a stored dense weight.
        latency: contents of the latency table that `config.latency` names, or None.

    Raises:
        ValueError: a label is unknown, a pattern matches no layer, a layer is pinned to a level that does not fit it,
            no level of a layer fits it or is within its bounds, tied layers are pinned to different levels, the
            latency table lacks a value, a minimum count cannot be reached, or there is nothing to search.
    """
    space = _Construction(structure, config, parameters, dense_bits, latency).space()
    return with_minimums(space, config.at_least)


def space_of(model: DenseModel, config: SpaceConfig) -> Space:
    """Build the space over a model; a latency table is read from the file that the configuration names."""
    return build_space(
        model.structure,
        config,
        parameters={name: parameter.numel() for name, parameter in model.skeleton.named_parameters()},
        dense_bits=torch.finfo(model.dtype).bits,
        latency=read_latency(Path(config.latency)) if config.latency else None,
    )


class _Construction:
    """Construction of one space; `space` returns the space without the minimum counts.

    The arguments are those of `build_space`.
    """

    def __init__(
        self,
        structure: Structure,
        config: SpaceConfig,
        parameters: Mapping[str, int],
        dense_bits: int,
        latency: Latency | None,
    ) -> None:
        self.structure = structure
        self.config = config
        self.parameters = parameters
        self.dense_bits = dense_bits
        self.latency = latency
        self.fused = fused_groups(structure) if config.units.tie == "vllm" else ()

    def space(self) -> Space:
        self._check_patterns()
        units: list[Unit] = []
        fixed = self._zero()
        for block in self.structure.blocks:
            if self.config.drop == "blocks":
                self._add_block(units, block)
            else:
                for branch in block.branches:
                    self._add_branch(units, fixed, block, branch)
        if self.config.units.ends:
            inside, unsearched = self._linear_units(self._ends(), -1, "", None)
            units += inside
            for linear in unsearched:
                fixed = _add(fixed, self._costs((linear,), "dense"))
        if not any(len(unit.levels) > 1 for unit in units):
            raise ValueError(
                "there is nothing to search: give `space.levels`, `space.ladder` or `space.drop`"
            )
        self._add_rest(fixed)
        weights = sum(linear.out_features * linear.in_features for linear in self._counted())
        return Space(tuple(units), fixed, weights)

    def _ends(self) -> tuple[Linear, ...]:
        """Return the layers of embeddings and head; tied ones are a single layer."""
        ends = self.structure.ends
        return ends.linears[:1] if ends.tied else ends.linears

    def _counted(self) -> list[Linear]:
        """Return the linear layers whose weights count in averages such as bits per weight."""
        ends = self._ends() if self.config.units.ends else ()
        return [*self.structure.linears, *ends]

    def _check_patterns(self) -> None:
        """Refuse a pattern of the configuration that is no regular expression or matches no linear layer."""
        units = self.config.units
        paths = [linear.path for linear in self._counted()]
        for pattern in [*units.exclude, *units.pin, *units.min, *units.max]:
            _compile(pattern)
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(
                    f"units pattern {pattern!r} matches no linear layer; layers are named like {paths[0]!r}"
                )

    def _add_block(self, units: list[Unit], block: Block) -> None:
        """Add the unit of a droppable block and the units inside to `units`."""
        linears = block.linears
        extra = self._extra_bytes(f"{block.path}.", linears)
        name = f"blocks.{block.index}"
        self._add_droppable(units, self._zero(), name, block.index, "block", linears, extra)

    def _add_branch(self, units: list[Unit], fixed: dict[str, int], block: Block, branch: Branch) -> None:
        """Add the units of a branch to `units`, and to `fixed` the cost of its other layers if the branch must stay."""
        extra = sum(self._extra_bytes(f"{linear.path}.", (linear,)) for linear in branch.linears)
        name = f"blocks.{block.index}.{branch.kind}"
        self._add_droppable(units, fixed, name, block.index, branch.kind, branch.linears, extra)

    def _add_droppable(
        self,
        units: list[Unit],
        fixed: dict[str, int],
        name: str,
        block: int,
        kind: str,
        linears: tuple[Linear, ...],
        extra_bytes: int,
    ) -> None:
        """Add the units of a branch or block to `units`: first a unit that drops it, if it may be dropped.

        The layers that are not searched, and `extra_bytes`, cost the same in every profile that keeps the branch or
        block. Their cost is part of the level `keep` of its unit, or of `fixed` if it may not be dropped.

        Args:
            units: units of the space so far, changed in place.
            fixed: fixed cost of the space by cost kind, changed in place.
            name: name of the unit of the branch or block.
            block: index of the decoder block.
            kind: kind of the branch, or `block` for a whole block.
            linears: linear layers of the branch or block.
            extra_bytes: bytes of its parameters that are not weights of linear layers.
        """
        droppable = self.config.drop != "none"
        parent = len(units) if droppable else None
        inside, unsearched = self._linear_units(linears, block, kind, parent)
        kept_costs = self._zero()
        for linear in unsearched:
            kept_costs = _add(kept_costs, self._costs((linear,), "dense"))
        kept_costs["bytes"] += extra_bytes
        if not droppable:
            fixed.update(_add(fixed, kept_costs))
            units += inside
            return
        kept_costs["branches"] = 1
        if self.latency is not None:
            kept_costs["latency"] += round(1000 * self.latency.get(kind, {}).get("keep", 0))
        dropped = self._zero()
        if self.config.format == "hf" and kind != "block":
            # A Hugging Face checkpoint stores zeros for a branch that is dropped from a kept block.
            dropped["bytes"] = self._costs(linears, "dense")["bytes"] + extra_bytes
        levels = (Level("drop", dropped, (1,)), Level("keep", kept_costs, (0,)))
        paths = tuple(linear.path for linear in linears)
        units.append(Unit(name, paths, block, kind, levels))
        units += inside

    def _linear_units(
        self, linears: tuple[Linear, ...], block: int, kind: str, parent: int | None
    ) -> tuple[list[Unit], list[Linear]]:
        """Return the units of some linear layers, and the layers that are not searched because they stay dense."""
        units: list[Unit] = []
        unsearched: list[Linear] = []
        for group in self._groups(linears):
            levels = self._levels(group)
            if [level.label for level in levels] == ["dense"]:
                unsearched += group
                continue
            paths = tuple(linear.path for linear in group)
            units.append(Unit(",".join(paths), paths, block, kind, levels, parent))
        return units, unsearched

    def _groups(self, linears: tuple[Linear, ...]) -> list[tuple[Linear, ...]]:
        """Return the layers in groups that share a level; a layer that is not tied is a group by itself."""
        tied = {path: group for group in self.fused for path in group}
        found: dict[tuple[str, ...], list[Linear]] = {}
        for linear in linears:
            found.setdefault(tied.get(linear.path, (linear.path,)), []).append(linear)
        return [tuple(group) for group in found.values()]

    def _levels(self, group: tuple[Linear, ...]) -> tuple[Level, ...]:
        """Return the levels that fit every layer of a group and are within its bounds, in order of cost."""
        wanted = [label for label in self._shared(group) if all(_fits(label, linear) for linear in group)]
        wanted = self._within(wanted, group)
        priced = sorted(
            (tuple(c.values()), label, c) for label in wanted for c in [self._costs(group, label)]
        )
        return link_neighbours([(label, costs) for _, label, costs in priced])

    def _shared(self, group: tuple[Linear, ...]) -> list[str]:
        """Return the labels that every layer of the group may take; a pinned or excluded layer decides for all."""
        decided = {label for linear in group if (label := self._decided(linear)) is not None}
        if len(decided) > 1:
            raise ValueError(
                f"{', '.join(linear.path for linear in group)} are tied but pinned to {', '.join(sorted(decided))}; "
                "give them the same pin"
            )
        if decided:
            return list(decided)
        first, *others = (self._labels(linear) for linear in group)
        return [label for label in first if all(label in labels for labels in others)]

    def _decided(self, linear: Linear) -> str | None:
        """Return the one label of an excluded or pinned layer, None for other layers."""
        units = self.config.units
        if any(re.search(pattern, linear.path) for pattern in units.exclude):
            return "dense"
        for pattern, label in units.pin.items():
            if re.search(pattern, linear.path):
                if not _fits(label, linear):
                    raise ValueError(
                        f"pin {label!r} does not fit the {linear.in_features} inputs of {linear.path}; give another"
                    )
                return label
        return None

    def _labels(self, linear: Linear) -> tuple[str, ...]:
        """Return the labels that the configuration gives to a layer of this size; only `dense` if there are none."""
        ladder = self.config.ladder
        steps = ladder.labels(linear.in_features * linear.out_features) if ladder else ()
        return (*self.config.levels, *steps) or ("dense",)

    def _within(self, labels: list[str], group: tuple[Linear, ...]) -> list[str]:
        """Return the labels whose stored bits are within each `min` and `max` that matches a layer of the group."""

        def bits(label: str) -> int:
            return self._costs(group, label)["bits"]

        for bounds, allowed in ((self.config.units.min, int.__ge__), (self.config.units.max, int.__le__)):
            for pattern, bound in bounds.items():
                if len(labels) > 1 and any(re.search(pattern, linear.path) for linear in group):
                    labels = [label for label in labels if allowed(bits(label), bits(bound))]
                    if not labels:
                        raise ValueError(
                            f"no level of {group[0].path} is within the bound {pattern!r}: {bound!r}; change it"
                        )
        if not labels:
            remedy = "q4_0 or another type with blocks of 32" if self.config.format == "gguf" else "`dense`"
            raise ValueError(f"no level fits {group[0].path} ({group[0].in_features} inputs); add {remedy}")
        return labels

    def _costs(self, group: Iterable[Linear], label: str) -> dict[str, int]:
        """Return the total cost of some linear layers at one label, for every cost kind."""
        scheme, costs = parse_label(label), self._zero()
        for linear in group:
            shape = (linear.out_features, linear.in_features)
            weights = kept(scheme, shape[0] * shape[1])
            costs["bits"] += stored_bits(scheme, shape, self.dense_bits)
            costs["bytes"] += SIZE_RULES[self.config.format](scheme, shape, self.dense_bits)
            costs["parameters"] += weights
            costs["macs"] += weights
            if self.latency is not None:
                costs["latency"] += nanoseconds(self.latency, linear, label)
        return costs

    def _zero(self) -> dict[str, int]:
        """Return a cost of 0 for every cost kind of this space."""
        kinds = ["bits", "bytes", "parameters", "macs"]
        kinds += ["branches"] if self.config.drop != "none" else []
        kinds += ["latency"] if self.latency is not None else []
        return dict.fromkeys(kinds, 0)

    def _extra_bytes(self, prefix: str, linears: Iterable[Linear]) -> int:
        """Return the bytes of the parameters under `prefix` that are not the weights of `linears`."""
        weights = {f"{linear.path}.weight" for linear in linears}
        inside = (n for name, n in self.parameters.items() if name.startswith(prefix) and name not in weights)
        return self._plain_bytes(sum(inside))

    def _plain_bytes(self, count: int) -> int:
        """Return the bytes of parameters that are not weights of linear layers; llama.cpp stores them in 32 bits."""
        return count * (32 if self.config.format == "gguf" else self.dense_bits) // 8

    def _add_rest(self, fixed: dict[str, int]) -> None:
        """Add to `fixed` the bytes of every parameter that is not yet counted in a unit, branch or block."""
        counted = {f"{linear.path}.weight" for linear in self._counted()}
        prefixes = tuple(
            f"{block.path}." if self.config.drop == "blocks" else f"{linear.path}."
            for block in self.structure.blocks
            for branch in block.branches
            for linear in branch.linears
        )
        ends = {f"{linear.path}.weight" for linear in self.structure.ends.linears}
        for name, count in self.parameters.items():
            if name not in counted and not name.startswith(prefixes):
                fixed["bytes"] += count * self.dense_bits // 8 if name in ends else self._plain_bytes(count)


def _compile(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"units pattern {pattern!r} is not a regular expression ({error}); correct it"
        ) from error


def _add(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {kind: first[kind] + second[kind] for kind in first}


def _fits(label: str, linear: Linear) -> bool:
    return linear.in_features % parse_label(label).multiple == 0
