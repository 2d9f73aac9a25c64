"""Files, C++ against Python: the same bytes, the same faults."""

from __future__ import annotations

import filecmp
import os
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import make_vectors
import ml_dtypes
import numpy as np
import pytest
from cpp_programs import VECTORS

import tr_mmap
from tr_mmap.tsr import dtypes
from tr_mmap.tsr.header import decode

pytestmark = pytest.mark.timeout(400)  # the first test that needs the suite compiles it


def test_vectors_are_what_their_script_makes(tmp_path: Path) -> None:
    make_vectors.main(tmp_path / "again")
    made = sorted(each.relative_to(tmp_path / "again") for each in (tmp_path / "again").rglob("*") if each.is_file())
    kept = sorted(each.relative_to(VECTORS) for each in VECTORS.rglob("*") if each.is_file())
    assert made == kept
    _, differing, missing = filecmp.cmpfiles(tmp_path / "again", VECTORS, [str(each) for each in made], shallow=False)
    assert (differing, missing) == ([], [])


def test_vectors_cover_every_fault_that_a_reader_of_files_can_find(vectors: Any) -> None:
    found = {each["fault"] for each in vectors[1]["bad"]}
    assert set(tr_mmap.Fault) - found == {
        tr_mmap.Fault.UNREPRESENTABLE,  # a writer's
        tr_mmap.Fault.NO_CHECKSUM,  # of files that are right
        tr_mmap.Fault.NOT_SEALED,  # of readers with a key
        tr_mmap.Fault.SEAL_BROKEN,
    }


def test_python_reads_the_vectors(vectors: Any) -> None:
    folder, index = vectors
    for each in index["good"]:
        path = folder / each["file"]
        header = tr_mmap.read_header(path)
        found = (header.version, header.dtype.name, list(header.shape), header.seq, header.payload_offset)
        assert found == (each["version"], each["dtype"], each["shape"], each["seq"], each["offset"]), each
        assert (header.payload_checksum is not None, header.is_segment) == (each["has_checksum"], each["is_segment"])
        array = tr_mmap.load(path, verify=each["has_checksum"])
        assert list(array.shape) == each["shape"], each
        assert zlib.crc32(array.tobytes()) == each["payload_crc32"], each
    for each in index["bad"]:
        path = folder / each["file"]
        if each["only_verified"]:
            tr_mmap.load(path)
        with pytest.raises(tr_mmap.TSRFormatError) as caught:
            tr_mmap.load(path, verify=each["only_verified"])
        assert caught.value.fault == each["fault"], each


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, for "a"
def test_both_know_the_same_names_of_dtypes(ask: Any) -> None:
    """Those of numpy, with every byte order, and some that are nearly right."""
    names = {name for name in np.sctypeDict if isinstance(name, str)} | set(np.typecodes["All"])
    names |= {f"{kind}{size}" for kind in "?bBcdefiuV" for size in (0, 1, 2, 3, 4, 8, 16)} | {
        d.name for d in dtypes.TABLE
    }
    names |= {order + name for order in "<>=|!" for name in names} | {"", "<", " f4", "f4 ", "F4", "float_", "complex_"}
    names -= {"complex_", "float_"}  # numpy 2 has none of them, numpy 1 has
    listed = sorted(names)
    found = ask("dtypes", "\n".join([*listed, "end"])).split("\n")[:-2]
    assert dict(zip(listed, found, strict=True)) == {name: _python_dtype(name) for name in listed}


def _python_dtype(name: str) -> str:
    try:
        return dtypes.resolve(name).name
    except tr_mmap.UnsupportedTensor:
        return "-"


def test_cpp_reads_the_vectors(ask: Any, vectors: Any) -> None:
    folder, index = vectors
    assert ask("vectors", folder) == f"{len(index['good'])} good, {len(index['bad'])} bad\n"


def _timeless(data: bytes) -> bytes:
    """A file without the moment of its making, and without the header checksum over it."""
    return data if data[:8] != b"TSR!\2\0\0\0" else data[:40] + bytes(8) + data[48:60] + bytes(4) + data[64:]


def test_both_write_the_same_bytes(ask: Any, vectors: Any, tmp_path: Path) -> None:
    folder, index = vectors
    out = tmp_path / "out"
    out.mkdir()
    ask("rewrite", folder, out)
    for each in index["good"]:
        ours = tmp_path / "ours.tsr"
        array = tr_mmap.load(folder / each["file"])
        tr_mmap.save(ours, array, version=each["version"], checksum=each["has_checksum"])
        theirs = out / Path(each["file"]).name
        assert _timeless(theirs.read_bytes()) == _timeless(ours.read_bytes()), each
        tr_mmap.read_header(theirs)


