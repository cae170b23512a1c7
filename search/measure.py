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
from .assembly import Assembly, assemble
from .configuration import RunConfig
from .machine import DTYPES, devices_of
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
    assembly = assemble(config, databases)
    if assembly.labels and not assembly.database.bytes:
        raise ValueError(
            f"{assembly.database.path} holds no levels of this configuration; make them with `paretopress build`"
        )
    profile = assembly.space.parse(units)
    assignments = [assembly.space.assignment(profile), assembly.space.assignment(DENSE)]
    refitted = kept_refit(run, assembly.space.describe(profile)) if run else None
    if refitted and refitted.recipe != refit_recipe(assembly, assignments[0]):
        raise ValueError(f"{refitted.path} was made with another configuration or release; refit {run} again")
    values, losses = assembly.evaluator(refitted).measure(assignments, everything(assembly, data))
    return {
        **({"refitted layers": len(refitted.errors())} if refitted else {}),
        config.fitness.name: _mean(values[0]),
        "perplexity": math.exp(_mean(losses[0])),
        "dense perplexity": math.exp(_mean(losses[1])),
        **assembly.space.costs(profile),
    }


def measure_model(config: RunConfig, checkpoint: Checkpoint, data: str) -> Figures:
    """Divergence of another model from the configuration's, and its perplexity.

    Raises:
        ValueError: it has another vocabulary.
    """
    assembly = assemble(config, Path())
    structure = find_structure(checkpoint.skeleton())
    vocabulary = assembly.structure.ends.head.out_features
    if structure.ends.head.out_features != vocabulary:
        raise ValueError(
            f"{checkpoint.path} has {structure.ends.head.out_features} tokens, {config.model} has {vocabulary}; "
            "compare models with one tokenizer"
        )
    evaluation = assembly.config.evaluation
    student = BlockRunner(
        checkpoint,
        structure,
        device=devices_of(evaluation),
        dtype=DTYPES[evaluation.dtype],
        micro_batch=int(evaluation.micro_batch),
        length=config.data.length,
    )
    kl, loss = _compare(assembly, student, data)
    return {"kl": kl, "perplexity": math.exp(loss)}


@torch.no_grad()
def _compare(assembly: Assembly, student: BlockRunner, data: str) -> tuple[float, float]:
    """Mean KL and cross-entropy over all positions but the last of each sequence."""
    size, teacher, chunk = student.micro_batch, assembly.runner, int(assembly.config.evaluation.chunk)
    tokens_NT = torch.from_numpy(assembly.data[data].tokens.astype("int64")).to(student.device)
    padding = tokens_NT[:1].expand(-len(tokens_NT) % size, -1)
    padded_NT = torch.cat([tokens_NT, padding])
    batches = [padded_NT[i : i + size] for i in range(0, len(padded_NT), size)]
    both = [torch.cat(_last_states(runner, batches)) for runner in (teacher, student)]
    values: list[float] = []
    losses: list[float] = []
    for taught_TD, learned_TD, tokens_T in zip(*both, tokens_NT, strict=False):
        for start in range(0, len(tokens_T) - 1, chunk):
            piece = slice(start, min(start + chunk, len(tokens_T) - 1))
            taught = teacher_chunk(assembly.config.fitness, teacher.logits(taught_TD[piece]))
            log_probs_PV = student.logits(learned_TD[piece]).log_softmax(-1)
            values += kl_divergence(taught, log_probs_PV).tolist()
            losses += cross_entropy(log_probs_PV, tokens_T[piece.start + 1 : piece.stop + 1]).tolist()
    return _mean(values), _mean(losses)


def _last_states(runner: BlockRunner, batches: list[Tensor]) -> list[Tensor]:
    """Hidden states after the last block, block by block: each is read once."""
    states = [runner.embed(tokens_BT) for tokens_BT in batches]
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            states = loaded.run(states)
    return states


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
