"""Gzip is unpacked as the standard library does it, but never without end."""

from __future__ import annotations

import gzip
import random

import pytest

from bounds import files
from bounds.files import DamagedFile, read_bytes

SIZES = (0, 1, 1000, files._PIECE - 1, files._PIECE, files._PIECE + 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("repetitive", [True, False])
def test_whole_files_are_unpacked_and_damaged_ones_refused(size: int, repetitive: bool) -> None:
    data = bytes(size) if repetitive else random.Random(size).randbytes(size)
    packed = gzip.compress(data, 1)
    assert read_bytes(packed) == read_bytes(packed + bytes(9)) == data
    assert read_bytes(packed + packed) == data + data
    for cut in (3, 11, len(packed) // 2, len(packed) - 5, len(packed) - 1):
        with pytest.raises(DamagedFile, match="cut off"):
            read_bytes(packed[:cut])
    wrong = bytearray(packed)
    wrong[-6] ^= 1
    for damaged in (bytes(wrong), packed + b"more"):
        with pytest.raises(DamagedFile, match="damaged gzip file"):
            read_bytes(damaged)


def test_what_is_not_packed_is_left_alone() -> None:
    assert read_bytes(b"plain") == b"plain"


def test_no_more_is_unpacked_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(bytes(files._PIECE + 1))
    monkeypatch.setattr(files, "LARGEST_UNPACKED", files._PIECE + 1)
    assert len(read_bytes(packed)) == files._PIECE + 1
    monkeypatch.setattr(files, "LARGEST_UNPACKED", files._PIECE)
    with pytest.raises(DamagedFile, match="bytes unpack to more than 16 MiB"):
        read_bytes(packed)
