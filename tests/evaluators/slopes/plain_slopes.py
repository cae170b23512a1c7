"""Slopes by definition: hooks on the whole plain model in float64, and one backward pass through all of it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from paretopress.evaluators.fitness import FitnessConfig
from paretopress.evaluators.slopes.batches import Batch
from paretopress.evaluators.slopes.slope_trial import Slopes
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import Structure, find_structure
from paretopress.spaces.space import Profile, Space
from paretopress.spaces.storage.database import LevelDatabase
from tests.evaluators.runner.test_runner import BRANCHES, zeroed

load_plain: Callable[..., nn.Module] = AutoModelForCausalLM.from_pretrained


@cache
def _loaded(model: Path) -> tuple[nn.Module, Structure]:
    return load_plain(model, dtype=torch.float64), find_structure(Checkpoint(model).skeleton())


def weight_of(model: Path, database: LevelDatabase, path: str, label: str) -> Tensor:
    """A layer's weight (out, in) at a level."""
    if label != "dense":
        return database.load(path, label, torch.device("cpu")).dense().double()
    plain, structure = _loaded(model)
    linear = next(x for x in (*structure.linears, *structure.ends.linears) if x.path == path)
    return linear.turn(plain.get_parameter(f"{path}.weight").detach())


@dataclass
class Plain:
    """One run of one model.

    Attributes:
        logits: (N, T, V).
        layers: inputs and outputs of each linear layer of a block and of the head, by path.
        blocks: outputs of the blocks.
        weights: of each linear layer (out, in), by path.
        entering: what enters the first block.
    """

    logits: Tensor
    layers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    blocks: list[Tensor] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    entering: Tensor = field(default_factory=lambda: torch.empty(0))


