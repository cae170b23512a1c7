import importlib.util
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save_file

from paretopress.evaluators.text.data import (
    DataConfig,
    Sequences,
    SetConfig,
    SourceConfig,
    Tokenizer,
    load_sequences,
    load_tokenizer,
)
from paretopress.evaluators.text.packing import pack, split_groups
from paretopress.evaluators.text.sources import IntArray, documents

MODEL = Path(__file__).parents[3] / "configs" / "quickstart-model"
BYTES = Tokenizer(lambda text: [byte + 1 for byte in text.encode()], bos=0, size=257)

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=25)


def numbered(sizes: list[int]) -> list[IntArray]:
    """Documents whose every token names document and place."""
    return [np.arange(size, dtype=np.int32) + 1000 * i for i, size in enumerate(sizes)]


def plain_groups(sizes: list[int], length: int) -> list[list[int]]:
    """The rule in words: the documents of each group."""
    found, waiting = [], []
    for i, size in enumerate(sizes):
        if size >= length:
            found.append([i])
            continue
        waiting.append(i)
        if sum(sizes[j] for j in waiting) >= length:
            found.append(waiting)
            waiting = []
    return found


@given(lengths, st.integers(2, 12))
def test_groups_are_whole_prefixes_of_their_documents(sizes: list[int], length: int) -> None:
    texts = numbered(sizes)
    groups = list(split_groups(texts, length))
    expected = plain_groups(sizes, length)
    assert len(groups) == len(expected)
    for group, members in zip(groups, expected, strict=True):
        joined = np.concatenate([texts[i] for i in members])
        assert group.shape == (len(joined) // length, length)
        np.testing.assert_array_equal(group.reshape(-1), joined[: group.size])


@given(lengths, st.integers(2, 12), st.integers(1, 60), st.integers(0, 60))
def test_fewer_sequences_are_a_prefix_of_more(sizes: list[int], length: int, few: int, more: int) -> None:
    short, long = (pack("x", numbered(sizes), length, count) for count in (few, few + more))
    np.testing.assert_array_equal(short.tokens, long.tokens[:few])
    np.testing.assert_array_equal(short.documents, long.documents[:few])


@given(lengths, st.integers(2, 12), st.integers(1, 60))
def test_packing_goes_round_the_groups(sizes: list[int], length: int, count: int) -> None:
    packed = pack("x", numbered(sizes), length, count)
    groups = list(split_groups(numbered(sizes), length))
    windows = [(w, g) for g, group in enumerate(groups) for w in range(len(group))]
    expected = sorted(windows)[:count]
    assert packed.documents.tolist() == [g for _, g in expected]
    for tokens, (w, g) in zip(packed.tokens, expected, strict=True):
        np.testing.assert_array_equal(tokens, groups[g][w])
    assert packed.tokens.dtype == packed.documents.dtype == np.dtype(np.int32)
    assert packed.groups == len({g for _, g in expected})


def test_packing_takes_no_more_documents_than_it_needs() -> None:
    def endless() -> Iterator[IntArray]:
        for i in range(6):
            yield np.full(10, i, np.int32)
        raise AssertionError("read on")

    assert pack("x", endless(), 5, 6).documents.tolist() == [0, 1, 2, 3, 4, 5]


def test_fingerprint_is_of_the_contents() -> None:
    tokens, groups = np.arange(8, dtype=np.int32).reshape(2, 4), np.array([0, 1], np.int32)
    first = Sequences("calibration", tokens, groups)
    assert first.fingerprint == Sequences("heldout", tokens.copy(), groups.copy()).fingerprint
    assert (len(first), first.length) == (2, 4)
    others = [
        (tokens + 1, groups),
        (tokens, groups * 0),
        (tokens.reshape(4, 2), groups),
        (tokens[:1], groups[:1]),
    ]
    assert len({first.fingerprint, *(Sequences("x", *other).fingerprint for other in others)}) == 5


def corpus(folder: Path, texts: list[str], name: str = "text.jsonl") -> SourceConfig:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in texts))
    return SourceConfig(source=str(path))


def config(source: SourceConfig, length: int = 4, **tokens: int) -> DataConfig:
    wanted = {"calibration": 8, "validation": 4, "heldout": 4} | tokens
    sets = {name: SetConfig(tokens=count) for name, count in wanted.items()}
    return DataConfig(source=source, length=length, **sets)


def words(sequences: Sequences) -> set[str]:
    return {bytes(t - 1 for t in row if t).decode("latin-1") for row in sequences.tokens.tolist()}


