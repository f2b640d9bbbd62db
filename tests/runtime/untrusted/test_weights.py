"""Checkpoints and safetensors files that are damaged, claim too much, or hold code."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from constrained_diffusion.runtime.untrusted import (
    HoldsObjectsError,
    check_archive,
    no_larger_than,
    read_checkpoint,
    read_tensors,
)

CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 7}


class Trap:
    """Executed by any unpickling that executes code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


class Claims:
    """A bytearray of a size that nobody has written."""

    def __reduce__(self) -> Any:
        return (bytearray, (1 << 20,))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def zipped(file: Path, compression: int, **changes: bytes) -> None:
    """Write the file's entries anew, some changed; keys are the ends of their names."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2], content))


def test_what_was_saved_comes_back(file: Path) -> None:
    content = read_checkpoint(file, "state_dict", "global_step")
    assert content["global_step"] == 7
    assert torch.equal(content["state_dict"]["w"], torch.arange(1000.0))
    assert read_checkpoint(file, map_location="meta")["state_dict"]["w"].device.type == "meta"
    torch.save(CONTENT, file, _use_new_zipfile_serialization=False)
    assert read_checkpoint(file)["global_step"] == 7
    zipped_again = io.BytesIO()
    torch.save(CONTENT, zipped_again)
    file.write_bytes(zipped_again.getvalue())
    zipped(file, zipfile.ZIP_STORED)
    assert read_checkpoint(file)["global_step"] == 7


def test_code_is_not_executed(file: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for new in (True, False):
        torch.save({**CONTENT, "more": Trap(mark)}, file, _use_new_zipfile_serialization=new)
        with pytest.raises(HoldsObjectsError, match=r"cannot be read: it holds [\w.]+ besides its tensors"):
            read_checkpoint(file)
        assert not mark.exists()
    file.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(file)
    assert not mark.exists()
    pickle.loads(file.read_bytes())
    assert mark.exists()  # the trap is a real one


def test_what_a_checkpoint_holds_besides_tensors_is_named(file: Path) -> None:
    for new in (True, False):
        torch.save({**CONTENT, "hyper_parameters": {"folder": Path("x")}}, file, _use_new_zipfile_serialization=new)
        with pytest.raises(HoldsObjectsError) as caught:
            read_checkpoint(file)
        said = str(caught.value)
        assert f"'{file}' cannot be read: it holds pathlib.PosixPath besides its tensors" in said
        assert said.isprintable()  # torch's own has colours


def test_a_zip_bomb_is_not_unpacked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(file, zipfile.ZIP_DEFLATED, **{"0": bytes(1 << 26)})
    assert file.stat().st_size < 1 << 17
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(ValueError, match=r"it would unpack from [\d,]+ to 67,\d+,\d+ bytes\); take an earlier one"):
        read_checkpoint(file)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A bomb without compression: many entries of the directory stand for one piece of the file."""
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("a", bytes(10_000))
        archive.filelist.extend(archive.filelist * 3)
    with pytest.raises(ValueError, match="it would unpack from"):
        check_archive(tmp_path / "x.ckpt")


def test_a_claimed_size_is_not_taken(file: Path) -> None:
    torch.save({**CONTENT, "more": Claims()}, file)
    with pytest.raises(ValueError, match="it holds a bytearray, which may claim any size"):
        read_checkpoint(file)


def test_a_flipped_bit_in_the_weights_is_noticed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(struct.pack("<3f", 500, 501, 502)) + 1] ^= 1
    file.write_bytes(content)
    assert torch.load(file, weights_only=True)["state_dict"]["w"][500] != 500  # torch itself does not look
    with pytest.raises(ValueError, match="the checksum of its entry x/data/0 is wrong"):
        read_checkpoint(file)


def test_truncated_anywhere(file: Path) -> None:
    content = file.read_bytes()
    for kept in [0, 1, 3, 4, 30, *range(100, len(content), 397), len(content) - 1]:
        file.write_bytes(content[:kept])
        with pytest.raises(ValueError, match="cannot be read: it is truncated"):
            read_checkpoint(file)


def test_other_content_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint '.*none.ckpt'"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="it has no epoch and no loops; give a file from a run's folder"):
        read_checkpoint(file, "loops", "epoch", "state_dict")
    for content, said in [
        (torch.zeros(2), "it holds a Tensor, not a dictionary"),
        ({"state_dict": [1]}, "its state_dict does not map"),
        ({"state_dict": {5: torch.zeros(2)}}, "its state_dict does not map"),
    ]:
        torch.save(content, file)
        with pytest.raises(ValueError, match=said):
            read_checkpoint(file)


def safetensors(file: Path, header: dict[str, Any], data: bytes = bytes(8), length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_safetensors_file_that_is_whole(tmp_path: Path) -> None:
    tensors, metadata = read_tensors(safetensors(tmp_path / "x", {"w": FLOATS, "__metadata__": {"a": "b"}}), "w")
    assert torch.equal(tensors["w"], torch.zeros(2))
    assert metadata == {"a": "b"}
    with pytest.raises(ValueError, match="should hold the tensor sample, but does not"):
        read_tensors(tmp_path / "x", "w", "sample")
    with pytest.raises(FileNotFoundError, match="there is no safetensors file"):
        read_tensors(tmp_path / "none")


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"w": FLOATS}, 2**62),  # a header of petabytes
        ({"w": FLOATS}, 200_000_000),
        ({"w": {**FLOATS, "shape": [2**40], "data_offsets": [0, 2**42]}}, None),  # a tensor of terabytes
        ({"w": {**FLOATS, "shape": [2**32, 2**32]}}, None),  # a size that is 0 modulo 2^64
        ({"w": FLOATS, "v": FLOATS}, None),  # overlapping
        ({"w": {**FLOATS, "data_offsets": [8, 0]}}, None),
        ({"w": {**FLOATS, "shape": [-2]}}, None),
        ({"w": {**FLOATS, "dtype": "object"}}, None),
        ({"__metadata__": {"a": {"b": "c"}}}, None),
        ({}, None),  # bytes that no tensor has
    ],
)
def test_safetensors_that_claim_what_they_have_not(tmp_path: Path, header: dict[str, Any], length: int | None) -> None:
    with pytest.raises(ValueError, match="no complete safetensors file .* copy or make it again"):
        read_tensors(safetensors(tmp_path / "x", header, length=length))


def test_a_network_is_given_up_once_it_outgrows_its_weights(tmp_path: Path) -> None:
    save_file(nn.Linear(30, 30).state_dict(), tmp_path / "w.safetensors")
    for weights in (tmp_path, tmp_path / "w.safetensors"):
        with no_larger_than(weights):
            nn.Linear(30, 30)
        with pytest.raises(ValueError, match="which are not in its .* bytes"), no_larger_than(weights):
            nn.Linear(30, 3_000_000)  # which are never filled
    with pytest.raises(ValueError, match="describes a network of more than"), no_larger_than(tmp_path):
        nn.ModuleList(nn.Linear(30, 30) for _ in range(10**9))
    nn.Linear(300, 300)  # outside of the block nothing is counted