def run(model: Path, database: LevelDatabase, assignment: Mapping[str, str], tokens_NT: Tensor) -> Plain:
    """The model that `assignment` builds, with a graph through all of it."""
    dense, structure = _loaded(model)
    plain, found = copy.deepcopy(dense), Plain(torch.empty(0))

    def keep_layer(path: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def keep(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            found.layers[path] = (args[0], output)

        return keep

    def keep_block(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.blocks.append(output if isinstance(output, Tensor) else output[0])

    def keep_entering(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.entering = args[0] if args else kwargs["hidden_states"]

    ends = structure.ends
    for end in ends.linears:
        source = ends.embedding.path if ends.tied else end.path
        found.weights[end.path] = weight_of(model, database, source, assignment.get(source, "dense"))
        plain.get_parameter(f"{end.path}.weight").data = found.weights[end.path]
    plain.get_submodule(ends.head.path).register_forward_hook(keep_layer(ends.head.path))
    plain.get_submodule(structure.blocks[0].path).register_forward_pre_hook(keep_entering, with_kwargs=True)
    for block in structure.blocks:
        for linear in block.linears:
            label = assignment.get(linear.path, "dense")
            weight = weight_of(model, database, linear.path, label if label != "drop" else "dense")
            plain.get_parameter(f"{linear.path}.weight").data = linear.turn(weight)
            found.weights[linear.path] = weight
            plain.get_submodule(linear.path).register_forward_hook(keep_layer(linear.path))
        for branch in block.branches:
            if all(assignment.get(linear.path) == "drop" for linear in branch.linears):
                child = BRANCHES.get(model.name, ("self_attn", "mlp"))[branch.kind == "mlp"]
                plain.get_submodule(f"{block.path}.{child}").register_forward_hook(zeroed)
        plain.get_submodule(block.path).register_forward_hook(keep_block)
    found.logits = plain(input_ids=tokens_NT, use_cache=False).logits
    return found


@dataclass
class Gradients:
    """Of one sum, by the outputs of the blocks and of the layers, and by what enters the first block."""

    blocks: Sequence[Tensor]
    layers: Mapping[str, Tensor]
    entering: Tensor


def plain_slopes(
    model: Path,
    space: Space,
    database: LevelDatabase,
    profile: Profile,
    batches: Sequence[Batch],
    fitness: FitnessConfig,
) -> Slopes:
    """What `level_slopes` is to give; every sequence of every batch counts."""
    tokens_NT = torch.cat([batch.tokens_BT for batch in batches])
    ends, assignment = _loaded(model)[1].ends, space.assignment(profile)
    base = run(model, database, assignment, tokens_NT)
    dense = run(model, database, {}, tokens_NT).logits[:, :-1].detach().log_softmax(-1)
    log_probs = base.logits[:, :-1].log_softmax(-1)
    values = fitness_values(fitness, dense, log_probs, tokens_NT)
    likelihood = log_probs.gather(-1, drawn_tokens(log_probs, batches)[..., None])
    fit, likely = _gradients(base, values.sum()), _gradients(base, likelihood.sum())
    first: dict[str, dict[str, float]] = {unit.name: {} for unit in space.units}
    second: dict[str, dict[str, float]] = {unit.name: {} for unit in space.units}

    def add(unit: str, label: str, fit_NTO: Tensor, likely_NTO: Tensor, change_NTO: Tensor) -> None:
        for row, change in (
            (first[unit], (fit_NTO * change_NTO).sum()),
            (second[unit], (likely_NTO * change_NTO).sum(-1).square().sum() / 2),
        ):
            row[label] = row.get(label, 0.0) + float(change) / values.numel()

    for u, unit in enumerate(space.units):
        here = space.level(profile, u).label if profile else "keep" if unit.droppable else "dense"
        if profile and not space.active(profile, u):
            continue
        for i, level in enumerate(unit.levels):
            if level.label == here:
                continue
            if unit.droppable:
                drop = dict.fromkeys(unit.modules, "drop")
                moved = space.assignment((*profile[:u], i, *profile[u + 1 :])) if profile else drop
                other = run(model, database, moved, tokens_NT)
                change = (other.blocks[unit.block] - base.blocks[unit.block]).detach()
                add(unit.name, level.label, fit.blocks[unit.block], likely.blocks[unit.block], change)
            for path in () if unit.droppable else unit.modules:
                if path == ends.embedding.path:
                    other = run(model, database, assignment | {path: level.label}, tokens_NT)
                    change = (other.entering - base.entering).detach()
                    add(unit.name, level.label, fit.entering, likely.entering, change)
                    if not ends.tied:
                        continue
                weights = weight_of(model, database, path, level.label) - base.weights[path]
                layer = ends.head.path if path == ends.embedding.path else path
                change = base.layers[layer][0].detach() @ weights.T
                add(unit.name, level.label, fit.layers[layer], likely.layers[layer], change)
    return Slopes(first, second)


def fitness_values(fitness: FitnessConfig, dense: Tensor, log_probs: Tensor, tokens_NT: Tensor) -> Tensor:
    """The fitness at every position but the last, (N, T - 1), from log-probabilities."""
    if fitness.name == "cross-entropy":
        return -log_probs.gather(-1, tokens_NT[:, 1:, None]).squeeze(-1)
    if fitness.name == "topk-kl":
        top = dense.topk(fitness.k, -1).indices
        dense, log_probs = _with_rest(dense, top), _with_rest(log_probs, top)
    return (dense.exp() * (dense - log_probs)).sum(-1)


def _with_rest(log_probs: Tensor, top: Tensor) -> Tensor:
    """Log-probabilities of some tokens, and of all others as one."""
    kept = log_probs.gather(-1, top)
    rest = log_probs.exp().sum(-1, keepdim=True) - kept.exp().sum(-1, keepdim=True)
    return torch.cat([kept, rest.log()], -1)


def drawn_tokens(log_probs: Tensor, batches: Sequence[Batch]) -> Tensor:
    """A token at every position (N, T - 1), by the generator of its batch."""
    rows = iter(log_probs.detach().exp().numpy())
    found = []
    for batch in batches:
        rng = np.random.default_rng(batch.seed)
        for _ in batch.tokens_BT:
            probs = next(rows)
            draws = rng.random(len(probs), np.float32)
            found.append([int(np.searchsorted(np.cumsum(p), u)) for p, u in zip(probs, draws, strict=True)])
    return torch.tensor(found)


def _gradients(plain: Plain, total: Tensor) -> Gradients:
    outputs = [plain.entering, *plain.blocks, *(output for _, output in plain.layers.values())]
    found = torch.autograd.grad(total, outputs, retain_graph=True, allow_unused=True)
    entering, *full = [
        torch.zeros_like(output) if gradient is None else gradient
        for gradient, output in zip(found, outputs, strict=True)
    ]
    count = len(plain.blocks)
    return Gradients(full[:count], dict(zip(plain.layers, full[count:], strict=True)), entering)
