"""Matrices by block: the same wherever they stay, read when they are wanted and one block ahead."""

import threading
import weakref
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paretopress.evaluators.runner.block_weights import DENSE, BlockWeights, Key, Residency
from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.levels.packed import Packed
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import Linear, Structure, find_structure
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import save_model

CPU = torch.device("cpu")
LABELS = ("w2g16", "w3g8a", "s50", "2:4+w4g8")
PLAIN = BuilderConfig(quantizer="rtn", pruner="magnitude")
SECONDS = 20.0
NOWHERE = Residency(frozenset())


class Reads:
    """What was read so far, in order; another thread may wait for it."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._changed = threading.Condition()

    def add(self, layer: str, label: str) -> None:
        with self._changed:
            self._keys.append((layer, label))
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._keys) >= count, SECONDS)

    def take(self) -> list[Key]:
        with self._changed:
            keys, self._keys = self._keys, []
        return sorted(keys)


class WatchedCheckpoint(Checkpoint):
    """A checkpoint that tells what is read."""

    reads: Reads

    def tensor(self, name: str) -> Tensor:
        self.reads.add(name.removesuffix(".weight"), DENSE)
        return super().tensor(name)


class WatchedDatabase(LevelDatabase):
    """A database that tells what is read, and first waits for the gate if there is one."""

    reads: Reads
    gate: threading.Event | None = None

    def load(self, layer: str, label: str, device: torch.device) -> Packed:
        self.reads.add(layer, label)
        if self.gate is not None:
            assert self.gate.wait(SECONDS)
        return super().load(layer, label, device)


@dataclass(frozen=True)
class Stored:
    """A model and its levels on disk."""

    model: Path
    levels: Path
    structure: Structure
    matrices: Mapping[Key, Tensor]

    def open(self, residency: Residency, dtype: torch.dtype = torch.float32) -> tuple[BlockWeights, Reads]:
        checkpoint, database = WatchedCheckpoint(self.model), WatchedDatabase(self.levels, {})
        checkpoint.reads = database.reads = reads = Reads()
        return BlockWeights(checkpoint, self.structure, database, dtype, lambda _: CPU, residency), reads

    def everything(self) -> list[set[Key]]:
        return [
            {(linear.path, label) for linear in block.linears for label in (DENSE, *LABELS)}
            for block in self.structure.blocks
        ]

    def expected(self, key: Key, dtype: torch.dtype) -> Tensor:
        """As the files say, without the code under test."""
        return self.matrices[key].to(dtype)


def store(name: str, folder: Path) -> Stored:
    checkpoint = Checkpoint(save_model(name, folder / "model"))
    structure = find_structure(checkpoint.skeleton())
    database = LevelDatabase(folder / "levels", {})

    def built(linear: Linear) -> dict[str, Packed]:
        weight = linear.turn(checkpoint.tensor(f"{linear.path}.weight"))
        return build(weight, None, LABELS, config=PLAIN, dtype=torch.float16)

    parts = {f"block-{block.index:03d}": block.linears for block in structure.blocks}
    for part, linears in {**parts, "ends": structure.ends.linears}.items():
        levels = {linear.path: built(linear) for linear in linears}
        database.write(part, levels, {path: dict.fromkeys(LABELS, 0.0) for path in levels})
    linears = (*structure.linears, *structure.ends.linears)
    matrices = {
        (linear.path, label): database.load(linear.path, label, CPU).dense()
        for linear in linears
        for label in LABELS
    }
    for linear in linears:
        weight = checkpoint.tensor(f"{linear.path}.weight")
        matrices[linear.path, DENSE] = weight.T if linear.transposed else weight
    return Stored(folder / "model", folder / "levels", structure, matrices)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Its layers are stored as (in, out)."""
    return store("gpt2", tmp_path_factory.mktemp("gpt2"))


def copies(stream: Iterator[dict[Key, Tensor]]) -> list[dict[Key, Tensor]]:
    return [{key: tensor.clone() for key, tensor in weights.items()} for weights in stream]


