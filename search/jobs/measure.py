"""Perplexity and divergence of one profile or one model folder, on the sequences of a configuration."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...evaluators.fitness import cross_entropy, kl_divergence, teacher_chunk
from ...evaluators.runner.runner import BlockRunner
from ...evaluators.trial import Fidelity
from ...spaces.model.dense_model import DenseModel
from ...spaces.space import DENSE, Profile
from ...spaces.storage.database import LevelDatabase
from ..run.assembly import Assembly, assemble
from ..run.configuration import RunConfig
from ..run.machine import DTYPES, devices_of
from .refitted import kept_refit, refit_recipe

Figures = dict[str, float | int]


def measure_profile(
    config: RunConfig, units: Mapping[str, str], databases: Path, data: str, run: Path | None = None
) -> Figures:
    """Divergence from the dense model, perplexity and costs of a profile; its levels must be built.

    With the folder of a run, a point of its front is measured with the weights that an export of it has: those of
    its refit where that was kept, which the figure `refitted layers` tells.

    Raises:
        ValueError: a level is not in the database, or the profile is of another space.
    """
    assembly, profile, refitted = open_profile(config, units, databases, run)
    assignments = [assembly.space.assignment(profile), assembly.space.assignment(DENSE)]
    values, losses = assembly.evaluator(refitted).measure(assignments, everything(assembly, data))
    return {
        **({"refitted layers": len(refitted.errors())} if refitted else {}),
        config.fitness.name: _mean(values[0]),
        "perplexity": math.exp(_mean(losses[0])),
        "dense perplexity": math.exp(_mean(losses[1])),
        **assembly.space.costs(profile),
    }


def open_profile(
    config: RunConfig, units: Mapping[str, str], databases: Path, run: Path | None = None
) -> tuple[Assembly, Profile, LevelDatabase | None]:
    """A profile's assembly, the profile, and the levels of its refit where that was kept.

    Raises:
        ValueError: a level is not in the database, or the profile is of another space.
    """
    assembly = assemble(config, databases)
    if assembly.labels and not assembly.database.bytes:
        raise ValueError(
            f"{assembly.database.path} holds no levels of this configuration; make them with `paretopress build`"
        )
    profile = assembly.space.parse(units)
    refitted = kept_refit(run, assembly.space.describe(profile)) if run else None
    if refitted and refitted.recipe != refit_recipe(assembly, assembly.space.assignment(profile)):
        raise ValueError(f"{refitted.path} was made with another configuration or release; refit {run} again")
    return assembly, profile, refitted


def measure_model(config: RunConfig, model: DenseModel, data: str) -> Figures:
    """Divergence of another model from the configuration's, and its perplexity.

    Raises:
        ValueError: it has another vocabulary.
    """
    assembly = assemble(config, Path())
    _check_vocabulary(assembly, model.checkpoint.path, model.structure.ends.head.out_features)
    evaluation = assembly.config.evaluation
    student = BlockRunner(
        model,
        device=devices_of(evaluation),
        dtype=DTYPES[evaluation.dtype],
        micro_batch=int(evaluation.micro_batch),
        length=config.data.length,
    )
    tokens_NT = _tokens(assembly, data)
    states = _last_states(student, tokens_NT)
    return _compare(assembly, tokens_NT, (partial(_logits, student, states_TD) for states_TD in states))


def measure_logits(
    config: RunConfig, name: Path, vocabulary: int, logits: Callable[[list[int]], Tensor], data: str
) -> Figures:
    """`measure_model` of what another program computes.

    Args:
        config: names the dense model and the text.
        name: of the other model, for messages.
        vocabulary: tokens that it has.
        logits: of every position of one sequence of tokens.
        data: calibration, validation or heldout.

    Raises:
        ValueError: it has another vocabulary.
    """
    assembly = assemble(config, Path())
    _check_vocabulary(assembly, name, vocabulary)
    tokens_NT = _tokens(assembly, data)
    found = (logits(tokens_T.tolist()).to(tokens_NT.device) for tokens_T in tokens_NT)
    return _compare(assembly, tokens_NT, (logits_TV.__getitem__ for logits_TV in found))


def _check_vocabulary(assembly: Assembly, name: Path, found: int) -> None:
    known = assembly.structure.ends.head.out_features
    if found != known:
        raise ValueError(
            f"{name} has {found} tokens, {assembly.config.model} has {known}; compare models with one tokenizer"
        )


def _tokens(assembly: Assembly, data: str) -> Tensor:
    everything(assembly, data)
    return torch.from_numpy(assembly.data[data].tokens.astype("int64")).to(assembly.runner.device)


@torch.no_grad()
def _compare(assembly: Assembly, tokens_NT: Tensor, students: Iterable[Callable[[slice], Tensor]]) -> Figures:
    """Divergence and perplexity over all positions but the last of each sequence.

    Args:
        assembly: has the dense model.
        tokens_NT: token ids of the sequences.
        students: for each of them what gives the logits of some positions.
    """
    teacher, chunk = assembly.runner, int(assembly.config.evaluation.chunk)
    values: list[float] = []
    losses: list[float] = []
    for taught_TD, learned, tokens_T in zip(
        _last_states(teacher, tokens_NT), students, tokens_NT, strict=True
    ):
        for start in range(0, len(tokens_T) - 1, chunk):
            piece = slice(start, min(start + chunk, len(tokens_T) - 1))
            taught = teacher_chunk(assembly.config.fitness, _logits(teacher, taught_TD, piece))
            log_probs_PV = learned(piece).log_softmax(-1)
            values += kl_divergence(taught, log_probs_PV).tolist()
            losses += cross_entropy(log_probs_PV, tokens_T[piece.start + 1 : piece.stop + 1]).tolist()
    return {"kl": _mean(values), "perplexity": math.exp(_mean(losses))}


@torch.no_grad()
def _last_states(runner: BlockRunner, tokens_NT: Tensor) -> Tensor:
    """Hidden states (N, T, D) after the last block, block by block: each is read once."""
    size = runner.micro_batch
    padding = tokens_NT[:1].expand(-len(tokens_NT) % size, -1)
    padded_NT = torch.cat([tokens_NT, padding])
    states = [runner.embed(padded_NT[i : i + size]) for i in range(0, len(padded_NT), size)]
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            states = loaded.run(states)
    return torch.cat(states)[: len(tokens_NT)]


def _logits(runner: BlockRunner, states_TD: Tensor, positions: slice) -> Tensor:
    return runner.logits(states_TD[positions])


def everything(assembly: Assembly, data: str) -> Fidelity:
    """All sequences of one set.

    Raises:
        ValueError: there is no such set.
    """
    if data not in assembly.data:
        raise ValueError(f"data {data!r} is unknown; it is one of {', '.join(assembly.data)}")
    return Fidelity(0, 0, len(assembly.data[data]), assembly.config.data.length, data)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
