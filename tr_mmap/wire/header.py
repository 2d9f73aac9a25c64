"""The TSR header: where each field is, what it may hold, and the codes of the element types.

The docstring of :mod:`tr_mmap.tsr` is the specification and says what each field means. Offsets are bytes from the
start of the file.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"TSR!"
MAGIC_V0: Final = b"TSR\0"
SEALED_MAGIC: Final = b"TSRE"  # an encrypted file; tr_mmap.tsr.sealed reads and writes it

V0_HEADER_NBYTES: Final = 28
V1_HEADER_NBYTES: Final = 64
V2_HEADER_NBYTES: Final = 256
V2_VERSION: Final = 2  # the version field of the 256-byte layout, the only layout that the C extension reads
MAX_HEADER_NBYTES: Final = 256  # so many bytes hold the header of any layout

MAX_NDIM: Final = 16  # dims fill the second half of the 256-byte header
MAX_NDIM_V1: Final = 4  # N, C, H, W
MAX_DTYPE_CODE_V1: Final = 8  # v0 and v1 have only the first eight element types
PAYLOAD_ALIGNMENT_NBYTES: Final = 256  # a multiple of every item size, of AVX-512 vectors and of pairs of cache lines

FLAG_CHECKSUM: Final = 1  # the payload checksum field holds the payload's CRC-32
FLAG_SEGMENT: Final = 2  # a session's segment: the live line is in use, and the file may be longer than the payload
FLAG_DEVICE: Final = 4  # of a segment only: the reserved bytes of the live line name the device that the tensor was on

# Fields of v2, bytes 0 to 63: fixed while a tensor is published, under the header checksum.
MAGIC_OFFSET: Final = 0
VERSION_OFFSET: Final = 4
HEADER_SIZE_OFFSET: Final = 8
FLAGS_OFFSET: Final = 12
DTYPE_OFFSET: Final = 16
NDIM_OFFSET: Final = 20
PAYLOAD_SIZE_OFFSET: Final = 24
COUNT_OFFSET: Final = 32
CREATED_OFFSET: Final = 40
PAYLOAD_CHECKSUM_OFFSET: Final = 48
PAYLOAD_START_OFFSET: Final = 56
HEADER_CHECKSUM_OFFSET: Final = 60

# v0 and v1 have magic and version at the same offsets as v2. The offsets of header size, dtype and ndim are the same in
# v1. Both have four dims of 32 bits each, aligned right.
V0_DTYPE_OFFSET: Final = 8
V0_DIMS_OFFSET: Final = 12
V1_DIMS_OFFSET: Final = 24
V1_COUNT_OFFSET: Final = 40

# The live line: one cache line, outside the header checksum, changed by single aligned 8-byte stores. Its reserved
# bytes are 0 without FLAG_DEVICE.
LIVE_OFFSET: Final = 64
LIVE_NBYTES: Final = 64
SEQ_OFFSET: Final = 64
LAYOUT_SEQ_OFFSET: Final = 72
LEASE_OFFSET: Final = 80
GUEST_OFFSET: Final = 88
RESERVED_OFFSET: Final = 96
SEQ_COPY_OFFSET: Final = 120
DEVICE_NBYTES: Final = SEQ_COPY_OFFSET - RESERVED_OFFSET  # of the longest name of a device
# The same places as indices of 8-byte words from the start of the header.
SEQ_WORD: Final = SEQ_OFFSET // 8
LAYOUT_WORD: Final = LAYOUT_SEQ_OFFSET // 8
LEASE_WORD: Final = LEASE_OFFSET // 8
GUEST_WORD: Final = GUEST_OFFSET // 8
SEQ_COPY_WORD: Final = SEQ_COPY_OFFSET // 8

DIMS_OFFSET: Final = 128  # to the end of the header, under the header checksum

SEQ_RETIRED: Final = 2**64 - 1  # the owner has retired the segment: its pages may be gone
LEASE_FREE: Final = 0
LEASE_HELD: Final = 1
LEASE_PINNED: Final = 2  # the reader forked while it held a view: its child may use that view for ever

# A segment's header page has a lease line for each reader beside the session's own one: a cache line each, whose first
# word is the lease. They end with the page. Byte i of the page of readers says whether line i has a reader.
LINES_OFFSET: Final = 512
LINE_NBYTES: Final = 64
MAX_READERS: Final = 56
LINES_WORD: Final = LINES_OFFSET // 8
LINE_WORDS: Final = LINE_NBYTES // 8

# The element types: code, name in numpy (or ml_dtypes) and torch, bytes of an element. A code never gets another type.
DTYPES: Final = (
    (1, "float32", 4),
    (2, "int8", 1),
    (3, "int32", 4),
    (4, "float16", 2),
    (5, "bfloat16", 2),
    (6, "float64", 8),
    (7, "int16", 2),
    (8, "uint8", 1),
    (9, "bool", 1),
    (10, "int64", 8),
    (11, "uint16", 2),
    (12, "uint32", 4),
    (13, "uint64", 8),
    (14, "complex64", 8),
    (15, "complex128", 16),
    (16, "float8_e4m3fn", 1),
    (17, "float8_e5m2", 1),
    (18, "float8_e4m3fnuz", 1),
    (19, "float8_e5m2fnuz", 1),
    (20, "float8_e8m0fnu", 1),
)
