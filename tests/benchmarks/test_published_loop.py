"""The baseline gives the divergence it should, and switches only what differs."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.speed.generation import Bench
from benchmarks.speed.published_loop import PublishedLoop, touch
from paretopress.evaluators.trial import Fidelity

ROWS = 4


@pytest.fixture
def loop(bench: Bench) -> PublishedLoop:
    return made(bench, together=1)


def made(bench: Bench, together: int) -> PublishedLoop:
    assembly = bench.assembly
    return PublishedLoop(
        assembly.checkpoint.path,
        assembly.structure,
        assembly.database,
        assembly.data["calibration"].tokens[:ROWS],
        device=torch.device("cpu"),
        dtype=torch.float32,
        together=together,
    )


def reference(bench: Bench, candidate: dict[str, str], rows: list[int], length: int) -> list[float]:
    """Divergence in float64 of every row."""
    path = bench.assembly.checkpoint.path
    dense, model = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for _ in range(2))
    for layer, label in candidate.items():
        weight = bench.assembly.database.load(layer, label, torch.device("cpu")).dense()
        model.get_submodule(layer).weight.data = weight.double()
    found = []
    for row in rows:
        tokens = torch.from_numpy(bench.assembly.data["calibration"].tokens[row : row + 1, :length]).long()
        with torch.no_grad():
            p, q = (m(tokens).logits[0, :-1].log_softmax(-1) for m in (dense, model))
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return found


def test_fitness_is_the_divergence_over_the_whole_vocabulary(bench: Bench, loop: PublishedLoop) -> None:
    candidate = dict.fromkeys(bench.assembly.labels, "w2g128")
    assert loop.fitness([0, 1], 128) == 0  # nothing is installed yet
    loop.install(candidate)
    wanted = reference(bench, candidate, [2, 0], 128)
    assert loop.fitness([2, 0], 128) == pytest.approx(np.mean(wanted), rel=1e-3)
    cut = reference(bench, candidate, [1], 40)[0]
    together = (wanted[0] * 127 + cut * 39) / 166
    assert loop.fitness([2, 1], 128, 40) == pytest.approx(together, rel=1e-3)


def test_sequences_of_one_call_change_nothing_but_rounding(bench: Bench, loop: PublishedLoop) -> None:
    many = made(bench, together=3)
    for one in (loop, many):
        one.install(bench.assembly.space.assignment(bench.parent))
    rows = [3, 0, 2, 1]
    assert many.fitness(rows, 128, 50) == pytest.approx(loop.fitness(rows, 128, 50), rel=1e-3)
    assert many.fitness(rows, 128) == pytest.approx(loop.fitness(rows, 128), rel=1e-3)


def test_only_layers_that_differ_are_read(bench: Bench, loop: PublishedLoop) -> None:
    space = bench.assembly.space
    first, second = bench.offspring(0)[:2]
    assert loop.install(space.assignment(first)) == len(space.units)
    assert loop.install(space.assignment(second)) == sum(a != b for a, b in zip(first, second, strict=True))
    assert loop.install(space.assignment(second)) == 0


def test_a_selection_agrees_with_our_evaluator(bench: Bench, loop: PublishedLoop) -> None:
    assignments = [bench.assembly.space.assignment(profile) for profile in bench.offspring(1)]
    selection = loop.select(assignments, ROWS * 128, np.random.default_rng(0))
    values, _ = bench.evaluator.measure(assignments, Fidelity(0, 0, ROWS, 128))
    ours = [float(np.mean(row)) for row in values]
    assert selection.values == pytest.approx(ours, rel=1e-2)
    assert selection.best(2) == list(np.argsort(selection.values)[:2])
    assert selection.seconds > 0


def test_a_pool_that_is_too_small_is_refused(loop: PublishedLoop) -> None:
    with pytest.raises(ValueError, match=r"600 tokens need 5 sequences, the loop has 4; give it more"):
        loop.select([], 600, np.random.default_rng(0))


def test_touching_reads_every_level_file(bench: Bench) -> None:
    assert touch(bench.assembly.database) == bench.assembly.database.bytes
