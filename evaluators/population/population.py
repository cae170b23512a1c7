"""The population evaluator, which runs the model block after block with all candidates together.

Candidates that agree on the first blocks share their hidden states, and candidates that agree on a block share its
installation. The value of a sequence does not depend on what else is evaluated: its micro-batch and its place in the
micro-batch follow from its position only, and several micro-batches run at once only where that gives the same bits.

Shapes: B sequences of a micro-batch, T positions, D hidden size.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from ...spaces.model.structure import Block
from ...spaces.space import Profile, Space
from ...spaces.storage.database import LevelDatabase
from ...spaces.storage.files import digest
from ..fitness import FitnessConfig, fitness_of
from ..runner.block_weights import BlockWeights, Key
from ..runner.installing import Configuration, configuration, install, wanted
from ..runner.loaded import LoadedBlock
from ..runner.memory import MemoryPlan
from ..runner.recent import RecentTensors
from ..runner.runner import BlockRunner
from ..slopes.slope_answers import SlopeAnswers
from ..slopes.slope_trial import SlopeTrial
from ..text.data import Sequences
from ..trial import Evaluation, Fidelity, Trial
from .scoring import Scorer, Student

SLICE = 128
"""Number of profiles that are evaluated before answers are given, so an interruption loses at most their work."""

_WAVE = 16  # micro-batches given to a block in one call, so no more than these can run at once

Assignment = Mapping[str, str]
"""A model as a mapping from layer path to label; layers that are not named are dense."""


@dataclass
class _Node:
    """Candidates that share every block so far, and their hidden states.

    Attributes:
        candidates: indices of the candidates among the assignments that are evaluated together.
        states: hidden states (B, T, D) of every micro-batch.
        children: number of nodes after the next block that are still to be computed from these states.
    """

    candidates: list[int]
    states: list[Tensor]
    children: int = 0


class PopulationEvaluator:
    """Evaluates profiles of one space.

    Args:
        space: space of the profiles.
        database: level database with the weights of every level.
        runner: runner of the model, block by block.
        data: sequences of each data set by its name, `calibration`, `validation` or `heldout`.
        fitness: settings of the fitness to compute.
        memory: plan of what stays in which memory; does not change any value.
        teacher: bytes of host memory for the teacher's last hidden states, and as many again for those of slopes.
        chunk: number of positions whose logits exist at once.
        recipe: everything else that a value depends on, such as fingerprints of model and levels, and versions.

    Attributes:
        fingerprint: digest of everything that a value depends on besides profile and fidelity.
    """

    def __init__(
        self,
        space: Space,
        database: LevelDatabase,
        runner: BlockRunner,
        data: Mapping[str, Sequences],
        fitness: FitnessConfig,
        *,
        memory: MemoryPlan,
        teacher: int,
        chunk: int = 512,
        recipe: Mapping[str, object] | None = None,
    ) -> None:
        self.space = space
        self.database = database
        self.runner = runner
        self.data = data
        self.fitness = fitness
        self.memory = memory
        self.weights = BlockWeights(
            runner.checkpoint, runner.structure, database, runner.dtype, runner.place, memory.residency
        )
        self.teacher = RecentTensors(teacher)
        self._slopes = SlopeAnswers(space, self.weights, runner, fitness, teacher)
        # A bound method would be a reference cycle, and memory on a device would wait for the garbage collector.
        install_head = partial(_install_end, runner, self.weights, self._head)
        self._score = Scorer(runner, fitness, chunk, install_head)
        self.recipe = {
            "recipe": dict(recipe or {}),
            "fitness": fitness.model_dump(),
            "numerics": [str(runner.dtype), runner.device.type, runner.micro_batch, runner.length, chunk],
            "compiled": runner.pace.compiled,
        }
        self.fingerprint = digest(self.recipe)

    def describe(self) -> str:
        """Describe in one line how many tokens run at once and what the memory is used for."""
        return f"{self.runner.micro_batch} x {self.runner.length} tokens; {self.memory.describe()}"

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield one evaluation per trial; trials of equal fidelity are evaluated together."""
        stages: dict[Fidelity, list[Trial]] = {}
        for trial in trials:
            if isinstance(trial, SlopeTrial):
                yield self._slopes.answer(trial, self._sequences(trial.fidelity).tokens)
            else:
                stages.setdefault(trial.fidelity, []).append(trial)
        for fidelity, stage in stages.items():
            yield from self._stage(fidelity, stage)

    def _stage(self, fidelity: Fidelity, stage: list[Trial]) -> Iterator[Evaluation]:
        """Evaluate trials of one fidelity in slices of `SLICE` sorted profiles.

        Answers come after every slice, and profiles that agree on the first blocks are in the same slice.
        """
        profiles: dict[Profile, list[Trial]] = {}
        for trial in stage:
            profiles.setdefault(self.space.canonical(trial.profile), []).append(trial)
        ordered = sorted(profiles)
        for first in range(0, len(ordered), SLICE):
            part = ordered[first : first + SLICE]
            start = time.perf_counter()
            values, losses = self.measure([self.space.assignment(profile) for profile in part], fidelity)
            seconds = (time.perf_counter() - start) / sum(len(profiles[profile]) for profile in part)
            for i, profile in enumerate(part):
                error = None if all(map(math.isfinite, values[i])) else "the fitness is not finite"
                for trial in profiles[profile]:
                    yield Evaluation(trial, tuple(values[i]), tuple(losses[i]), seconds, error)

    def measure(
        self, assignments: Sequence[Assignment], fidelity: Fidelity
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Compute fitness and cross-entropy of every model on every sequence of `fidelity`.

        Args:
            assignments: models to evaluate, each as a mapping from layer path to label.
            fidelity: sequences to evaluate the models on.

        Returns:
            A table of fitness and a table of cross-entropy, each with one row per assignment and one column per
            sequence. An entry is a mean over all positions of a sequence except the last, summed in float64.

        Raises:
            ValueError: the data set or the runner does not have the sequences or the length that `fidelity` asks for.
        """
        self._sequences(fidelity)
        size = self.runner.micro_batch
        micro_batches = list(range(fidelity.start // size, -(-fidelity.stop // size)))
        one = 2 * size * fidelity.length * self.runner.hidden * self.runner.dtype.itemsize
        population = max(1, min(len(assignments) + 1, self.memory.states // one) - 1)
        tile = max(1, self.memory.states // (one * (population + 1)))
        tables = []
        with torch.no_grad():
            for first in range(0, len(assignments), population):
                candidates = assignments[first : first + population]
                parts = [
                    self._tile(candidates, fidelity, micro_batches[left : left + tile])
                    for left in range(0, len(micro_batches), tile)
                ]
                tables.append(np.concatenate(parts, axis=2))
        values, losses = np.concatenate(tables, axis=1)
        return values.tolist(), losses.tolist()

    def _sequences(self, fidelity: Fidelity) -> Sequences:
        """Return the data set of a fidelity, after a check that it has the sequences that the fidelity asks for."""
        sequences = self.data[fidelity.data]
        if not 1 < fidelity.length <= self.runner.length:
            raise ValueError(f"fidelity length {fidelity.length} is not within 2..{self.runner.length}")
        if not 0 <= fidelity.start < fidelity.stop <= len(sequences.tokens):
            raise ValueError(
                f"{fidelity.data} has {len(sequences.tokens)} sequences, not {fidelity.start}..{fidelity.stop}; "
                "give more data or ask for fewer sequences"
            )
        return sequences

    def _tile(
        self, candidates: Sequence[Assignment], fidelity: Fidelity, micro_batches: list[int]
    ) -> np.ndarray:
        """Compute fitness and cross-entropy on those sequences of `fidelity` that lie in the given micro-batches.

        Args:
            candidates: models to evaluate, each as a mapping from layer path to label.
            fidelity: sequences to evaluate the models on.
            micro_batches: indices of successive micro-batches in the fidelity's order.

        Returns:
            Fitness and cross-entropy, of shape (2, candidates, sequences).
        """
        tokens = [self._tokens(fidelity, index) for index in micro_batches]
        teacher = self._known_teacher(fidelity, micro_batches)
        dense: list[Assignment] = [] if teacher is not None else [{}]
        nodes = self._forward([*candidates, *dense], tokens)
        if teacher is None:
            node = next(node for node in nodes if len(candidates) in node.candidates)
            node.candidates.remove(len(candidates))
            teacher = node.states
            for index, states_BTD in zip(micro_batches, teacher, strict=True):
                self.teacher.put(_teacher_key(fidelity, index), states_BTD)
            nodes = [node for node in nodes if node.candidates]
        headed = [
            (candidates_, Student(node.states, label))
            for node in nodes
            for label, candidates_ in self._grouped(node.candidates, candidates, self._head)
        ]
        with record_function("scores"):
            scores = self._score([student for _, student in headed], teacher, tokens)
        rows = [0] * len(candidates)
        for row, (sharing, _) in enumerate(headed):
            for candidate in sharing:
                rows[candidate] = row
        left = micro_batches[0] * self.runner.micro_batch
        return scores[:, rows, max(fidelity.start - left, 0) : fidelity.stop - left]

    def _known_teacher(self, fidelity: Fidelity, micro_batches: list[int]) -> list[Tensor] | None:
        """Return the teacher's hidden states after the last block, if those of all given micro-batches are kept.

        Returns:
            Hidden states (B, T, D) of every micro-batch; an empty list where the fitness needs no teacher; None if the
            states of any micro-batch are not kept, so that the teacher has to run.
        """
        if fitness_of(self.fitness) is None:
            return []
        kept = [self.teacher.get(_teacher_key(fidelity, index)) for index in micro_batches]
        found = [states_BTD for states_BTD in kept if states_BTD is not None]
        return found if len(found) == len(kept) else None

    def _tokens(self, fidelity: Fidelity, micro_batch: int) -> Tensor:
        """Return the tokens (B, T) of one micro-batch; places beyond the data set repeat its first sequence."""
        sequences, size = self.data[fidelity.data], self.runner.micro_batch
        pool = len(sequences.tokens)
        first = micro_batch * size
        last = min(first + size, pool)
        rows = list(Fidelity(fidelity.seed, first, last, fidelity.length).rows(pool))
        rows += [rows[0]] * (size - len(rows))
        tokens = sequences.tokens[rows, : fidelity.length].astype("int64")
        return torch.from_numpy(tokens).to(self.runner.device)

    def _forward(self, assignments: Sequence[Assignment], tokens: list[Tensor]) -> list[_Node]:
        """Run all models through all blocks and return the nodes after the last block.

        Models with the same embedding and blocks share a node.

        Args:
            assignments: models to run, each as a mapping from layer path to label.
            tokens: token ids (B, T) of every micro-batch.
        """
        nodes = []
        for label, candidates in self._grouped(range(len(assignments)), assignments, self._embedding):
            _install_end(self.runner, self.weights, self._embedding, label)
            nodes.append(_Node(candidates, [self.runner.embed(tokens_BT) for tokens_BT in tokens]))
        blocks = self.runner.structure.blocks
        needed = [wanted(block, assignments) for block in blocks]
        with closing(self.weights.stream(needed)) as stream:
            for block, weights in zip(blocks, stream, strict=True):
                with record_function("blocks"):
                    nodes = self._block(block, nodes, assignments, weights)
        return nodes

    def _block(
        self,
        block: Block,
        nodes: list[_Node],
        assignments: Sequence[Assignment],
        weights: Mapping[Key, Tensor],
    ) -> list[_Node]:
        """Run one block for all nodes and return the nodes after it; each distinct configuration is installed once.

        Args:
            block: block to run.
            nodes: nodes before the block, whose hidden states are freed.
            assignments: models that are evaluated together, each as a mapping from layer path to label.
            weights: weights (O, I) of the block by layer path and label.
        """
        members: dict[Configuration, list[tuple[_Node, _Node]]] = {}
        for node in nodes:
            here: dict[Configuration, list[int]] = {}
            for candidate in node.candidates:
                here.setdefault(configuration(block, assignments[candidate]), []).append(candidate)
            for keys, candidates in here.items():
                child = _Node(candidates, [])
                members.setdefault(keys, []).append((node, child))
            node.children = len(here)
        with self.runner.block(block.index, dense=False) as loaded:
            for keys, parts in members.items():
                install(loaded, keys, weights)
                _run(loaded, parts)
        return [child for parts in members.values() for _, child in parts]

    @property
    def _embedding(self) -> str:
        return self.runner.structure.ends.embedding.path

    @property
    def _head(self) -> str:
        ends = self.runner.structure.ends
        return ends.embedding.path if ends.tied else ends.head.path

    def _grouped(
        self, candidates: Iterable[int], assignments: Sequence[Assignment], layer: str
    ) -> list[tuple[str | None, list[int]]]:
        """Group candidates by the label that their models give to `layer`, None where the layer is dense."""
        groups: dict[str | None, list[int]] = {}
        for candidate in candidates:
            groups.setdefault(assignments[candidate].get(layer), []).append(candidate)
        return list(groups.items())


def _install_end(runner: BlockRunner, weights: BlockWeights, layer: str, label: str | None) -> None:
    """Install a level of the embedding or the head, and restore the dense weights if the label is None."""
    runner.install_ends({layer: weights.end(layer, label, runner.device)} if label else {})


def _teacher_key(fidelity: Fidelity, micro_batch: int) -> tuple[str, int, int, int]:
    return fidelity.data, fidelity.seed, fidelity.length, micro_batch


def _run(loaded: LoadedBlock, parts: Sequence[tuple[_Node, _Node]]) -> None:
    """Run an installed block for pairs of parent and child node, and fill in the hidden states of the children.

    The states of a parent are freed, one micro-batch after the other, while its last child is computed.
    """
    jobs = _jobs(parts)
    while wave := list(islice(jobs, _WAVE)):
        outputs = loaded.run([node.states[i] for node, _, i in wave])
        for (node, child, i), states_BTD in zip(wave, outputs, strict=True):
            child.states.append(states_BTD)
            if not node.children:
                node.states[i] = states_BTD.new_empty(0)


def _jobs(parts: Sequence[tuple[_Node, _Node]]) -> Iterator[tuple[_Node, _Node, int]]:
    """Yield each pair of parent and child with the index of each micro-batch that the block must run for the child.

    Each pair reduces `children` of its parent by one.
    """
    for node, child in parts:
        node.children -= 1
        for i in range(len(node.states)):
            yield node, child, i
