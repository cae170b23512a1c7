"""The population evaluator: block after block, with all candidates together.

Candidates that agree on the first blocks share their hidden states; candidates that agree on a block share its
installation. One sequence's value does not depend on what else is evaluated: a block always runs micro-batches
of one fixed shape, and a sequence's slot in its micro-batch follows from its position alone.

Shapes: B micro-batch, T positions, D hidden, P positions of one chunk, V vocabulary.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spaces.database import LevelDatabase
from ..spaces.files import digest
from ..spaces.space import Profile, Space
from ..spaces.structure import Block
from .caches import LevelCache, RecentTensors
from .data import Sequences
from .fitness import FitnessConfig, cross_entropy, fitness_of, teacher_chunk
from .runner import BlockRunner, LoadedBlock
from .trial import Evaluation, Fidelity, Trial

SLICE = 128
"""Profiles after which answers are given, so that an interruption costs no more."""

Assignment = Mapping[str, str]
"""Layer path to label; what is not named is dense."""


@dataclass
class _Node:
    """Candidates that share every block so far, and their hidden states per micro-batch."""

    candidates: list[int]
    states: list[Tensor]


class PopulationEvaluator:
    """Evaluates profiles of one space on one device.

    Args:
        space: gives meaning to profiles.
        database: the levels' weights.
        runner: runs the model block by block.
        data: `calibration`, `validation` and `heldout` sequences.
        fitness: what is minimised.
        memory: bytes for hidden states.
        cache: bytes for unpacked levels.
        chunk: positions whose logits exist at once.
        recipe: what else decides a value: fingerprints of model, levels and versions.
    """

    def __init__(
        self,
        space: Space,
        database: LevelDatabase,
        runner: BlockRunner,
        data: Mapping[str, Sequences],
        fitness: FitnessConfig,
        *,
        memory: int,
        cache: int,
        chunk: int = 512,
        recipe: Mapping[str, object] | None = None,
    ) -> None:
        self.space = space
        self.runner = runner
        self.data = data
        self.fitness = fitness
        self.memory = memory
        self.chunk = chunk
        self.database = database
        self.levels = LevelCache(database, runner.device, runner.dtype, cache)
        self.teacher = RecentTensors(memory)
        self.recipe = {
            "recipe": dict(recipe or {}),
            "fitness": fitness.model_dump(),
            "numerics": [str(runner.dtype), runner.device.type, runner.micro_batch, runner.length, chunk],
        }
        self.fingerprint = digest(self.recipe)

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield one evaluation per trial; trials of equal fidelity are evaluated together."""
        stages: dict[Fidelity, list[Trial]] = {}
        for trial in trials:
            stages.setdefault(trial.fidelity, []).append(trial)
        for fidelity, stage in stages.items():
            yield from self._stage(fidelity, stage)

    def _stage(self, fidelity: Fidelity, stage: list[Trial]) -> Iterator[Evaluation]:
        """Evaluate slices of neighbours, so that answers come on the way and prefixes stay together."""
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
        """Fitness and cross-entropy of every model on every sequence of `fidelity`.

        Returns:
            Two tables, one row per assignment and one column per sequence; means over all positions but the
            last, summed exactly.
        """
        sequences = self.data[fidelity.data]
        if fidelity.length != self.runner.length:
            raise ValueError(
                f"fidelity length {fidelity.length} differs from the evaluator's {self.runner.length}"
            )
        if not 0 <= fidelity.start < fidelity.stop <= len(sequences.tokens):
            raise ValueError(
                f"sequences {fidelity.start}..{fidelity.stop} are asked of {len(sequences.tokens)} in "
                f"{fidelity.data}; give more data or ask for less"
            )
        size = self.runner.micro_batch
        micro_batches = list(range(fidelity.start // size, -(-fidelity.stop // size)))
        population = max(1, min(len(assignments), self.memory // (2 * self._state_bytes)))
        tile = max(1, self.memory // (2 * self._state_bytes * population))
        values: list[list[float]] = [[] for _ in assignments]
        losses: list[list[float]] = [[] for _ in assignments]
        with torch.inference_mode():
            for first in range(0, len(assignments), population):
                candidates = assignments[first : first + population]
                for left in range(0, len(micro_batches), tile):
                    columns = micro_batches[left : left + tile]
                    for row, (v, c) in enumerate(self._tile(candidates, fidelity, columns), first):
                        values[row] += v
                        losses[row] += c
        return values, losses

    @property
    def _state_bytes(self) -> int:
        """Bytes of one candidate's hidden states for one micro-batch."""
        runner = self.runner
        return runner.micro_batch * runner.length * runner.hidden * torch.finfo(runner.dtype).bits // 8

    def _tile(
        self, candidates: Sequence[Assignment], fidelity: Fidelity, micro_batches: list[int]
    ) -> list[tuple[list[float], list[float]]]:
        tokens = [self._tokens(fidelity, index) for index in micro_batches]
        teacher = self._known_teacher(fidelity, micro_batches)
        dense: list[Assignment] = [] if teacher is not None else [{}]
        nodes = self._forward([*candidates, *dense], tokens)
        if teacher is None:
            node = next(node for node in nodes if len(candidates) in node.candidates)
            node.candidates.remove(len(candidates))
            teacher = node.states
            for index, states_BTD in zip(micro_batches, teacher, strict=True):
                self.teacher.put((fidelity.data, fidelity.seed, index), states_BTD.cpu())
            nodes = [node for node in nodes if node.candidates]
        return self._scores(nodes, teacher, tokens, fidelity, micro_batches, candidates)

    def _known_teacher(self, fidelity: Fidelity, micro_batches: list[int]) -> list[Tensor] | None:
        """The teacher's last hidden states if all are kept; nothing where no teacher is needed; else None."""
        if fitness_of(self.fitness) is None:
            return []
        kept = [self.teacher.get((fidelity.data, fidelity.seed, index)) for index in micro_batches]
        found = [states_BTD for states_BTD in kept if states_BTD is not None]
        return found if len(found) == len(kept) else None

    def _tokens(self, fidelity: Fidelity, micro_batch: int) -> Tensor:
        """Tokens (B, T) of one micro-batch; slots outside the pool repeat its first sequence."""
        sequences, size = self.data[fidelity.data], self.runner.micro_batch
        pool = len(sequences.tokens)
        first = micro_batch * size
        last = min(first + size, pool)
        rows = list(Fidelity(fidelity.seed, first, last, fidelity.length).rows(pool))
        rows += [rows[0]] * (size - len(rows))
        tokens = sequences.tokens[rows, : fidelity.length].astype("int64")
        return torch.from_numpy(tokens).to(self.runner.device)

    def _forward(self, assignments: Sequence[Assignment], tokens: list[Tensor]) -> list[_Node]:
        """Hidden states after the last block; candidates with the same blocks share a node."""
        nodes = []
        for label, candidates in self._grouped(range(len(assignments)), assignments, self._embedding):
            self._install_end(self._embedding, label)
            nodes.append(_Node(candidates, [self.runner.embed(tokens_BT) for tokens_BT in tokens]))
        for block in self.runner.structure.blocks:
            nodes = self._block(block, nodes, assignments)
        return nodes

    def _block(self, block: Block, nodes: list[_Node], assignments: Sequence[Assignment]) -> list[_Node]:
        """Run one block for all nodes, every distinct configuration installed once."""
        layers = [linear.path for linear in block.linears]
        members: dict[_Configuration, list[tuple[_Node, list[int]]]] = {}
        children: Counter[int] = Counter()
        for node in nodes:
            here: dict[_Configuration, list[int]] = {}
            for candidate in node.candidates:
                labels = assignments[candidate]
                configuration = tuple((layer, labels[layer]) for layer in layers if layer in labels)
                here.setdefault(configuration, []).append(candidate)
            for configuration, candidates in here.items():
                members.setdefault(configuration, []).append((node, candidates))
                children[id(node)] += 1
        found = []
        with self.runner.block(block.index) as loaded:
            for configuration, parts in members.items():
                self._install(loaded, block, dict(configuration))
                for node, candidates in parts:
                    children[id(node)] -= 1
                    found.append(_Node(candidates, _run(loaded, node, last=not children[id(node)])))
            loaded.install({}, ())
        return found

    def _install(self, loaded: LoadedBlock, block: Block, labels: Assignment) -> None:
        dropped = [
            branch.kind
            for branch in block.branches
            if all(labels.get(linear.path) == "drop" for linear in branch.linears)
        ]
        weights = {layer: self.levels.get(layer, label) for layer, label in labels.items() if label != "drop"}
        loaded.install(weights, dropped)

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
        """Candidates by the label that they give to `layer` (None: dense)."""
        groups: dict[str | None, list[int]] = {}
        for candidate in candidates:
            groups.setdefault(assignments[candidate].get(layer), []).append(candidate)
        return list(groups.items())

    def _install_end(self, layer: str, label: str | None) -> None:
        self.runner.install_ends({layer: self.levels.get(layer, label)} if label else {})

    def _scores(
        self,
        nodes: list[_Node],
        teacher: list[Tensor],
        tokens: list[Tensor],
        fidelity: Fidelity,
        micro_batches: list[int],
        assignments: Sequence[Assignment],
    ) -> list[tuple[list[float], list[float]]]:
        """Per candidate the fitness and cross-entropy of every sequence of the tile."""
        scores: list[tuple[list[float], list[float]]] = [([], []) for _ in assignments]
        headed = [
            (node, label, candidates)
            for node in nodes
            for label, candidates in self._grouped(node.candidates, assignments, self._head)
        ]
        size = self.runner.micro_batch
        for i, index in enumerate(micro_batches):
            for slot in range(size):
                if not fidelity.start <= index * size + slot < fidelity.stop:
                    continue
                tokens_T = tokens[i][slot]
                teacher_TD = teacher[i][slot].to(self.runner.device) if teacher else None
                students = [(node.states[i][slot], label) for node, label, _ in headed]
                rows = self._sequence(teacher_TD, students, tokens_T)
                for (_, _, candidates), (value, loss) in zip(headed, rows, strict=True):
                    for candidate in candidates:
                        scores[candidate][0].append(value)
                        scores[candidate][1].append(loss)
        return scores

    def _sequence(
        self, teacher_TD: Tensor | None, students: list[tuple[Tensor, str | None]], tokens_T: Tensor
    ) -> list[tuple[float, float]]:
        """Mean fitness and cross-entropy of one sequence for every student; the teacher's logits made once."""
        divergence = fitness_of(self.fitness)
        positions = len(tokens_T) - 1
        parts: list[tuple[list[float], list[float]]] = [([], []) for _ in students]
        for start in range(0, positions, self.chunk):
            piece = slice(start, min(start + self.chunk, positions))
            targets_P = tokens_T[piece.start + 1 : piece.stop + 1]
            taught, installed = None, None
            self._install_end(self._head, None)
            if teacher_TD is not None:
                taught = teacher_chunk(self.fitness, self.runner.logits(teacher_TD[piece]))
            found: list[Tensor] = []
            for states_TD, label in students:
                if label != installed:
                    self._install_end(self._head, label)
                    installed = label
                log_probs_PV = self.runner.logits(states_TD[piece]).log_softmax(-1)
                loss_P = cross_entropy(log_probs_PV, targets_P)
                found += [divergence(taught, log_probs_PV) if divergence and taught else loss_P, loss_P]
            # One transfer for all students: waiting for each would cost a GPU more than its logits do.
            rows = torch.stack(found).tolist()
            for (values, losses), value_P, loss_P in zip(parts, rows[::2], rows[1::2], strict=True):
                values += value_P
                losses += loss_P
        return [(math.fsum(v) / positions, math.fsum(c) / positions) for v, c in parts]


_Configuration = tuple[tuple[str, str], ...]
"""(layer, label) of the layers of one block that are not dense."""


def _run(loaded: LoadedBlock, node: _Node, *, last: bool) -> list[Tensor]:
    """The block's outputs for a node; its inputs are freed on the way when no other child needs them."""
    outputs = []
    for i, states_BTD in enumerate(node.states):
        outputs.append(loaded(states_BTD))
        if last:
            node.states[i] = states_BTD.new_empty(0)
    return outputs
