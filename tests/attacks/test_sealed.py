"""Sealed files: a wrong key, or any change at all, is an error; without a key there is nothing to read."""

from __future__ import annotations

import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bits, tensors
from support import ROOT, mapping_of_tensor

from tr_mmap import BadKey, Fault, MissingPackage, TSRFormatError, load, read_header, save
from tr_mmap.tsr import sealed

KEY = bytes(range(32))
OTHER = bytes(32)
CHUNK = sealed.CHUNK_NBYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sealed.tsr"


def fault_of(path: Path, key: bytes | None = KEY) -> Fault:
    with pytest.raises(TSRFormatError) as caught:
        load(path, key=key)
    return caught.value.fault


# -- there and back -------------------------------------------------------------------------------------------------


@given(tensors(), st.sampled_from(["numpy", "torch"]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_tensor_comes_back_bit_for_bit(tensor: object, framework: str, checksum: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.tsr"
        save(path, tensor, key=KEY, checksum=checksum)
        back = load(path, key=KEY, framework=framework, verify=True)
        assert bits(back) == bits(tensor)
        assert tuple(back.shape) == tuple(tensor.shape)
        assert read_header(path, key=KEY).shape == tuple(tensor.shape)


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK - 257, CHUNK - 256, CHUNK - 255, CHUNK, 2 * CHUNK - 256, 3 * CHUNK + 5])
def test_sizes_around_a_chunk_come_back(path: Path, nbytes: int) -> None:
    data = np.frombuffer(random.Random(nbytes).randbytes(nbytes), np.uint8)
    save(path, data, key=KEY)
    assert np.array_equal(load(path, key=KEY), data)
    chunks = -(-(nbytes + 256) // CHUNK)
    assert path.stat().st_size == 64 + nbytes + 256 + 16 * chunks


def test_nothing_of_the_tensor_can_be_seen_in_the_file(path: Path) -> None:
    save(path, np.full((12345, 7), 0x4142434445464748), key=KEY)
    raw = path.read_bytes()
    assert raw[:4] == b"TSRE"
    for secret in (b"HGFEDCBA", struct.pack("<q", 12345), b"TSR!", KEY[:8]):
        assert secret not in raw


def test_the_same_tensor_sealed_twice_is_never_the_same_file(path: Path, tmp_path: Path) -> None:
    save(path, np.zeros(100), key=KEY)
    save(tmp_path / "again.tsr", np.zeros(100), key=KEY)
    one, two = path.read_bytes(), (tmp_path / "again.tsr").read_bytes()
    assert sum(a == b for a, b in zip(one[64:], two[64:], strict=True)) < len(one) // 20


def test_another_program_can_open_it_from_the_specification_alone(path: Path) -> None:
    import hashlib

    array = np.arange(300_000.0)
    save(path, array, key=KEY)
    raw = path.read_bytes()
    nbytes, salt = struct.unpack_from("<Q32s", raw, 16)
    cipher = AESGCM(hashlib.blake2b(salt, key=KEY, digest_size=32, person=b"tr_mmap sealed 1").digest())
    inner, position, number = b"", 64, 0
    while position < len(raw):
        inner += cipher.decrypt(number.to_bytes(12, "little"), raw[position : position + (1 << 20) + 16], raw[:64])
        position += (1 << 20) + 16
        number += 1
    assert len(inner) == nbytes
    assert inner[:8] == b"TSR!\2\0\0\0"
    assert inner[256:] == array.tobytes()


def test_what_is_loaded_is_private_memory_read_only_in_numpy_and_not_in_torch(path: Path) -> None:
    save(path, np.arange(1_000_000.0), key=KEY)
    array = load(path, key=KEY)
    assert mapping_of_tensor(array).inode == 0
    assert not array.flags.writeable
    assert array.flags.aligned
    tensor = load(path, key=KEY, framework="torch")
    tensor += 1
    assert torch.equal(tensor, torch.arange(1_000_000.0, dtype=torch.float64) + 1)
    assert load(path, key=KEY)[0] == 0


# -- wrong keys, and none -------------------------------------------------------------------------------------------


def test_without_a_key_a_sealed_file_says_that_it_is_one(path: Path) -> None:
    save(path, np.zeros(3), key=KEY)
    assert fault_of(path, None) is Fault.SEALED
    with pytest.raises(TSRFormatError, match="key") as caught:
        read_header(path)
    assert caught.value.fault is Fault.SEALED


def test_a_wrong_key_is_an_error(path: Path) -> None:
    save(path, np.zeros(3), key=KEY)
    assert fault_of(path, OTHER) is Fault.SEAL_BROKEN
    for bit in range(256):
        key = bytearray(KEY)
        key[bit // 8] ^= 1 << bit % 8
        assert fault_of(path, bytes(key)) is Fault.SEAL_BROKEN
    with pytest.raises(TSRFormatError):
        read_header(path, key=OTHER)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_key_refuses_a_file_that_anybody_may_have_written(path: Path, version: int) -> None:
    save(path, np.zeros(3, "<f4"), version=version)
    assert fault_of(path) is Fault.NOT_SEALED
    with pytest.raises(TSRFormatError) as caught:
        read_header(path, key=KEY)
    assert caught.value.fault is Fault.NOT_SEALED


@pytest.mark.parametrize("key", [b"", b"x" * 16, b"x" * 31, b"x" * 33, "x" * 32, 5, [1] * 32], ids=repr)
def test_what_is_no_key_is_refused_before_a_file_exists_and_not_shown(path: Path, key: object) -> None:
    for action in (lambda: save(path, np.zeros(3), key=key), lambda: load(path, key=key)):
        with pytest.raises(BadKey, match="32 bytes") as caught:
            action()
        assert "xxx" not in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("version", [0, 1])
def test_older_layouts_cannot_be_sealed(path: Path, version: int) -> None:
    with pytest.raises(TSRFormatError) as caught:
        save(path, np.zeros(3, "<f4"), version=version, key=KEY)
    assert caught.value.fault is Fault.UNREPRESENTABLE
    assert not path.exists()


# -- changes --------------------------------------------------------------------------------------------------------


def test_every_changed_bit_is_an_error(path: Path) -> None:
    save(path, np.arange(4, dtype="<i2"), key=KEY)
    raw = path.read_bytes()
    assert len(raw) == 64 + 256 + 8 + 16
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert isinstance(fault_of(path), Fault)
    path.write_bytes(raw)
    assert load(path, key=KEY).tolist() == [0, 1, 2, 3]


def test_every_cut_and_every_byte_too_many_is_an_error(path: Path) -> None:
    save(path, np.arange(4, dtype="<i2"), key=KEY)
    raw = path.read_bytes()
    for nbytes in range(len(raw)):
        path.write_bytes(raw[:nbytes])
        expected = Fault.NOT_SEALED if nbytes < 4 else Fault.TOO_SHORT if nbytes < 64 else Fault.TRUNCATED
        assert fault_of(path) is expected
    path.write_bytes(raw + b"\0")
    assert fault_of(path) is Fault.TRAILING_BYTES


def test_chunks_that_are_moved_repeated_dropped_or_of_another_file_are_an_error(path: Path, tmp_path: Path) -> None:
    data = random.Random(5).randbytes(4 * CHUNK - 256)
    save(path, np.frombuffer(data, np.uint8), key=KEY)
    raw = path.read_bytes()
    size = CHUNK + 16
    chunks = [raw[64 + index * size : 64 + (index + 1) * size] for index in range(4)]
    save(tmp_path / "other.tsr", np.frombuffer(data, np.uint8), key=KEY)
    other = (tmp_path / "other.tsr").read_bytes()
    foreign = other[64 + size : 64 + 2 * size]
    for order in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 1, 3], [0, 0, 0, 0], [0, 1, 3, 2]):
        path.write_bytes(raw[:64] + b"".join(chunks[index] for index in order))
        assert fault_of(path) is Fault.SEAL_BROKEN
    path.write_bytes(raw[:64] + chunks[0] + foreign + chunks[2] + chunks[3])
    assert fault_of(path) is Fault.SEAL_BROKEN
    path.write_bytes(other[:64] + raw[64:])  # another file's header, of the same claims
    assert fault_of(path) is Fault.SEAL_BROKEN
    for count in (1, 2, 3):  # cut at a chunk, and the header made to agree
        head = bytearray(raw[:64])
        struct.pack_into("<Q", head, 16, count * CHUNK)
        path.write_bytes(bytes(head) + b"".join(chunks[:count]))
        assert fault_of(path) is Fault.SEAL_BROKEN


@pytest.mark.parametrize(
    ("offset", "code", "value", "fault"),
    [
        (4, "i", 2, Fault.BAD_VERSION),
        (8, "i", 65, Fault.BAD_HEADER_SIZE),
        (12, "I", 1, Fault.BAD_FLAGS),
        (16, "Q", 255, Fault.BAD_PAYLOAD_SIZE),
        (16, "Q", 2**40, Fault.TRUNCATED),
        (16, "Q", 2**64 - 1, Fault.TRUNCATED),
        (56, "Q", 1, Fault.BAD_RESERVED),
    ],
)
def test_a_sealed_header_of_the_wrong_form_says_what_is_wrong(
    path: Path, offset: int, code: str, value: int, fault: Fault
) -> None:
    save(path, np.zeros(3), key=KEY)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<" + code, raw, offset, value)
    path.write_bytes(raw)
    assert fault_of(path) is fault


def test_a_sealed_file_that_claims_a_terabyte_costs_nothing(path: Path) -> None:
    save(path, np.zeros(3), key=KEY)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<Q", raw, 16, 2**40)
    path.write_bytes(raw)
    os.truncate(path, 64 + 2**40 + 16 * 2**20)  # and is as long as it says: holes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fault_of(path) is Fault.SEAL_BROKEN
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 8 << 10  # KiB


def test_a_sealed_file_inside_another_form_is_refused(path: Path) -> None:
    """Who has the key can seal anything; a reader takes only what the writer would have sealed."""
    from tr_mmap.tsr.dtypes import by_name
    from tr_mmap.tsr.header import encode_v1, encode_v2

    f32 = by_name("float32")
    for header in (
        encode_v2(f32, (2,), created_ns=0, is_segment=True),
        encode_v2(f32, (2,), created_ns=0, payload_offset=512),
        encode_v1(f32, (2,)).ljust(256, b"\0"),
        bytes(256),
    ):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            sealed.write(fd, KEY, header, memoryview(bytes(8)))
        finally:
            os.close(fd)
        assert isinstance(fault_of(path), Fault)


def test_a_sealed_payload_whose_checksum_was_wrong_before_is_found_by_verify(path: Path) -> None:
    from tr_mmap.tsr.dtypes import by_name
    from tr_mmap.tsr.header import encode_v2

    header = encode_v2(by_name("uint8"), (8,), created_ns=0, payload_checksum=1)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        sealed.write(fd, KEY, header, memoryview(bytes(8)))
    finally:
        os.close(fd)
    with pytest.raises(TSRFormatError) as caught:
        load(path, key=KEY, verify=True)
    assert caught.value.fault is Fault.PAYLOAD_CHECKSUM


# -- the package ----------------------------------------------------------------------------------------------------


def test_without_the_package_the_error_says_how_to_get_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for action in (lambda: save(path, np.zeros(3), key=KEY), lambda: load(path, key=KEY)):
        with pytest.raises(MissingPackage, match=r"pip install 'tr_mmap\[crypto\]'") as caught:
            action()
        assert caught.value.package == "cryptography"
    assert not path.exists()


def test_who_uses_no_key_does_not_import_the_package() -> None:
    program = (
        "import sys, tempfile, numpy, tr_mmap\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        "    tr_mmap.save(d + '/x', numpy.zeros(3)); tr_mmap.load(d + '/x')\n"
        "sys.exit('cryptography' in sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environ)
