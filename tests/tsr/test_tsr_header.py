"""Promises of the header codec: literal bytes, every fault, and no surprise from hostile bytes."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import strategies as own
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tr_mmap.errors import Fault, TSRFormatError
from tr_mmap.tsr.dtypes import TABLE, DType, by_name
from tr_mmap.tsr.header import Header, decode, encode_v0, encode_v1, encode_v2
from tr_mmap.wire import header as wire

F32 = by_name("float32")
INT32 = by_name("int32")
FLOAT64 = by_name("float64")

V0 = (
    b"TSR\0"
    b"\x01\x00\x00\x00"  # version
    b"\x01\x00\x00\x00"  # float32
    b"\x01\x00\x00\x00\x01\x00\x00\x00\x03\x00\x00\x00\x05\x00\x00\x00"  # N C H W
)
V1 = (
    b"TSR!"
    b"\x01\x00\x00\x00"  # version
    b"\x40\x00\x00\x00"  # header size
    b"\x00\x00\x00\x00"
    b"\x03\x00\x00\x00"  # int32
    b"\x02\x00\x00\x00"  # ndim
    b"\x01\x00\x00\x00\x01\x00\x00\x00\x03\x00\x00\x00\x05\x00\x00\x00"  # N C H W
    b"\x0f\x00\x00\x00\x00\x00\x00\x00"  # element count
    b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)
V2_FIXED = (
    b"TSR!"
    b"\x02\x00\x00\x00"  # version
    b"\x00\x01\x00\x00"  # header size
    b"\x01\x00\x00\x00"  # CHECKSUM
    b"\x06\x00\x00\x00"  # float64
    b"\x02\x00\x00\x00"  # ndim
    b"\x78\x00\x00\x00\x00\x00\x00\x00"  # payload bytes
    b"\x0f\x00\x00\x00\x00\x00\x00\x00"  # element count
    b"\x15\xcd\x5b\x07\x00\x00\x00\x00"  # created_ns 123456789
    b"\xef\xbe\xad\xde\x00\x00\x00\x00"  # payload checksum
    b"\x00\x02\x00\x00"  # payload offset 512
)
V2_LIVE = (
    b"\x07\x00\x00\x00\x00\x00\x00\x00"  # seq
    b"\x07\x00\x00\x00\x00\x00\x00\x00"  # layout_seq
    + bytes(40)  # lease, guest, zeros
    + b"\x07\x00\x00\x00\x00\x00\x00\x00"  # seq again
)
V2_DIMS = b"\x03\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00" + bytes(112)
V2_CRC = b"\x57\x88\x54\x78"
V2 = V2_FIXED + V2_CRC + V2_LIVE + V2_DIMS
V2_HEADER = Header(2, FLOAT64, (3, 5), 7, 512, 120, 123456789, 0xDEADBEEF, False)
SEGMENT = encode_v2(F32, (2, 3), seq=9, created_ns=1, is_segment=True)


def put(raw: bytes, offset: int, code: str, value: int) -> bytes:
    """``raw`` with one field changed, and, in v2, the header checksum made right again."""
    data = bytearray(raw)
    struct.pack_into("<" + code, data, offset, value)
    if raw[:8] == V2[:8]:
        struct.pack_into("<I", data, 60, zlib.crc32(data[128:], zlib.crc32(data[:60])))
    return bytes(data)


def fault_of(action: Callable[[], Any]) -> Fault:
    with pytest.raises(TSRFormatError) as caught:
        action()
    return caught.value.fault


# Literal bytes -----------------------------------------------------------------------------------------------------


def test_v0_header_is_these_28_bytes() -> None:
    assert encode_v0(F32, (3, 5)) == V0
    assert decode(V0, file_nbytes=28 + 60) == Header(0, F32, (1, 1, 3, 5), 1, 28, 60, 0, None, False)


def test_v1_header_is_these_64_bytes() -> None:
    assert encode_v1(INT32, (3, 5)) == V1
    assert decode(V1, file_nbytes=64 + 60) == Header(1, INT32, (3, 5), 1, 64, 60, 0, None, False)


def test_v1_scalar_is_ndim_0_and_one_element() -> None:
    raw = encode_v1(INT32, ())
    assert raw[20:40] == struct.pack("<5i", 0, 1, 1, 1, 1)
    assert decode(raw, file_nbytes=68).shape == ()


def test_v2_header_is_these_256_bytes() -> None:
    raw = encode_v2(FLOAT64, (3, 5), seq=7, payload_offset=512, created_ns=123456789, payload_checksum=0xDEADBEEF)
    assert raw == V2
    assert decode(V2, file_nbytes=512 + 120) == V2_HEADER
    assert (V2_HEADER.count, V2_HEADER.file_nbytes) == (15, 632)


def test_published_offsets_are_where_the_fields_are() -> None:
    raw = SEGMENT
    for offset in (wire.SEQ_OFFSET, wire.LAYOUT_SEQ_OFFSET, wire.SEQ_COPY_OFFSET):
        assert raw[offset : offset + 8] == b"\x09" + bytes(7)
    assert (wire.LEASE_OFFSET, wire.GUEST_OFFSET, wire.CREATED_OFFSET) == (80, 88, 40)
    assert (wire.LIVE_OFFSET, wire.LIVE_NBYTES) == (64, 64)


# Round trips -------------------------------------------------------------------------------------------------------


@given(
    own.dtypes(),
    own.shapes(),
    st.integers(1, 2**64 - 2),
    st.integers(1, 100),
    st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**32 - 1),
    st.booleans(),
)
@settings(deadline=None)
def test_what_v2_encodes_it_decodes(
    dtype: DType, shape: tuple[int, ...], seq: int, pages: int, created: int, crc: int | None, is_segment: bool
) -> None:
    raw = encode_v2(
        dtype,
        shape,
        seq=seq,
        payload_offset=256 * pages,
        created_ns=created,
        payload_checksum=crc,
        is_segment=is_segment,
    )
    header = decode(raw)
    assert header == Header(2, dtype, shape, seq, 256 * pages, header.count * dtype.itemsize, created, crc, is_segment)
    assert decode(memoryview(raw + b"payload"), file_nbytes=header.file_nbytes) == header


@given(st.sampled_from(TABLE[:8]), own.shapes(max_ndim=4))
@settings(deadline=None)
def test_what_v1_and_v0_encode_they_decode(dtype: DType, shape: tuple[int, ...]) -> None:
    assert decode(encode_v1(dtype, shape)).shape == shape
    assert decode(encode_v0(dtype, shape)).shape == (1,) * (4 - len(shape)) + shape
    assert decode(encode_v1(dtype, shape)).dtype is decode(encode_v0(dtype, shape)).dtype is dtype


def test_v1_zero_fields_are_ignored_as_other_readers_do() -> None:
    for offset, code in ((12, "i"), (48, "q"), (56, "q")):
        assert decode(put(V1, offset, code, -1), file_nbytes=124) == decode(V1)


def test_a_segment_may_be_longer_than_its_payload_and_hold_lease_guest_and_an_older_layout_seq() -> None:
    raw = put(put(put(SEGMENT, 72, "Q", 3), 80, "Q", 1), 88, "Q", 1)
    assert decode(raw, file_nbytes=1 << 20) == decode(SEGMENT)


def test_empty_tensors_and_sixteen_dims_have_headers() -> None:
    assert decode(encode_v2(F32, (0, 5), created_ns=0), file_nbytes=256).shape == (0, 5)
    assert decode(encode_v2(F32, (1,) * 16, created_ns=0), file_nbytes=260).shape == (1,) * 16


# Faults ------------------------------------------------------------------------------------------------------------

_BIG = put(put(V2, 128, "q", 2**62), 136, "q", 2**62)

DEFECTS: list[tuple[str, Fault, bytes, int | None]] = [
    ("empty", Fault.TOO_SHORT, b"", None),
    ("seven_bytes", Fault.TOO_SHORT, V2[:7], None),
    ("v0_cut", Fault.TOO_SHORT, V0[:27], None),
    ("v1_cut", Fault.TOO_SHORT, V1[:63], None),
    ("v2_cut", Fault.TOO_SHORT, V2[:255], None),
    ("magic", Fault.BAD_MAGIC, b"TSR?" + V2[4:], None),
    ("zeros", Fault.BAD_MAGIC, bytes(256), None),
    ("sealed", Fault.SEALED, b"TSRE" + bytes(252), None),
    ("v2_version_0", Fault.BAD_VERSION, put(V2, 4, "i", 0), None),
    ("v2_version_3", Fault.BAD_VERSION, put(V2, 4, "i", 3), None),
    ("v0_version_2", Fault.BAD_VERSION, put(V0, 4, "i", 2), None),
    ("v1_header_size", Fault.BAD_HEADER_SIZE, put(V1, 8, "i", 65), None),
    ("v2_header_size", Fault.BAD_HEADER_SIZE, put(V2, 8, "i", 64), None),
    ("v2_flags", Fault.BAD_FLAGS, put(V2, 12, "I", 5), None),
    ("v0_dtype_0", Fault.BAD_DTYPE, put(V0, 8, "i", 0), None),
    ("v0_dtype_9", Fault.BAD_DTYPE, put(V0, 8, "i", 9), None),
    ("v1_dtype_9", Fault.BAD_DTYPE, put(V1, 16, "i", 9), None),
    ("v2_dtype_unknown", Fault.BAD_DTYPE, put(V2, 16, "i", len(TABLE) + 1), None),
    ("v2_dtype_-1", Fault.BAD_DTYPE, put(V2, 16, "i", -1), None),
    ("v1_ndim_5", Fault.BAD_NDIM, put(V1, 20, "i", 5), None),
    ("v1_ndim_-1", Fault.BAD_NDIM, put(V1, 20, "i", -1), None),
    ("v2_ndim_17", Fault.BAD_NDIM, put(V2, 20, "i", 17), None),
    ("v2_ndim_-1", Fault.BAD_NDIM, put(V2, 20, "i", -1), None),
    ("v0_negative", Fault.BAD_DIMS, put(V0, 12, "i", -1), None),
    ("v1_negative", Fault.BAD_DIMS, put(V1, 32, "i", -3), None),
    ("v1_unused_not_1", Fault.BAD_DIMS, put(V1, 24, "i", 0), None),
    ("v2_negative", Fault.BAD_DIMS, put(V2, 128, "q", -3), None),
    ("v2_two_negative", Fault.BAD_DIMS, put(put(V2, 128, "q", -3), 136, "q", -5), None),
    ("v2_unused_not_0", Fault.BAD_DIMS, put(V2, 248, "q", 1), None),
    ("v1_count", Fault.BAD_COUNT, put(V1, 40, "q", 14), None),
    ("v2_count", Fault.BAD_COUNT, put(V2, 32, "Q", 16), None),
    ("v2_payload_size", Fault.BAD_PAYLOAD_SIZE, put(V2, 24, "Q", 128), None),
    ("v2_offset_0", Fault.BAD_OFFSET, put(V2, 56, "I", 0), None),
    ("v2_offset_300", Fault.BAD_OFFSET, put(V2, 56, "I", 300), None),
    ("v2_reserved_96", Fault.BAD_RESERVED, put(V2, 96, "Q", 1), None),
    ("v2_reserved_104", Fault.BAD_RESERVED, put(V2, 104, "Q", 1), None),
    ("v2_reserved_112", Fault.BAD_RESERVED, put(V2, 112, "Q", 1), None),
    ("segment_reserved", Fault.BAD_RESERVED, put(SEGMENT, 112, "Q", 1), None),
    ("v2_lease", Fault.BAD_RESERVED, put(V2, 80, "Q", 1), None),
    ("v2_guest", Fault.BAD_RESERVED, put(V2, 88, "Q", 1), None),
    ("v2_checksum_without_flag", Fault.BAD_RESERVED, put(V2, 12, "I", 0), None),
    ("v2_checksum_of_33_bits", Fault.BAD_RESERVED, put(V2, 48, "Q", 2**32), None),
    ("v0_too_large", Fault.TOO_LARGE, encode_v0(F32, (1,))[:12] + struct.pack("<4i", *(2**31 - 1,) * 4), None),
    ("v2_too_large", Fault.TOO_LARGE, _BIG, None),
    ("v2_too_large_though_empty", Fault.TOO_LARGE, put(put(_BIG, 20, "i", 3), 144, "q", 0), None),
    (
        "v2_too_large_with_offset",
        Fault.TOO_LARGE,
        put(encode_v2(by_name("uint8"), (2**63 - 1 - 256,), created_ns=0), 56, "I", 512),
        None,
    ),
    ("v2_header_checksum", Fault.HEADER_CHECKSUM, V2[:60] + b"\0\0\0\0" + V2[64:], None),
    ("v2_bit_flip", Fault.HEADER_CHECKSUM, V2[:44] + b"\x01" + V2[45:], None),
    ("v2_unpublished", Fault.UNPUBLISHED, put(V2, 64, "Q", 0), None),
    ("segment_unpublished", Fault.UNPUBLISHED, put(SEGMENT, 64, "Q", 0), None),
    ("segment_retired", Fault.UNPUBLISHED, put(put(SEGMENT, 64, "Q", 2**64 - 1), 120, "Q", 2**64 - 1), None),
    ("segment_unpublished_and_half_written", Fault.UNPUBLISHED, SEGMENT[:40] + bytes(88) + SEGMENT[128:], None),
    ("v2_torn", Fault.TORN, put(V2, 120, "Q", 6), None),
    ("segment_torn", Fault.TORN, put(SEGMENT, 64, "Q", 10), None),
    ("v2_layout_seq", Fault.TORN, put(V2, 72, "Q", 6), None),
    ("v0_truncated", Fault.TRUNCATED, V0, 28 + 59),
    ("v1_truncated", Fault.TRUNCATED, V1, 64 + 59),
    ("v2_truncated", Fault.TRUNCATED, V2, 512 + 119),
    ("segment_truncated", Fault.TRUNCATED, SEGMENT, 256 + 23),
    ("v0_trailing", Fault.TRAILING_BYTES, V0, 28 + 61),
    ("v1_trailing", Fault.TRAILING_BYTES, V1, 64 + 61),
    ("v2_trailing", Fault.TRAILING_BYTES, V2, 512 + 121),
]


@pytest.mark.parametrize(("fault", "raw", "file_nbytes"), [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_every_defect_is_refused_with_its_fault(fault: Fault, raw: bytes, file_nbytes: int | None) -> None:
    with pytest.raises(TSRFormatError, match=r"^some/file\.tsr: .") as caught:
        decode(raw, file_nbytes=file_nbytes, path="some/file.tsr")
    assert caught.value.fault is fault
    assert caught.value.path == "some/file.tsr"


UNWRITABLE: list[tuple[str, Fault, Callable[[], bytes]]] = [
    ("v0_dtype", Fault.UNREPRESENTABLE, lambda: encode_v0(by_name("int64"), (1,))),
    ("v1_dtype", Fault.UNREPRESENTABLE, lambda: encode_v1(by_name("bool"), (1,))),
    ("v0_ndim", Fault.UNREPRESENTABLE, lambda: encode_v0(F32, (1,) * 5)),
    ("v1_ndim", Fault.UNREPRESENTABLE, lambda: encode_v1(F32, (1,) * 5)),
    ("v1_size", Fault.UNREPRESENTABLE, lambda: encode_v1(F32, (2**31,))),
    ("v0_size_though_empty", Fault.UNREPRESENTABLE, lambda: encode_v0(F32, (0, 2**31))),
    ("v2_ndim", Fault.UNREPRESENTABLE, lambda: encode_v2(F32, (1,) * 17, created_ns=0)),
    ("v2_seq_0", Fault.UNREPRESENTABLE, lambda: encode_v2(F32, (1,), seq=0, created_ns=0)),
    ("v2_seq_large", Fault.UNREPRESENTABLE, lambda: encode_v2(F32, (1,), seq=2**64 - 1, created_ns=0)),
    ("v2_created", Fault.UNREPRESENTABLE, lambda: encode_v2(F32, (1,), created_ns=-1)),
    ("v2_crc", Fault.UNREPRESENTABLE, lambda: encode_v2(F32, (1,), created_ns=0, payload_checksum=2**32)),
    ("v2_offset", Fault.BAD_OFFSET, lambda: encode_v2(F32, (1,), created_ns=0, payload_offset=128)),
    ("v2_offset_large", Fault.BAD_OFFSET, lambda: encode_v2(F32, (1,), created_ns=0, payload_offset=2**32)),
    ("v2_negative", Fault.BAD_DIMS, lambda: encode_v2(F32, (-1,), created_ns=0)),
    ("v1_negative", Fault.BAD_DIMS, lambda: encode_v1(F32, (-1,))),
    ("v2_too_large", Fault.TOO_LARGE, lambda: encode_v2(F32, (2**61,), created_ns=0)),
    ("v1_too_large", Fault.TOO_LARGE, lambda: encode_v1(F32, (2**31 - 1,) * 4)),
]


@pytest.mark.parametrize(("fault", "action"), [d[1:] for d in UNWRITABLE], ids=[d[0] for d in UNWRITABLE])
def test_the_writer_refuses_what_the_reader_would(fault: Fault, action: Callable[[], bytes]) -> None:
    assert fault_of(action) is fault


@pytest.mark.parametrize("magic", [b"TSR3", b"TSR4"])
def test_a_newer_file_of_the_family_is_named_as_one(magic: bytes) -> None:
    for rest in (V2[4:], bytes(60), bytes(4)):
        with pytest.raises(TSRFormatError, match=f"{magic.decode()}.*newer file of the TSR family") as caught:
            decode(magic + rest, path="x.tsr")
        assert (caught.value.fault, caught.value.path) == (Fault.BAD_MAGIC, "x.tsr")


def test_every_fault_has_a_test() -> None:
    elsewhere = {
        Fault.PAYLOAD_CHECKSUM,  # needs a payload: test_tsr_files
        Fault.NO_CHECKSUM,
        Fault.NOT_SEALED,  # needs a key: attacks/test_sealed
        Fault.SEAL_BROKEN,
    }
    assert {d[1] for d in DEFECTS} | {d[1] for d in UNWRITABLE} | elsewhere == set(Fault)


def test_a_segment_header_can_be_built_before_it_is_published() -> None:
    raw = encode_v2(F32, (1,), seq=0, created_ns=0, is_segment=True)
    assert fault_of(lambda: decode(raw)) is Fault.UNPUBLISHED


# Hostile bytes -----------------------------------------------------------------------------------------------------


def _decode_or_refuse(raw: bytes, file_nbytes: int | None) -> None:
    try:
        header = decode(raw, file_nbytes=file_nbytes)
    except TSRFormatError:
        return
    # What is accepted is something that the writer would have written.
    if header.version == 2:
        again = encode_v2(
            header.dtype,
            header.shape,
            seq=header.seq,
            payload_offset=header.payload_offset,
            created_ns=header.created_ns,
            payload_checksum=header.payload_checksum,
            is_segment=header.is_segment,
        )
    else:
        again = (encode_v1 if header.version == 1 else encode_v0)(header.dtype, header.shape)
    assert decode(again) == header
    assert file_nbytes is None or file_nbytes >= header.file_nbytes


@given(
    st.sampled_from((V0, V1, V2, SEGMENT)),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=8),
    st.integers(0, 256),
    st.booleans(),
    st.none() | st.integers(0, 2**64),
)
@settings(deadline=None, max_examples=1000)
@example(V2, [], 256, True, None)
def test_mutated_headers_raise_nothing_but_format_errors(
    raw: bytes, changes: list[tuple[int, int]], cut: int, is_resealed: bool, file_nbytes: int | None
) -> None:
    data = bytearray(raw)
    for position, value in changes:
        data[position % len(data)] = value
    if is_resealed and len(data) == 256:
        struct.pack_into("<I", data, 60, zlib.crc32(data[128:], zlib.crc32(data[:60])))
    _decode_or_refuse(bytes(data) if cut == 256 else bytes(data[:cut]), file_nbytes)


@given(st.binary(max_size=300), st.none() | st.integers(0, 1000))
@settings(deadline=None)
def test_random_bytes_raise_nothing_but_format_errors(raw: bytes, file_nbytes: int | None) -> None:
    _decode_or_refuse(raw, file_nbytes)
    _decode_or_refuse(b"TSR!\x01\0\0\0" + raw, file_nbytes)


def test_a_header_that_claims_a_terabyte_costs_nothing() -> None:
    raw = encode_v2(by_name("uint8"), (2**40,), created_ns=0)
    tracemalloc.start()
    try:
        assert fault_of(lambda: decode(raw, file_nbytes=256)) is Fault.TRUNCATED
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