@given(st.integers(0, 5), st.integers(1, 8), st.integers(0, 3))
def test_sets_share_no_document_and_grow_by_appending(
    tmp_path_factory: pytest.TempPathFactory, seed: int, few: int, more: int
) -> None:
    texts = [f"{i:03}" * (1 + i % 4) for i in range(60)]
    source = corpus(tmp_path_factory.getbasetemp(), [*texts, *texts[:20]])
    small = load_sequences(config(source, calibration=4 * few), BYTES, seed)
    large = load_sequences(config(source, calibration=4 * (few + more), heldout=32), BYTES, seed)
    assert list(small) == ["calibration", "validation", "heldout"]
    for name in small:
        np.testing.assert_array_equal(small[name].tokens, large[name].tokens[: len(small[name])])
        assert (small[name].tokens[:, 0] == 0).sum() >= len(set(small[name].documents.tolist()))
    found = [words(large[name]) for name in large]
    starts = [{w[:3] for w in of} for of in found]
    assert not starts[0] & starts[1] | starts[0] & starts[2] | starts[1] & starts[2]
    again = load_sequences(config(source, calibration=4 * few), BYTES, seed)
    assert [s.fingerprint for s in again.values()] == [s.fingerprint for s in small.values()]
    other = load_sequences(config(source, calibration=4 * few), BYTES, seed + 1)
    assert other["calibration"].fingerprint != small["calibration"].fingerprint


def test_shares_are_three_to_one_to_one_and_order_of_files_is_nothing(tmp_path: Path) -> None:
    texts = [f"{i:03}" for i in range(50)]
    forward = corpus(tmp_path, texts, "a.jsonl")
    backward = corpus(tmp_path, texts[::-1], "b.jsonl")
    asked = {"calibration": 4 * 30, "validation": 4 * 10, "heldout": 4 * 10}
    found = load_sequences(config(forward, **asked), BYTES, 3)
    assert [s.groups for s in found.values()] == [30, 10, 10]
    turned = load_sequences(config(backward, **asked), BYTES, 3)
    assert [s.fingerprint for s in turned.values()] == [s.fingerprint for s in found.values()]


def test_repeated_documents_are_used_once(tmp_path: Path) -> None:
    source = corpus(tmp_path, [f"{i:03}" for i in range(5)] * 4)
    with pytest.raises(
        ValueError, match=r"calibration needs 4 sequences of 4 tokens, but its 3 documents of .* give 3"
    ):
        load_sequences(config(source, calibration=16), BYTES, 0)


def test_heldout_keeps_what_two_sources_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    common = corpus(tmp_path, [f"{i:03}" for i in range(20)], "common.jsonl")
    own = corpus(tmp_path, [f"{i:03}" for i in range(15, 30)], "own.jsonl")
    data = DataConfig(
        source=common,
        length=4,
        calibration=SetConfig(tokens=4 * 12),
        validation=SetConfig(tokens=4, source=corpus(tmp_path, ["val", "017"], "validation.jsonl")),
        heldout=SetConfig(tokens=4 * 15, source=own),
    )
    with caplog.at_level(logging.WARNING):
        found = load_sequences(data, BYTES, 0)
    assert words(found["heldout"]) == {f"{i:03}" for i in range(15, 30)}
    assert words(found["validation"]) == {"val"}
    assert words(found["calibration"]) < {f"{i:03}" for i in range(15)}
    assert "5 documents left out of calibration" in caplog.text
    assert "1 documents left out of validation" in caplog.text


def test_bos(tmp_path: Path) -> None:
    source = corpus(tmp_path, ["abcdef", "ghijkl", "mnopqr", "stuvwx"])
    without = Tokenizer(BYTES.encode, None, 257)
    always, never = (config(source).model_copy(update={"bos": bos}) for bos in ("always", "never"))
    assert (load_sequences(config(source), BYTES, 0)["heldout"].tokens[:, 0] == 0).all()
    assert (load_sequences(never, BYTES, 0)["heldout"].tokens > 0).all()
    assert (load_sequences(config(source), without, 0)["heldout"].tokens > 0).all()
    with pytest.raises(ValueError, match="data.bos is 'always', but neither tokenizer nor model has a BOS"):
        load_sequences(always, without, 0)


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("only one document\nof two lines")
    with pytest.raises(
        ValueError, match="1 documents to divide among heldout, validation, calibration; divide"
    ):
        load_sequences(config(SourceConfig(source=str(path))), BYTES, 0)


def read(path: Path | str, **options: Any) -> list[str]:
    found = list(documents(SourceConfig(source=str(path), **options)))
    assert all(isinstance(document, str) for document in found)
    return [str(document) for document in found]


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("first\n\n\nsecond\n\n")
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo <|endoftext|> two\n<|endoftext|>\n")
    (tmp_path / "[c].txt").write_text("brackets")
    assert read(tmp_path / "b.txt") == ["first\n\n\nsecond\n\n"]
    assert read(tmp_path / "b.txt", split=r"\n(\n)+") == ["first", "second"]
    assert read(tmp_path / "a.txt") == ["one\n", "\ntwo <|endoftext|> two\n"]
    assert read(tmp_path / "[c].txt") == ["brackets"]
    assert len(read(tmp_path / "*.txt")) == 4
    with pytest.raises(ValueError, match=r"no file matches data source .*missing"):
        read(tmp_path / "missing*")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text at byte 3"):
        read(tmp_path / "latin.txt")


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "id": "1"}\n\n{"text": "\\ud800", "id": "2"}\n')
    assert read(path) == ["a", "?"]
    assert read(path, field="id") == ["1", "2"]
    with pytest.raises(
        ValueError, match=r"x.jsonl line 1 has no text in field 'body', it has text, id; name"
    ):
        read(path, field="body")
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"x.jsonl line 2 is not JSON"):
        read(path)


