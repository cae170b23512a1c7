"""Measurement of perplexity and divergence of one profile or model, on the sequences of a configuration.

Shapes: N sequences, T positions of a sequence, P positions of a chunk, D hidden size, V vocabulary.
"""

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
"""Measured figures by name, for example `kl` in nats per token and `perplexity`."""


def measure_profile(
    config: RunConfig, units: Mapping[str, str], databases: Path, data: str, run: Path | None = None
) -> Figures:
    """Measure the fitness, perplexity and costs of a profile whose levels are built.

    Args:
        config: configuration that names model, text and levels.
        units: labels of the profile by unit name.
        databases: folder of the level databases.
        data: name of the data set, `calibration`, `validation` or `heldout`.
        run: folder of a run, or None. If the profile is a point of its front with a kept refit, the refitted levels are
            measured, as they would be exported. The figure `refitted layers` then gives the number of these layers.

    Raises:
        ValueError: a level is not in the database, the profile does not fit the space, or there is no such data set.
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
    """Open the objects for measuring a profile.

    Args:
        config: configuration that names model, text and levels.
        units: labels of the profile by unit name.
        databases: folder of the level databases.
        run: folder of the run whose refits count, or None.

    Returns:
        The objects of the run, the profile in their space, and its refitted levels if it has a kept refit.

    Raises:
        ValueError: the database has no levels, the profile does not fit the space, or the refit was made with another
            configuration or release.
    """
    assembly = assemble(config, databases)
    if assembly.labels and not assembly.database.bytes:
        raise ValueError(
            f"{assembly.database.path} holds no levels of this configuration; build them with `paretopress build`"
        )
    profile = assembly.space.parse(units)
    refitted = kept_refit(run, assembly.space.describe(profile)) if run else None
    if refitted and refitted.recipe != refit_recipe(assembly, assembly.space.assignment(profile)):
        raise ValueError(f"{refitted.path} was made with another configuration or release; refit {run} again")
    return assembly, profile, refitted


def measure_model(config: RunConfig, model: DenseModel, data: str) -> Figures:
    """Measure the divergence of another model from the dense model, and its perplexity.

    Args:
        config: configuration that names the dense model and the text.
        model: the model to measure.
        data: name of the data set, `calibration`, `validation` or `heldout`.

    Raises:
        ValueError: the model has another vocabulary than the dense model, or there is no such data set.
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
    """Measure the divergence and perplexity of a model that another program runs.

    Args:
        config: configuration that names the dense model and the text.
        name: path of the other model, for messages.
        vocabulary: number of tokens of the other model.
        logits: function that returns the other model's logits (T, V) for one sequence of tokens.
        data: name of the data set, `calibration`, `validation` or `heldout`.

    Raises:
        ValueError: the model has another vocabulary than the dense model, or there is no such data set.
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
            f"{name} has a vocabulary of {found} tokens, {assembly.config.model} of {known}; use one tokenizer"
        )


def _tokens(assembly: Assembly, data: str) -> Tensor:
    """Return the token ids of all sequences of a data set, (N, T), on the runner's device."""
    everything(assembly, data)
    return torch.from_numpy(assembly.data[data].tokens.astype("int64")).to(assembly.runner.device)


@torch.no_grad()
def _compare(assembly: Assembly, tokens_NT: Tensor, students: Iterable[Callable[[slice], Tensor]]) -> Figures:
    """Return divergence and perplexity over all positions except the last of each sequence.

    Args:
        assembly: objects of the run, with the dense model as the teacher.
        tokens_NT: token ids of the sequences, (N, T).
        students: function for each sequence that returns the student's logits (P, V) at a slice of positions.
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
    """Return the hidden states (N, T, D) after the last block; all sequences pass one block before the next is read."""
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
    """Return the fidelity that uses all sequences of a data set.

    Raises:
        ValueError: there is no data set of this name.
    """
    if data not in assembly.data:
        raise ValueError(f"data {data!r} is unknown; it is one of {', '.join(assembly.data)}")
    return Fidelity(0, 0, len(assembly.data[data]), assembly.config.data.length, data)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
