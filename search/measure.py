"""Perplexity and divergence of one profile or one model folder, on the sequences of a configuration."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..evaluators.fitness import cross_entropy, kl_divergence, teacher_chunk
from ..evaluators.runner import BlockRunner
from ..evaluators.trial import Fidelity
from ..spaces.checkpoint import Checkpoint
from ..spaces.space import DENSE
from ..spaces.structure import find_structure
from .assembly import DTYPES, Assembly, assemble
from .configuration import RunConfig

Figures = dict[str, float | int]


def measure_profile(config: RunConfig, units: Mapping[str, str], databases: Path, data: str) -> Figures:
    """Divergence from the dense model, perplexity and costs of a profile; its levels must be built.

    Raises:
        ValueError: a level is not in the database, or the profile is of another space.
    """
    assembly = assemble(config, databases)
    if assembly.labels and not assembly.database.bytes:
        raise ValueError(
            f"{assembly.database.path} holds no levels of this configuration; make them with `paretopress build`"
        )
    profile = assembly.space.parse(units)
    assignments = [assembly.space.assignment(profile), assembly.space.assignment(DENSE)]
    values, losses = assembly.evaluator().measure(assignments, _everything(assembly, data))
    return {
        config.fitness.name: _mean(values[0]),
        "perplexity": math.exp(_mean(losses[0])),
        "dense perplexity": math.exp(_mean(losses[1])),
        **assembly.space.costs(profile),
    }


def measure_model(config: RunConfig, model: Path, data: str) -> Figures:
    """Divergence of a model folder from the configuration's model, and its perplexity.

    Raises:
        ValueError: the folder holds no model of this vocabulary.
    """
    assembly = assemble(config, Path())
    checkpoint = Checkpoint(str(model), trust_remote_code=config.trust_remote_code)
    structure = find_structure(checkpoint.skeleton())
    vocabulary = assembly.structure.ends.head.out_features
    if structure.ends.head.out_features != vocabulary:
        raise ValueError(
            f"{model} has {structure.ends.head.out_features} tokens, {config.model} has {vocabulary}; "
            "compare models with one tokenizer"
        )
    evaluation = assembly.config.evaluation
    student = BlockRunner(
        checkpoint,
        structure,
        device=torch.device(evaluation.device),
        dtype=DTYPES[evaluation.dtype],
        micro_batch=int(evaluation.micro_batch),
        length=config.data.length,
    )
    kl, loss = _compare(assembly, student, data)
    return {"kl": kl, "perplexity": math.exp(loss)}


@torch.inference_mode()
def _compare(assembly: Assembly, student: BlockRunner, data: str) -> tuple[float, float]:
    """Mean KL and cross-entropy over all positions but the last of each sequence."""
    size, teacher, fitness = student.micro_batch, assembly.runner, assembly.config.fitness
    tokens_NT = torch.from_numpy(assembly.data[data].tokens.astype("int64")).to(student.device)
    values: list[float] = []
    losses: list[float] = []
    for first in range(0, len(tokens_NT), size):
        tokens_BT = tokens_NT[first : first + size]
        padding = tokens_BT[:1].expand(size - len(tokens_BT), -1)
        both = [_last_states(runner, torch.cat([tokens_BT, padding])) for runner in (teacher, student)]
        for slot, tokens_T in enumerate(tokens_BT):
            taught = teacher_chunk(fitness, teacher.logits(both[0][slot, :-1]))
            log_probs_PV = student.logits(both[1][slot, :-1]).log_softmax(-1)
            values += kl_divergence(taught, log_probs_PV).tolist()
            losses += cross_entropy(log_probs_PV, tokens_T[1:]).tolist()
    return _mean(values), _mean(losses)


def _last_states(runner: BlockRunner, tokens_BT: Tensor) -> Tensor:
    states_BTD = runner.embed(tokens_BT)
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            states_BTD = loaded(states_BTD)
    return states_BTD


def _everything(assembly: Assembly, data: str) -> Fidelity:
    if data not in assembly.data:
        raise ValueError(f"data {data!r} is unknown; it is one of {', '.join(assembly.data)}")
    return Fidelity(0, 0, len(assembly.data[data]), assembly.config.data.length, data)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
