"""Files written piece by piece are those of the safetensors library."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from paretopress.spaces.storage.files import write_pieces
from paretopress.spaces.storage.streaming import safetensors_pieces

TYPES = (torch.uint8, torch.float16, torch.bfloat16)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("abmz/.:_-é0", min_size=1, max_size=9),
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    )
)
def test_the_bytes_are_those_of_the_library(forms: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {
        name: torch.arange(torch.Size(shape).numel()).to(dtype).view(shape)
        for name, (dtype, shape) in forms.items()
    }
    written = b"".join(safetensors_pieces(tensors))
    assert written == save(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load(written).items())


def test_pieces_are_hashed_as_they_are_written_and_leave_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_pieces(path, [b"one", memoryview(b"two")]) == hashlib.sha256(b"onetwo").hexdigest()
    assert path.read_bytes() == b"onetwo"

    def breaking() -> Iterator[bytes]:
        yield b"three"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_pieces(path, breaking())
    assert path.read_bytes() == b"onetwo"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
