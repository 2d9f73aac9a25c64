"""Hostile TSR files by the million: makes them, feeds them to the readers, and judges what comes back.

A file is judged by a second reader, written from the specification alone (``_meaning``): whatever the library accepts
must be one of the good files in every byte that means something, and must come back as exactly the elements that the
specification says are there. Run as a program it prints what it did: see ``tools/fuzz_headers --help``.

Never imports the library's codec but its two entries, ``load`` and ``read_header``, and the error type.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tr_mmap import TSRFormatError, load, read_header
from tr_mmap.errors import Fault
from tr_mmap.tsr import files
from tr_mmap.tsr.dtypes import TABLE

T = TypeVar("T")

ITEMSIZES: Final = {each.code: each.itemsize for each in TABLE}
NAMES: Final = {each.code: each.name for each in TABLE}
MAX_RSS_GROWTH_NBYTES: Final = 1 << 20
_WARM_UP: Final = 20_000  # caches, arenas and code that is imported when it is first used

# Where v2's fields are, with their struct codes: the specification's table.
FIELDS_V2: Final = (
    [(0, "I"), (4, "i"), (8, "i"), (12, "I"), (16, "i"), (20, "i"), (24, "Q"), (32, "Q"), (40, "Q"), (48, "Q")]
    + [(56, "I"), (60, "I"), (64, "Q"), (72, "Q"), (80, "Q"), (88, "Q"), (96, "Q"), (104, "Q"), (112, "Q"), (120, "Q")]
    + [(128 + 8 * index, "q") for index in range(16)]
)
FIELDS_V1: Final = [(offset, "i") for offset in range(0, 40, 4)] + [(40, "q"), (48, "q"), (56, "q")]
FIELDS_V0: Final = [(offset, "i") for offset in range(0, 28, 4)]
INTERESTING: Final = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 20, 21, 28, 63, 64, 65, 127, 128, 255, 256, 257, 512, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1),
    *(-1, -2, -4, -(2**31), -(2**63)),
)
_LAYOUTS: Final = {b"TSR\0\1": "v0", b"TSR!\1": "v1", b"TSR!\2": "v2", b"TSRE\1": "sealed"}
SEGMENT: Final = 2
CHECKSUM: Final = 1


def _v2(code: int, shape: tuple[int, ...], payload: bytes, *, flags: int = 0, offset: int = 256, seq: int = 1) -> bytes:
    count = int(np.prod(shape, dtype=object))
    dims = struct.pack("<16q", *shape, *(0,) * (16 - len(shape)))
    crc = zlib.crc32(payload) if flags & CHECKSUM else 0
    fixed = struct.pack(
        "<4siiIiiQQQQI", b"TSR!", 2, 256, flags, code, len(shape), len(payload), count, 1_700_000_000, crc, offset
    )
    live = struct.pack("<I8Q", zlib.crc32(fixed + dims), seq, seq, 0, 0, 0, 0, 0, seq)
    return fixed + live + dims + bytes(offset - 256) + payload


def _v1(code: int, shape: tuple[int, ...], payload: bytes) -> bytes:
    dims = (1,) * (4 - len(shape)) + shape
    count = int(np.prod(shape, dtype=object))
    return struct.pack("<4s3i2i4i3q", b"TSR!", 1, 64, 0, code, len(shape), *dims, count, 0, 0) + payload


def _v0(code: int, shape: tuple[int, ...], payload: bytes) -> bytes:
    return struct.pack("<4sii4i", b"TSR\0", 1, code, *(1,) * (4 - len(shape)), *shape) + payload


def good_files() -> list[bytes]:
    """One file and more of each layout; every dtype, every number of dimensions, empty, scalar, segments."""
    files = []
    data = random.Random(1).randbytes(256)
    for code, itemsize in ITEMSIZES.items():
        files.append(_v2(code, (2, 3), data[: 6 * itemsize], flags=CHECKSUM))
        if code <= 8:
            files += [_v1(code, (3, 2), data[: 6 * itemsize]), _v0(code, (1, 2, 3), data[: 6 * itemsize])]
    for ndim in range(17):
        files.append(_v2(8, (1,) * ndim, data[:1]))
    files += [_v2(1, (0, 5), b""), _v1(1, (0,), b""), _v0(6, (2, 0, 1, 1), b""), _v1(6, (), data[:8])]
    files += [_v2(6, (4,), data[:32], offset=512), _v2(1, (8,), data[:32], flags=SEGMENT, seq=9) + bytes(96)]
    files.append(_v2(1, (8,), data[:32], flags=SEGMENT | CHECKSUM, seq=10))
    return files


# -- the second reader ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """What the specification says that a file holds."""

    version: int
    code: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    is_segment: bool


def meaning_of(raw: bytes, file_nbytes: int) -> Meaning:
    """Read a file that the library has accepted. Fails an assertion if the specification would not have it so."""
    if raw[:8] == b"TSR!\x02\0\0\0":
        header_nbytes, flags, code, ndim = struct.unpack_from("<iIii", raw, 8)
        nbytes, count, _created, crc = struct.unpack_from("<4Q", raw, 24)
        offset, checksum = struct.unpack_from("<II", raw, 56)
        seq, layout_seq, lease, guest, a, b, c, again = struct.unpack_from("<8Q", raw, 64)
        dims = struct.unpack_from("<16q", raw, 128)
        assert header_nbytes == 256
        assert flags < 4
        assert checksum == zlib.crc32(raw[:60] + raw[128:256])
        assert 0 < seq == again < 2**64 - 1
        assert (a, b, c) == (0, 0, 0)
        assert offset >= 256
        assert offset % 256 == 0
        assert crc < 2**32 if flags & CHECKSUM else crc == 0
        is_segment = bool(flags & SEGMENT)
        assert is_segment or (lease, guest, layout_seq) == (0, 0, seq)
        assert 0 <= ndim <= 16
        assert not any(dims[ndim:])
        shape, version = dims[:ndim], 2
    elif raw[:8] == b"TSR!\x01\0\0\0":
        header_nbytes, _, code, ndim, *small = struct.unpack_from("<iiii4i", raw, 8)
        (count,) = struct.unpack_from("<q", raw, 40)
        assert header_nbytes == 64
        assert 0 <= ndim <= 4
        assert all(size == 1 for size in small[: 4 - ndim])
        shape, offset, version, is_segment, nbytes = tuple(small[4 - ndim :]), 64, 1, False, None
    else:
        assert raw[:8] == b"TSR\0\x01\0\0\0"
        code, *small = struct.unpack_from("<i4i", raw, 8)
        shape, offset, version, is_segment, nbytes, count = tuple(small), 28, 0, False, None, None
    assert code in ITEMSIZES
    assert version == 2 or code <= 8
    assert all(size >= 0 for size in shape)
    product = 1
    for size in shape:
        product *= size
    assert count in (None, product)
    wanted = product * ITEMSIZES[code]
    assert nbytes in (None, wanted)
    assert file_nbytes >= offset + wanted if is_segment else file_nbytes == offset + wanted
    return Meaning(version, code, shape, offset, wanted, is_segment)


def _attempt(action: Callable[[str], T], path: str) -> tuple[T | None, Fault | None]:
    try:
        return action(path), None
    except TSRFormatError as refused:
        return None, refused.fault


def judge(path: str, raw: bytes) -> Fault | None:
    """Feed a file to both readers: the fault that refused it, or None if it was accepted for what it is.

    Raises:
        AssertionError: the readers disagree with each other, or with the specification.
        Exception: any other means that the library let a wrong one out.
    """
    header, fault = _attempt(read_header, path)
    array, again = _attempt(load, path)
    assert fault is again, f"read_header says {fault}, load {again}"
    if header is None or array is None:
        assert type(fault) is Fault
        return fault
    meant = meaning_of(raw, len(raw))
    found = (header.version, header.dtype.code, header.shape, header.payload_offset, header.payload_nbytes)
    assert found == (meant.version, meant.code, meant.shape, meant.offset, meant.nbytes)
    assert header.is_segment is meant.is_segment
    assert array.shape == meant.shape
    assert array.dtype.name == NAMES[meant.code]
    assert array.tobytes() == raw[meant.offset : meant.offset + meant.nbytes]
    return None


# -- mutations ------------------------------------------------------------------------------------------------------


class Mutants:
    """An endless source of files, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._good = good_files()

    def next(self) -> tuple[str, bytes]:
        """The names of what was done, and the file."""
        pick = self._random.random
        data = bytearray(self._random.choice(self._good))
        names = []
        for _ in range(1 + int(pick() * pick() * 4)):
            name, change = self._random.choice(_CHANGES)
            data = change(self, data)
            names.append(name)
        # Else the header's checksum would hide every deeper check of v2.
        if len(data) >= 256 and data[:8] == b"TSR!\x02\0\0\0" and pick() < 0.7:
            struct.pack_into("<I", data, 60, zlib.crc32(data[128:256], zlib.crc32(data[:60])))
            names.append("reseal")
        return "+".join(names), bytes(data)

    def _flip(self, data: bytearray) -> bytearray:
        for _ in range(self._random.choice((1, 1, 1, 2, 8))):
            if data:
                position = int(self._random.random() * min(len(data), 256))
                data[position] ^= 1 << int(self._random.random() * 8)
        return data

    def _bytes(self, data: bytearray) -> bytearray:
        for _ in range(self._random.choice((1, 1, 2, 4))):
            if data:
                data[int(self._random.random() * min(len(data), 256))] = int(self._random.random() * 256)
        return data

    def _field(self, data: bytearray) -> bytearray:
        fields = FIELDS_V0 if data[:4] == b"TSR\0" else FIELDS_V1 if data[4:5] == b"\x01" else FIELDS_V2
        offset, code = self._random.choice(fields)
        size = 4 if code in "iI" else 8
        if offset + size > len(data):
            return data
        if self._random.random() < 0.3:  # a neighbour of what is there
            (old,) = struct.unpack_from("<" + code, data, offset)
            value = old + self._random.choice((-1, 1, -256, 256))
        else:
            value = self._random.choice(INTERESTING)
        data[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        return data

    def _truncate(self, data: bytearray) -> bytearray:
        return data[: int(self._random.random() * (len(data) + 1))]

    def _extend(self, data: bytearray) -> bytearray:
        return data + self._random.randbytes(self._random.choice((1, 4, 28, 64, 256, 300)))

    def _other_header(self, data: bytearray) -> bytearray:
        other = self._random.choice(self._good)
        nbytes = {b"TSR\0\x01": 28, b"TSR!\x01": 64}.get(bytes(other[:5]), 256)
        return bytearray(other[:nbytes]) + data[nbytes:]

    def _splice(self, data: bytearray) -> bytearray:
        other = self._random.choice(self._good)
        cut = 8 * int(self._random.random() * 33)
        return data[:cut] + other[cut:]

    def _magic(self, data: bytearray) -> bytearray:
        magic = self._random.choice((b"TSR!\1", b"TSR!\2", b"TSR\0\1", b"TSRE\1", b"TSR!\3"))
        data[:8] = magic + b"\0\0\0"
        return data

    def _claim(self, data: bytearray) -> bytearray:
        """Every size says terabytes, and all agree."""
        code = self._random.choice(list(ITEMSIZES))
        shape = tuple(self._random.choice((2**20, 2**31, 2**40)) for _ in range(self._random.choice((1, 2))))
        count = int(np.prod(shape, dtype=object))
        head = bytearray(_v2(code, (0,) * len(shape), b""))
        struct.pack_into("<QQ", head, 24, count * ITEMSIZES[code] % 2**64, count % 2**64)
        struct.pack_into(f"<{len(shape)}q", head, 128, *shape)
        struct.pack_into("<I", head, 60, zlib.crc32(head[128:], zlib.crc32(head[:60])))
        return head + data[256:]

    def _nothing(self, data: bytearray) -> bytearray:
        return data


_CHANGES: Final = (
    [("flip", Mutants._flip)] * 4
    + [("field", Mutants._field)] * 6
    + [("bytes", Mutants._bytes)] * 2
    + [("truncate", Mutants._truncate), ("extend", Mutants._extend), ("other_header", Mutants._other_header)]
    + [("splice", Mutants._splice), ("magic", Mutants._magic), ("claim", Mutants._claim), ("nothing", Mutants._nothing)]
)


# -- the run --------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run did."""

    headers: int = 0
    accepted: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    rss_growth_nbytes: int = 0
    seconds: float = 0.0


def _rss_nbytes() -> int:
    gc.collect()
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


class Target:
    """A file that is filled again and again, which is ten times as fast as making one each time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def put(self, raw: bytes) -> None:
        os.ftruncate(self._fd, len(raw))
        os.pwrite(self._fd, raw, 0)

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def target() -> Iterator[Target]:
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="tr_fuzz_", dir=place) as directory:
        made = Target(os.path.join(directory, "mutant.tsr"))
        try:
            yield made
        finally:
            made.close()


def run(headers: int, seed: int, *, keep: str | None = None, progress: bool = False) -> Report:
    """Judge that many mutants.

    Args:
        headers: how many.
        seed: of the first of them.
        keep: a directory for the first file of each fault and layout, and the first good ones; None keeps none.
        progress: whether to print how far it is.
    """
    report = Report()
    # A reader gives a segment that is being published 85 ms to settle; one of ours never will.
    files._WAITS_S = ()  # type: ignore[misc]
    mutants = Mutants(seed)
    seen: set[str] = set()
    started = time.monotonic()
    with target() as file:
        rss = 0
        for number in range(headers):
            if number == min(_WARM_UP, headers // 5):
                rss = _rss_nbytes()
            how, raw = mutants.next()
            file.put(raw)
            try:
                fault = judge(file.path, raw)
            except BaseException:
                print(f"mutant {number} of seed {seed} ({how}): {raw.hex()}", file=sys.stderr, flush=True)
                raise
            report.headers += 1
            if fault is None:
                report.accepted += 1
            else:
                report.faults[fault] += 1
            if keep is not None:
                kind = f"{fault or 'good'}-{_LAYOUTS.get(raw[:5], 'other')}"
                if kind not in seen:
                    seen.add(kind)
                    with open(os.path.join(keep, f"{kind}.tsr"), "wb") as kept:
                        kept.write(raw)
            if progress and number % 100_000 == 99_999:
                print(f"{number + 1} headers, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        report.rss_growth_nbytes = _rss_nbytes() - rss
    report.seconds = time.monotonic() - started
    return report


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fuzz_headers", description="Feed mutated TSR files to read_header and load, and judge what comes back."
    )
    parser.add_argument("--headers", type=int, default=1_000_000, help="how many (default: a million)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same files")
    parser.add_argument("--any-growth", action="store_true", help="memory may grow, as a sanitizer lets it")
    parser.add_argument("--keep", metavar="DIRECTORY", help="put one file of each kind there")
    options = parser.parse_args(arguments)
    report = run(options.headers, options.seed, keep=options.keep, progress=sys.stderr.isatty())
    values: dict[str, Any] = {
        "headers": report.headers,
        "accepted for what they are": report.accepted,
        **{f"refused, {fault}": count for fault, count in sorted(report.faults.items())},
        "RSS growth, KiB": report.rss_growth_nbytes >> 10,
        "seconds": round(report.seconds, 1),
    }
    for name, value in values.items():
        print(f"{name}: {value}")
    if report.rss_growth_nbytes >= MAX_RSS_GROWTH_NBYTES and not options.any_growth:
        print("RSS grew by 1 MiB or more", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