def test_stdlib_is_the_modules_of_this_python() -> None:
    found = read("stdlib")
    assert len(found) > 100
    assert Path(re.__file__).parent.with_name("textwrap.py").read_text(encoding="utf-8") in found
    assert not any("build_time_vars = {" in text for text in found)


def test_max_documents(tmp_path: Path) -> None:
    source = corpus(tmp_path, [f"{i:03}" for i in range(50)]).model_copy(update={"max_documents": 10})
    found = load_sequences(config(source), BYTES, 0)
    assert set.union(*map(words, found.values())) <= {f"{i:03}" for i in range(10)}


def test_pretokenised_rows_are_groups_already(tmp_path: Path) -> None:
    tokens = np.arange(10 * 9, dtype=np.uint16).reshape(10, 9)
    of = np.array([4, 4, 2, 2, 2, 7, 8, 9, 1, 0])
    path = tmp_path / "tokens.safetensors"
    save_file({"tokens": tokens, "documents": of}, path)
    found = load_sequences(config(SourceConfig(source=str(path)), calibration=32), BYTES, 0)
    starts = [set((s.tokens[:, 0] // 9).tolist()) for s in found.values()]
    assert not starts[0] & starts[1] | starts[0] & starts[2] | starts[1] & starts[2]
    for pool in found.values():
        rows, groups = pool.tokens[:, 0] // 9, pool.documents
        np.testing.assert_array_equal((of[rows][:, None] == of[rows]), (groups[:, None] == groups))
        assert all(tuple(row) in {tuple(t[k : k + 4]) for t in tokens for k in (0, 4)} for row in pool.tokens)
    save_file({"tokens": tokens}, path)
    assert [d.shape for d in documents(SourceConfig(source=str(path))) if not isinstance(d, str)] == [
        (1, 9)
    ] * 10


def test_wrong_pretokenised_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    source = SourceConfig(source=str(path))
    tokens = np.arange(40, dtype=np.int64).reshape(10, 4)

    def refused(message: str, length: int = 4) -> None:
        with pytest.raises(ValueError, match=message):
            load_sequences(config(source, length=length, validation=8, heldout=8), BYTES, 0)

    path.write_bytes(b"nothing")
    refused("is not a safetensors file")
    save_file({"input_ids": tokens}, path)
    refused(r"holds input_ids \[10, 4\] int64; it needs an integer tensor `tokens`")
    save_file({"tokens": tokens, "documents": np.arange(3)}, path)
    refused(r"`documents` has shape \[3\]")
    save_file({"tokens": tokens - 1}, path)
    refused("outside 0..2")
    save_file({"tokens": tokens + 300}, path)
    refused("the vocabulary has 257; make it with the model's tokenizer")
    save_file({"tokens": tokens}, path)
    refused("rows have 4 tokens, but data.length is 5", length=5)


def test_datasets_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"'hf:wikitext' needs the datasets package; pip install 'paretop"
    ):
        read("hf:wikitext")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_local_dataset(tmp_path: Path) -> None:
    corpus(tmp_path, ["a", "b", "c"], "train.jsonl")
    assert read(f"hf:{tmp_path}") == ["a", "b", "c"]
    with pytest.raises(ValueError, match="row 0 has no text in field 'body', it has text, other"):
        read(f"hf:{tmp_path}", field="body")


def test_configuration_is_checked() -> None:
    assert DataConfig.model_validate({"source": "stdlib"}) == DataConfig()
    with pytest.raises(ValidationError, match="Extra inputs"):
        DataConfig.model_validate({"lenght": 3})
    with pytest.raises(ValidationError, match=r"is not a regular expression \(.*\); correct it"):
        SourceConfig(split="(")
    with pytest.raises(ValidationError, match=r"heldout.tokens 100 is less than one sequence of 512"):
        DataConfig(length=512, heldout=SetConfig(tokens=100))


@pytest.mark.slow
def test_quickstart_finds_enough_in_the_standard_library() -> None:
    tokenizer = load_tokenizer(MODEL)
    assert (tokenizer.bos, tokenizer.size) == (0, 8192)
    assert tokenizer.encode("import os") == tokenizer.encode("import os<|endoftext|>")[:-1]
    found = load_sequences(
        config(SourceConfig(), 512, calibration=65536, validation=32768, heldout=32768), tokenizer, 0
    )
    assert [s.tokens.shape for s in found.values()] == [(128, 512), (64, 512), (64, 512)]
    assert found["validation"].groups >= 20
    first = found["calibration"].tokens[0]
    assert first[0] == 0
    assert 0 < first[1:].max() < 8192


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer loads from .*; give the folder of a model"):
        load_tokenizer(tmp_path)
