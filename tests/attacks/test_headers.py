"""A bad file is an error: one with a fault from the closed list, whatever the bytes, at no cost."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import mutants
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SHM

import tr_mmap
from tr_mmap import Fault, TSRFormatError, load, read_header
from tr_mmap.tsr import files
from tr_mmap.tsr import header as codec

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.tsr"))
TERABYTE = 2**40


@pytest.fixture
def target() -> mutants.Target:
    with mutants.target() as made:
        yield made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WAITS_S", ())


def fault_of(path: object, **options: object) -> Fault:
    with pytest.raises(TSRFormatError) as caught:
        load(path, **options)
    with pytest.raises(TSRFormatError) as of_header:
        read_header(path)
    assert of_header.value.fault is caught.value.fault
    return caught.value.fault


@pytest.mark.long
@pytest.mark.timeout(0)
def test_mutated_headers_are_refused_with_a_fault_or_are_what_they_say(
    is_full: bool, figures: Callable[[str], None]
) -> None:
    headers = 1_000_000 if is_full else 30_000
    # In a process of its own: a signal would be an answer too, and its memory is not mixed with pytest's.
    done = subprocess.run(
        [sys.executable, mutants.__file__, "--headers", str(headers), "--seed", "0"],
        capture_output=True,
        text=True,
        timeout=headers / 1000,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert f"headers: {headers}" in done.stdout
    figures(done.stdout)
    reached = {line.split(":")[0].removeprefix("refused, ") for line in done.stdout.splitlines()}
    out_of_reach = {
        Fault.UNREPRESENTABLE,
        Fault.PAYLOAD_CHECKSUM,
        Fault.NO_CHECKSUM,
        Fault.NOT_SEALED,
        Fault.SEAL_BROKEN,
    }
    assert set(Fault) - out_of_reach <= reached  # else the mutants are tame


@pytest.mark.parametrize("skipped", ["_check_extent", "_check_offset"])
def test_a_reader_that_skips_a_check_is_found(
    skipped: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codec, skipped, lambda *_: None)
    with pytest.raises(AssertionError):
        mutants.run(20_000, 0)
    assert "mutant" in capsys.readouterr().err


@pytest.mark.parametrize("path", CORPUS, ids=[path.stem for path in CORPUS])
def test_a_kept_file_gets_the_answer_that_it_is_named_for(path: Path, target: mutants.Target) -> None:
    raw = path.read_bytes()
    target.put(raw)
    assert str(mutants.judge(target.path, raw) or "good") == path.stem.rsplit("-", 1)[0]


@given(st.one_of(st.binary(max_size=400), st.sampled_from(CORPUS).map(Path.read_bytes)), st.data())
@settings(deadline=None, max_examples=400)
def test_any_bytes_at_all_are_refused_with_a_fault_or_are_what_they_say(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw)))
    raw = raw[:at] + data.draw(st.binary(max_size=16)) + raw[at + data.draw(st.integers(0, 16)) :]
    with mutants.target() as target:
        target.put(raw)
        mutants.judge(target.path, raw)


def _claim(shape: tuple[int, ...]) -> bytes:
    """A v2 header of bytes of that shape, right in itself."""
    return codec.encode_v2(tr_mmap.tsr.header.TABLE[7], shape, created_ns=0)


@pytest.mark.parametrize("nbytes", [TERABYTE, 2**50, 2**62])
def test_a_header_that_claims_a_terabyte_costs_nothing(target: mutants.Target, nbytes: int) -> None:
    target.put(_claim((nbytes,)) + bytes(100))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        assert fault_of(target.path) is Fault.TRUNCATED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1024  # KiB


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_file_that_is_a_terabyte_of_holes_costs_nothing(target: mutants.Target, framework: str) -> None:
    target.put(_claim((TERABYTE,)))
    os.truncate(target.path, 256 + TERABYTE)
    tensor = load(target.path, framework=framework)
    assert tuple(tensor.shape) == (TERABYTE,)
    assert int(tensor[-1]) == 0
    assert os.stat(target.path).st_blocks * 512 < 1 << 20


@pytest.mark.skipif(not SHM.is_dir(), reason="only a tmpfs has files of 2**62 bytes")
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_file_larger_than_the_address_space_is_too_large(target: mutants.Target, framework: str) -> None:
    target.put(_claim((2**62,)))
    os.truncate(target.path, 256 + 2**62)
    with pytest.raises(TSRFormatError) as caught:
        load(target.path, framework=framework)
    assert caught.value.fault is Fault.TOO_LARGE


def test_a_header_copied_onto_another_files_payload_is_refused_unless_it_fits(tmp_path: Path) -> None:
    names = []
    for index, shape in enumerate([(2, 3), (3, 2), (6, 6), ()]):
        names.append(tmp_path / f"{index}.tsr")
        tr_mmap.save(names[-1], np.full(shape, index, "<f4"), checksum=True)
    for one in names:
        for other in names:
            mixed = tmp_path / "mixed.tsr"
            mixed.write_bytes(one.read_bytes()[:256] + other.read_bytes()[256:])
            same_size = one.stat().st_size == other.stat().st_size
            if not same_size:
                assert fault_of(mixed) in (Fault.TRUNCATED, Fault.TRAILING_BYTES)
            elif one != other:  # the shapes differ, the sizes do not: only the checksum can tell
                with pytest.raises(TSRFormatError) as caught:
                    load(mixed, verify=True)
                assert caught.value.fault is Fault.PAYLOAD_CHECKSUM


def test_every_bit_of_a_v2_header_is_guarded(target: mutants.Target) -> None:
    raw = mutants.good_files()[0]
    for bit in range(8 * 256):
        data = bytearray(raw)
        data[bit // 8] ^= 1 << bit % 8
        target.put(bytes(data))
        assert isinstance(fault_of(target.path), Fault)


def test_a_resealed_header_cannot_lie_about_its_payload(target: mutants.Target) -> None:
    raw = mutants.good_files()[0]
    for offset in range(16, 40, 8):
        data = bytearray(raw)
        (value,) = struct.unpack_from("<Q", data, offset)
        struct.pack_into("<Q", data, offset, value ^ 1)
        struct.pack_into("<I", data, 60, zlib.crc32(data[128:256], zlib.crc32(data[:60])))
        target.put(bytes(data))
        assert isinstance(fault_of(target.path), Fault)