RESIDENCIES = {
    "nowhere": NOWHERE,
    "device": Residency(frozenset({0, 1, 2})),
    "host": Residency(frozenset(), frozenset({0, 1, 2})),
    "each": Residency(frozenset({1}), frozenset({0})),
}


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", torch.float32), ("llama", torch.bfloat16), ("gpt2", torch.float16)]
)
def test_matrices_are_those_of_the_files(
    name: str, residency: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    stored: Stored = request.getfixturevalue(name)
    weights, _ = stored.open(RESIDENCIES[residency], dtype)
    wanted = stored.everything()
    for _ in range(2):
        for keys, found in zip(wanted, weights.stream(wanted), strict=True):
            assert set(found) == keys
            for key, matrix in found.items():
                assert matrix.dtype == dtype
                assert torch.equal(matrix, stored.expected(key, dtype)), key
                # As any allocation, not as what lies in the middle of a file.
                assert matrix.is_contiguous()
                assert matrix.data_ptr() % 64 == 0


def some(stored: Stored) -> list[set[Key]]:
    """One dense weight, nothing, and two levels with a dense weight."""
    first, _, last = (block.linears for block in stored.structure.blocks)
    return [
        {(first[0].path, DENSE)},
        set(),
        {(last[1].path, "w2g16"), (last[1].path, DENSE), (last[2].path, "s50")},
    ]


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_only_what_is_wanted_is_read(llama: Stored, residency: str) -> None:
    weights, reads = llama.open(RESIDENCIES[residency])
    wanted = some(llama)
    assert [set(found) for found in copies(weights.stream(wanted))] == wanted
    assert reads.take() == sorted(set[Key]().union(*wanted))
    assert copies(weights.stream([])) == []
    assert copies(weights.stream([set(), set(), set()])) == [{}, {}, {}]
    assert reads.take() == []


def test_kept_blocks_are_read_once(llama: Stored) -> None:
    weights, reads = llama.open(Residency(frozenset({0, 2})))
    wanted = llama.everything()
    copies(weights.stream(some(llama)))
    reads.take()
    # What came already is not read again, the rest is.
    copies(weights.stream(wanted))
    assert reads.take() == sorted(set[Key]().union(*wanted) - set[Key]().union(*some(llama)))
    copies(weights.stream(wanted))
    assert reads.take() == sorted(wanted[1])


def test_kept_matrices_stay_where_they_are(llama: Stored) -> None:
    weights, _ = llama.open(Residency(frozenset({1})))
    wanted = llama.everything()
    key = next(iter(wanted[1]))
    first, second = ([found[key] for found in weights.stream(wanted) if key in found] for _ in range(2))
    assert first[0] is second[0]


def test_the_next_block_is_read_while_one_is_used_and_no_more(llama: Stored) -> None:
    weights, reads = llama.open(NOWHERE)
    wanted = llama.everything()
    stream = weights.stream(wanted)
    assert reads.take() == []
    sizes = [len(keys) for keys in wanted]
    next(stream)
    reads.wait_for(sizes[0] + sizes[1])
    assert reads.take() == sorted(wanted[0] | wanted[1])
    next(stream)
    reads.wait_for(sizes[2])
    assert reads.take() == sorted(wanted[2])
    next(stream)
    assert next(stream, None) is None
    assert reads.take() == []


def test_a_block_is_given_before_the_next_has_arrived(llama: Stored) -> None:
    weights, reads = llama.open(NOWHERE)
    database = weights.database
    assert isinstance(database, WatchedDatabase)
    database.gate = threading.Event()
    first, second = {(llama.structure.linears[0].path, DENSE)}, llama.everything()[1]
    stream = weights.stream([first, second])
    assert set(next(stream)) == first
    reads.wait_for(2)
    assert len(reads.take()) < len(first) + len(second)
    database.gate.set()
    assert set(next(stream)) == second


def test_what_was_given_before_is_let_go(llama: Stored) -> None:
    weights, _ = llama.open(Residency(frozenset({1})))
    stream = weights.stream(llama.everything())
    gone: list[weakref.ref[Tensor]] = []
    for index, given in enumerate(stream):
        assert not any(reference() is not None for reference in gone)
        if index != 1:
            gone += [weakref.ref(matrix) for matrix in given.values()]
        del given
    assert len(gone) == 2 * len(llama.everything()[0])


def test_a_block_is_let_go_before_the_next_is_unpacked(
    llama: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _ = llama.open(NOWHERE)
    given: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    dense = Packed.dense

    def noting(level: Packed) -> Tensor:
        alive.append(sum(reference() is not None for reference in given))
        return dense(level)

    monkeypatch.setattr(Packed, "dense", noting)
    for found in weights.stream(llama.everything()):
        given += [weakref.ref(matrix) for matrix in found.values()]
    assert len(alive) == len(llama.structure.linears) * len(LABELS)
    assert not any(alive)


def test_a_block_is_emptied_when_the_next_is_asked_for(llama: Stored) -> None:
    weights, _ = llama.open(RESIDENCIES["device"])
    stream = weights.stream(llama.everything())
    first = next(stream)
    assert first
    next(stream)
    assert first == {}


def test_ends_are_read_once_and_kept(llama: Stored) -> None:
    weights, reads = llama.open(NOWHERE, torch.bfloat16)
    for end in llama.structure.ends.linears:
        found = [weights.end(end.path, label, CPU) for label in (*LABELS, *LABELS)]
        assert reads.take() == sorted((end.path, label) for label in LABELS)
        for label, matrix in zip((*LABELS, *LABELS), found, strict=True):
            assert torch.equal(matrix, llama.expected((end.path, label), torch.bfloat16))


def with_unknown_level(stored: Stored, index: int) -> list[Collection[Key]]:
    layer = stored.structure.blocks[index].linears[0].path
    wanted: list[Collection[Key]] = [*stored.everything()]
    wanted[index] = [(layer, "w7")]
    return wanted


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_error_while_reading_is_told_as_it_is(llama: Stored, index: int) -> None:
    weights, _ = llama.open(NOWHERE)
    stream = weights.stream(with_unknown_level(llama, index))
    for _ in range(index):
        next(stream)
    with pytest.raises(
        ValueError, match=rf"^level 'w7' of model\.layers\.{index}\.\S+ is not in .*safetensors$"
    ):
        next(stream)
    assert threads() == []
    assert len(copies(weights.stream(llama.everything()))) == 3


def threads() -> Sequence[threading.Thread]:
    """Those besides this one that a pool started."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_it_can_be_closed_half_way(llama: Stored, given: int) -> None:
    weights, _ = llama.open(RESIDENCIES["each"])
    stream = weights.stream(llama.everything())
    for _ in range(given):
        next(stream)
    close_within(stream)
    assert next(stream, None) is None
    again = copies(weights.stream(llama.everything()))
    assert [set(found) for found in again] == llama.everything()
    assert threads() == []


def test_closing_hides_what_could_not_be_read_ahead(llama: Stored) -> None:
    weights, _ = llama.open(NOWHERE)
    stream = weights.stream(with_unknown_level(llama, 1))
    next(stream)
    close_within(stream)
    assert threads() == []


def close_within(stream: Iterator[dict[Key, Tensor]]) -> None:
    assert isinstance(stream, Generator)
    closing = threading.Thread(target=stream.close, daemon=True)
    closing.start()
    closing.join(SECONDS)
    assert not closing.is_alive()