def _mutants(count: int, seed: int) -> Iterator[tuple[bytes, int]]:
    """Headers with a few changes, most of them with a right checksum, and file sizes that fit more or less."""
    source = random.Random(seed)
    seeds = [path.read_bytes() for path in sorted(VECTORS.rglob("*.tsr"))]
    values = [0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 20, 21, 64, 255, 256, 257, 512, 4096, 2**31 - 1, 2**31, 2**32 - 1]
    values += [2**32, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    for _ in range(count):
        data = bytearray(source.choice(seeds))
        size = len(data)
        for _ in range(source.randrange(4)):
            if not data:
                break
            at = source.randrange(min(len(data), 256))
            kind = source.randrange(4)
            if kind == 0:
                data[at] ^= 1 << source.randrange(8)
            elif kind == 1:
                width = source.choice((4, 8))
                at -= at % width
                value = struct.pack("<Q", source.choice(values))[:width]
                data[at : at + width] = value[: len(data) - at]
            elif kind == 2:
                del data[source.randrange(len(data)) :]
            else:
                size = max(0, size + source.choice((-1, 1, 64, 4096)))
        if len(data) >= 256 and source.random() < 0.8:
            data[60:64] = struct.pack("<I", zlib.crc32(data[128:256], zlib.crc32(data[:60])))
        yield bytes(data[:256]), size


def _verdict(raw: bytes, file_nbytes: int) -> str:
    try:
        header = decode(raw, file_nbytes=file_nbytes)
    except tr_mmap.TSRFormatError as error:
        return error.fault
    return f"{'x'.join(map(str, header.shape)) or '()'} {header.dtype.name}"


def test_both_give_the_same_verdict_on_any_header(ask: Any, tmp_path: Path) -> None:
    mutants = list(_mutants(20_000, seed=4))
    path = tmp_path / "mutants"
    path.write_bytes(b"".join(struct.pack("<QQ", size, len(raw)) + raw for raw, size in mutants))
    theirs = ask("faults", path).splitlines()
    assert len(theirs) == len(mutants)
    for (raw, size), verdict in zip(mutants, theirs, strict=True):
        assert _verdict(raw, size) == verdict, raw.hex()
    assert len(set(theirs)) > 20  # they are not all refused for one reason


def test_small_floats_are_those_of_ml_dtypes(ask: Any, tmp_path: Path) -> None:
    bits = np.random.default_rng(7).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32).copy()
    values[:5000] = np.random.default_rng(8).standard_normal(5000, dtype=np.float32)
    values[:8] = [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 1e-45]
    values[8:264] = np.ldexp(np.float32(1.5), np.arange(-128, 128))  # ties, for a type without a mantissa
    values[264:4360] = np.arange(4096).astype(np.float16).astype(np.float32) + np.float32(0.5)  # and for the others
    path = tmp_path / "floats"
    path.write_bytes(values.tobytes())
    for line in ask("lowfloats", path).splitlines():
        name, *numbers = line.split()
        dtype = np.dtype(np.float16 if name == "float16" else getattr(ml_dtypes, name))
        kind = np.uint8 if dtype.itemsize == 1 else np.uint16
        count = 256**dtype.itemsize
        decoded = np.array(numbers[:count], np.float32)
        np.testing.assert_array_equal(decoded, np.arange(count).astype(kind).view(dtype).astype(np.float32), name)
        encoded = np.array(numbers[count:], np.int64).astype(kind)
        with np.errstate(all="ignore"):
            expected = values.astype(dtype)
        is_number = ~np.isnan(expected.astype(np.float32))
        assert np.isnan(encoded.view(dtype).astype(np.float32)[~is_number]).all(), name
        np.testing.assert_array_equal(encoded[is_number], expected.view(kind)[is_number], name)


def _verdict_on_file(data: bytes) -> str:
    """What load_tsr is to say of a file."""
    try:
        header = decode(data[:256], file_nbytes=len(data))
    except tr_mmap.TSRFormatError as error:
        return error.fault
    crc = zlib.crc32(data[header.payload_offset : header.file_nbytes])
    if header.payload_checksum not in (None, crc):
        return tr_mmap.Fault.PAYLOAD_CHECKSUM
    return f"{'x'.join(map(str, header.shape)) or '()'} {header.dtype.name} {crc}"


@pytest.mark.long
def test_mutated_files_are_to_load_tsr_what_they_are_to_python(
    suite: Path, vectors: Any, is_full: bool, figures: Callable[[str], None]
) -> None:
    """And mutated messages do no harm."""
    count = 1_000_000 if is_full else 10_000
    reader, writer = os.pipe()
    arguments = [suite, "fuzz", str(count), "1", vectors[0], f"/dev/fd/{writer}"]
    process = subprocess.Popen(arguments, pass_fds=[writer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    verdicts: Counter[str] = Counter()
    try:
        with open(reader, "rb") as records:
            while size := records.read(8):
                data = records.read(int.from_bytes(size, "little"))
                theirs = records.read(int.from_bytes(records.read(8), "little")).decode()
                assert theirs == _verdict_on_file(data), data[:256].hex()
                verdicts["accepted" if " " in theirs else theirs] += 1
    finally:
        if sys.exc_info()[0] is not None:
            process.kill()
        text, errors = process.communicate()
    assert process.returncode == 0, errors
    assert text.startswith(f"{count} headers, {verdicts['accepted']} accepted\n{count // 2} messages\n"), text
    assert verdicts.total() == count
    reachable = set(tr_mmap.Fault) - {"unrepresentable", "no_checksum", "not_sealed", "seal_broken"}
    assert set(verdicts) == {"accepted", *map(str, reachable)}
    figures(f"{count} headers\n" + "\n".join(f"{verdict}: {number}" for verdict, number in verdicts.most_common()))
