"""TSR header codec. Pure: bytes in, Header out, and back. Never opens, maps or allocates anything.

The docstring of :mod:`tr_mmap.tsr` specifies the layouts. ``decode`` refuses all that the encoders would not have
written. Every refusal is a :class:`TSRFormatError` that names its :class:`Fault`. A header's sizes are compared with
the size of the file before a caller uses them, so a header that claims a terabyte costs nothing.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Final, NoReturn

from ..errors import Fault, TSRFormatError
from ..wire.header import (
    DEVICE_NBYTES,
    DIMS_OFFSET,
    FLAG_CHECKSUM,
    FLAG_DEVICE,
    FLAG_SEGMENT,
    HEADER_CHECKSUM_OFFSET,
    MAGIC,
    MAGIC_V0,
    MAX_DTYPE_CODE_V1,
    MAX_HEADER_NBYTES,
    MAX_NDIM,
    MAX_NDIM_V1,
    PAYLOAD_ALIGNMENT_NBYTES,
    SEALED_MAGIC,
    SEQ_RETIRED,
    V0_HEADER_NBYTES,
    V1_HEADER_NBYTES,
    V2_HEADER_NBYTES,
)
from .dtypes import TABLE, DType

__all__ = ["MAX_NBYTES", "MAX_SEQ", "Header", "decode", "encode_v0", "encode_v1", "encode_v2"]

MAX_NBYTES: Final = 2**63 - 1  # off_t and Py_ssize_t: what a mapping can address
MAX_SEQ: Final = SEQ_RETIRED - 1

_NEWER_MAGICS: Final = frozenset({b"TSR3", b"TSR4"})  # of later versions of the original framework
_FILE_FLAGS: Final = FLAG_CHECKSUM  # what a plain file may have
_SEGMENT_FLAGS: Final = FLAG_CHECKSUM | FLAG_SEGMENT | FLAG_DEVICE
_V0: Final = struct.Struct("<4sii4i")
_V1: Final = struct.Struct("<4s3i2i4i3q")
_V2: Final = struct.Struct("<4siiIiiQQQQII4Q24sQ16q")
_V2_FIXED: Final = struct.Struct("<4siiIiiQQQQI")  # bytes 0..59
_V2_LIVE: Final = struct.Struct("<I4Q24sQ")  # the header checksum, then the live line
_V2_DIMS: Final = struct.Struct("<16q")
_UNUSED_DIMS: Final = tuple((0,) * (MAX_NDIM - ndim) for ndim in range(MAX_NDIM + 1))
_INT32_MAX: Final = 2**31 - 1

_DTYPES: Final = {d.code: d for d in TABLE}
_DTYPES_V1: Final = {d.code: d for d in TABLE if d.code <= MAX_DTYPE_CODE_V1}


@dataclass(frozen=True, slots=True)
class Header:
    """The description of one tensor. ``decode`` makes only headers in which all fields agree.

    Attributes:
        version: 0, 1 or 2, the layout.
        dtype: the element type.
        shape: sizes in elements, outermost first; () is a scalar. Always four for v0, which stores no ndim.
        seq: publication number, 1 or more; 1 for v0 and v1, which store none.
        payload_offset: where the payload starts, in bytes from the start of the file.
        payload_nbytes: bytes of payload, padding not included.
        created_ns: when the header was built, nanoseconds since 1970; 0 for v0 and v1.
        payload_checksum: CRC-32 of the payload, or None where the file has none.
        is_segment: the file belongs to a session that may recycle it; a view needs a lease or a guest mark.
        device: of a segment: where its owner had the tensor, as torch writes it; "" for CPU memory.
    """

    version: int
    dtype: DType
    shape: tuple[int, ...]
    seq: int
    payload_offset: int
    payload_nbytes: int
    created_ns: int
    payload_checksum: int | None
    is_segment: bool
    device: str = ""

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.payload_nbytes // self.dtype.itemsize

    @property
    def file_nbytes(self) -> int:
        """Bytes from the start of the file to the end of the payload."""
        return self.payload_offset + self.payload_nbytes


def decode(raw: bytes | memoryview, *, file_nbytes: int | None = None, path: str | None = None) -> Header:
    """Parse one header of any layout; validates everything, maps nothing.

    Args:
        raw: the first 256 bytes of the file, or the whole file if it is shorter; bytes after the header are ignored.
            A memoryview of a live mapping is copied once, then parsed.
        file_nbytes: size of the file, or None not to compare the payload's extent with it.
        path: the file's name, for the messages.

    Raises:
        TSRFormatError: any defect; ``fault`` says which one.
    """
    data = bytes(raw[:MAX_HEADER_NBYTES])
    if len(data) < 8:
        _refuse(Fault.TOO_SHORT, f"{len(data)} bytes, no TSR header is shorter than {V0_HEADER_NBYTES}", path)
    magic, version = data[:4], int.from_bytes(data[4:8], "little", signed=True)
    if magic == MAGIC and version == 2:
        header = _decode_v2(data, path)
    elif magic == MAGIC and version == 1:
        header = _decode_v1(data, path)
    elif magic == MAGIC_V0 and version == 1:
        header = _decode_v0(data, path)
    elif magic == MAGIC:
        _refuse(Fault.BAD_VERSION, f"version {version} after the magic 'TSR!', 1 and 2 are known", path)
    elif magic == MAGIC_V0:
        _refuse(Fault.BAD_VERSION, f"version {version} after the magic 'TSR\\0', only 1 is known", path)
    elif magic == SEALED_MAGIC:
        _refuse(
            Fault.SEALED,
            "the file is sealed; it cannot be mapped; load and read_header with the key that it was saved with read it",
            path,
        )
    elif magic in _NEWER_MAGICS:
        _refuse(
            Fault.BAD_MAGIC,
            f"the file starts with {magic.decode()!r}: it is a newer file of the TSR family, which this reader does "
            "not know; save the tensor as TSR version 1 or 2",
            path,
        )
    else:
        _refuse(Fault.BAD_MAGIC, f"the file starts with {magic!r}, a TSR file with b'TSR!' or b'TSR\\x00'", path)
    if file_nbytes is not None:
        _check_extent(header, file_nbytes, path)
    return header


def encode_v0(dtype: DType, shape: Sequence[int]) -> bytes:
    """The 28 bytes of a v0 header. Missing leading dims become 1; a reader cannot tell them from real ones.

    Raises:
        TSRFormatError: UNREPRESENTABLE or BAD_DIMS; v0 holds dtypes 1 to 8, at most four dims of 31 bits.
    """
    sizes = _check_small(dtype, shape, "v0")
    return _V0.pack(MAGIC_V0, 1, dtype.code, *_right_aligned(sizes))


def encode_v1(dtype: DType, shape: Sequence[int]) -> bytes:
    """The 64 bytes of a v1 header.

    Raises:
        TSRFormatError: UNREPRESENTABLE or BAD_DIMS; v1 holds dtypes 1 to 8, at most four dims of 31 bits.
    """
    sizes = _check_small(dtype, shape, "v1")
    dims = _right_aligned(sizes)
    return _V1.pack(MAGIC, 1, V1_HEADER_NBYTES, 0, dtype.code, len(sizes), *dims, math.prod(sizes), 0, 0)


def encode_v2(
    dtype: DType,
    shape: Sequence[int],
    *,
    seq: int = 1,
    payload_offset: int = V2_HEADER_NBYTES,
    created_ns: int,
    payload_checksum: int | None = None,
    is_segment: bool = False,
    device: str = "",
) -> bytes:
    """The 256 bytes of a v2 header, with layout_seq and the copy of seq equal to ``seq``, no lease and no guest.

    A segment's header may be built with ``seq=0``, "being written"; no reader accepts it before seq is stored. Only a
    segment's header may have a ``device``.

    Raises:
        TSRFormatError: ``decode`` would refuse the header.
    """
    sizes = tuple(map(index, shape))
    ndim = len(sizes)
    if ndim > MAX_NDIM:
        _refuse(Fault.UNREPRESENTABLE, f"{ndim} dimensions, v2 holds at most {MAX_NDIM}", None)
    count, payload_nbytes = _check_sizes(sizes, dtype, None)
    _check_offset(payload_offset, payload_nbytes, None)
    if not (0 if is_segment else 1) <= seq <= MAX_SEQ:
        _refuse(Fault.UNREPRESENTABLE, f"seq {seq}, a published tensor has 1 to 2**64-2", None)
    if not 0 <= created_ns < 2**64:
        _refuse(Fault.UNREPRESENTABLE, f"created_ns {created_ns}, the field holds 0 to 2**64-1", None)
    if payload_checksum is not None and not 0 <= payload_checksum < 2**32:
        _refuse(Fault.UNREPRESENTABLE, f"payload checksum {payload_checksum}, a CRC-32 is 0 to 2**32-1", None)
    flags = (FLAG_CHECKSUM if payload_checksum is not None else 0) | (FLAG_SEGMENT if is_segment else 0)
    if device:
        flags |= FLAG_DEVICE
        if not is_segment or not _is_device(device.encode()):
            _refuse(Fault.UNREPRESENTABLE, f"device {device!r}, a segment names one in 24 letters of ASCII", None)
    fixed = _V2_FIXED.pack(
        MAGIC,
        2,
        V2_HEADER_NBYTES,
        flags,
        dtype.code,
        ndim,
        payload_nbytes,
        count,
        created_ns,
        payload_checksum or 0,
        payload_offset,
    )
    dims = _V2_DIMS.pack(*sizes, *_UNUSED_DIMS[ndim])
    checksum = zlib.crc32(dims, zlib.crc32(fixed))
    return fixed + _V2_LIVE.pack(checksum, seq, seq, 0, 0, device.encode(), seq) + dims


def _decode_v0(data: bytes, path: str | None) -> Header:
    if len(data) < V0_HEADER_NBYTES:
        _refuse(Fault.TOO_SHORT, f"{len(data)} bytes, a v0 header has {V0_HEADER_NBYTES}", path)
    _, _, code, *dims = _V0.unpack_from(data)
    return _header_small(0, code, tuple(dims), V0_HEADER_NBYTES, path)


def _decode_v1(data: bytes, path: str | None) -> Header:
    if len(data) < V1_HEADER_NBYTES:
        _refuse(Fault.TOO_SHORT, f"{len(data)} bytes, a v1 header has {V1_HEADER_NBYTES}", path)
    # The three zero fields are ignored, as in every other reader of v1.
    _, _, header_nbytes, _, code, ndim, *dims, count, _, _ = _V1.unpack_from(data)
    if header_nbytes != V1_HEADER_NBYTES:
        _refuse(Fault.BAD_HEADER_SIZE, f"header size {header_nbytes}, v1 has {V1_HEADER_NBYTES}", path)
    if not 0 <= ndim <= MAX_NDIM_V1:
        _refuse(Fault.BAD_NDIM, f"ndim {ndim}, v1 has 0 to {MAX_NDIM_V1}", path)
    unused = MAX_NDIM_V1 - ndim
    if any(size != 1 for size in dims[:unused]):
        _refuse(Fault.BAD_DIMS, f"dims {dims} with ndim {ndim}, the first {unused} must be 1", path)
    header = _header_small(1, code, tuple(dims[unused:]), V1_HEADER_NBYTES, path)
    if count != header.count:
        _refuse(Fault.BAD_COUNT, f"element count {count}, the dims {dims} make {header.count}", path)
    return header


def _header_small(version: int, code: int, shape: tuple[int, ...], offset: int, path: str | None) -> Header:
    dtype = _DTYPES_V1.get(code)
    if dtype is None:
        _refuse(Fault.BAD_DTYPE, f"dtype code {code}, v{version} has 1 to 8", path)
    _, payload_nbytes = _check_sizes(shape, dtype, path)
    if payload_nbytes > MAX_NBYTES - offset:
        _refuse(Fault.TOO_LARGE, f"{payload_nbytes} bytes at {offset} end beyond 2**63-1", path)
    return Header(version, dtype, shape, 1, offset, payload_nbytes, 0, None, False)


def _decode_v2(data: bytes, path: str | None) -> Header:
    if len(data) < V2_HEADER_NBYTES:
        _refuse(Fault.TOO_SHORT, f"{len(data)} bytes, a v2 header has {V2_HEADER_NBYTES}", path)
    (
        _,
        _,
        header_nbytes,
        flags,
        code,
        ndim,
        payload_nbytes,
        count,
        created_ns,
        payload_checksum,
        payload_offset,
        checksum,
        seq,
        layout_seq,
        lease,
        guest,
        reserved,
        seq_copy,
        *dims,
    ) = _V2.unpack(data)
    if header_nbytes != V2_HEADER_NBYTES:
        _refuse(Fault.BAD_HEADER_SIZE, f"header size {header_nbytes}, v2 has {V2_HEADER_NBYTES}", path)
    # Check seq before the checksum: while a writer publishes, the other bytes may be in any state.
    if seq == 0:
        _refuse(Fault.UNPUBLISHED, "seq is 0: the tensor is still being written; try again", path)
    if seq == SEQ_RETIRED:
        _refuse(Fault.UNPUBLISHED, "seq is 2**64-1: the session has given this segment up; open the name again", path)
    if seq != seq_copy:
        _refuse(Fault.TORN, f"seq is {seq}, its copy {seq_copy}: read in the middle of a change; try again", path)
    found = zlib.crc32(data[DIMS_OFFSET:], zlib.crc32(data[:HEADER_CHECKSUM_OFFSET]))
    if checksum != found:
        _refuse(Fault.HEADER_CHECKSUM, f"header checksum {checksum:#010x}, the header's bytes make {found:#010x}", path)
    is_segment = bool(flags & FLAG_SEGMENT)
    known = _SEGMENT_FLAGS if is_segment else _FILE_FLAGS
    if flags & ~known:
        _refuse(Fault.BAD_FLAGS, f"flags {flags:#x}, known are {known:#x}: written by a newer tr_mmap?", path)
    device, has_device = reserved.rstrip(b"\0"), bool(flags & FLAG_DEVICE)
    if not _is_device(device) if has_device else device:
        expected = "name a device" if has_device else "be 0"
        _refuse(Fault.BAD_RESERVED, f"bytes 96 to 119 hold {device!r}, they must {expected}", path)
    if not is_segment:
        if lease or guest:
            _refuse(Fault.BAD_RESERVED, f"lease {lease} and guest {guest}, outside a segment they are 0", path)
        if layout_seq != seq:
            _refuse(Fault.TORN, f"layout_seq is {layout_seq}, seq {seq}: outside a segment they are equal", path)
    has_checksum = bool(flags & FLAG_CHECKSUM)
    if payload_checksum >= (2**32 if has_checksum else 1):
        expected = "a CRC-32 has 32 bits" if has_checksum else "without the CHECKSUM flag it is 0"
        _refuse(Fault.BAD_RESERVED, f"payload checksum field {payload_checksum:#x}, {expected}", path)
    dtype = _DTYPES.get(code)
    if dtype is None:
        _refuse(Fault.BAD_DTYPE, f"dtype code {code}, v2 has 1 to {max(_DTYPES)}", path)
    if not 0 <= ndim <= MAX_NDIM:
        _refuse(Fault.BAD_NDIM, f"ndim {ndim}, v2 has 0 to {MAX_NDIM}", path)
    shape = tuple(dims[:ndim])
    if any(dims[ndim:]):
        _refuse(Fault.BAD_DIMS, f"dims {dims} with ndim {ndim}, all after the first {ndim} must be 0", path)
    expected_count, expected_nbytes = _check_sizes(shape, dtype, path)
    if count != expected_count:
        _refuse(Fault.BAD_COUNT, f"element count {count}, the shape {shape} makes {expected_count}", path)
    if payload_nbytes != expected_nbytes:
        _refuse(
            Fault.BAD_PAYLOAD_SIZE,
            f"payload of {payload_nbytes} bytes, {count} elements of {dtype.name} make {expected_nbytes}",
            path,
        )
    _check_offset(payload_offset, payload_nbytes, path)
    return Header(
        2,
        dtype,
        shape,
        seq,
        payload_offset,
        payload_nbytes,
        created_ns,
        payload_checksum if has_checksum else None,
        is_segment,
        device.decode("ascii"),
    )


def _is_device(name: bytes) -> bool:
    """Whether a header can hold the name of a device, and such a name can be one."""
    return 0 < len(name) <= DEVICE_NBYTES and name.isascii() and name.decode().isprintable()


def _check_sizes(shape: tuple[int, ...], dtype: DType, path: str | None) -> tuple[int, int]:
    """Element count and bytes of a shape; refuses one that no machine can address."""
    count = math.prod(shape)
    if shape and min(shape) < 0:
        _refuse(Fault.BAD_DIMS, f"shape {shape}, sizes are 0 or more", path)
    # numpy refuses an empty array too, if its other sizes multiply beyond what it can address.
    extent = count or math.prod(size for size in shape if size)
    if extent * dtype.itemsize > MAX_NBYTES:
        _refuse(Fault.TOO_LARGE, f"shape {shape} of {dtype.name} is beyond 2**63-1 bytes", path)
    return count, count * dtype.itemsize


def _check_offset(payload_offset: int, payload_nbytes: int, path: str | None) -> None:
    if payload_offset < V2_HEADER_NBYTES or payload_offset % PAYLOAD_ALIGNMENT_NBYTES or payload_offset >= 2**32:
        _refuse(
            Fault.BAD_OFFSET,
            f"payload offset {payload_offset}, it must be a multiple of {PAYLOAD_ALIGNMENT_NBYTES}, and at least that",
            path,
        )
    if payload_nbytes > MAX_NBYTES - payload_offset:
        _refuse(Fault.TOO_LARGE, f"{payload_nbytes} bytes at {payload_offset} end beyond 2**63-1", path)


def _check_extent(header: Header, file_nbytes: int, path: str | None) -> None:
    if file_nbytes < header.file_nbytes:
        _refuse(
            Fault.TRUNCATED,
            f"{file_nbytes} bytes, the header wants {header.file_nbytes} "
            f"({header.payload_nbytes} of payload at {header.payload_offset})",
            path,
        )
    if file_nbytes > header.file_nbytes and not header.is_segment:
        _refuse(Fault.TRAILING_BYTES, f"{file_nbytes} bytes, the payload ends at {header.file_nbytes}", path)


def _check_small(dtype: DType, shape: Sequence[int], layout: str) -> tuple[int, ...]:
    sizes = tuple(map(index, shape))
    if dtype.code not in _DTYPES_V1:
        names = ", ".join(d.name for d in _DTYPES_V1.values())
        _refuse(Fault.UNREPRESENTABLE, f"{dtype.name} has no code in {layout}, which holds {names}; use v2", None)
    if len(sizes) > MAX_NDIM_V1:
        _refuse(Fault.UNREPRESENTABLE, f"{len(sizes)} dims, {layout} holds at most {MAX_NDIM_V1}; use v2", None)
    if any(size > _INT32_MAX for size in sizes):
        _refuse(Fault.UNREPRESENTABLE, f"shape {sizes}, a size in {layout} is below 2**31; use v2", None)
    _check_sizes(sizes, dtype, None)
    return sizes


def _right_aligned(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (MAX_NDIM_V1 - len(sizes)) + sizes


def _refuse(fault: Fault, what: str, path: str | None) -> NoReturn:
    raise TSRFormatError(f"{path}: {what}" if path else what, fault=fault, path=path)
