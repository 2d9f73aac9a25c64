r"""TSR: a file that holds one tensor, self-describing, made to be mapped. This docstring is its specification.

This room knows no sessions, no messages and no pools.

Capabilities
------------
- One tensor a file: a header of fixed size, then the elements in C order, little-endian, without padding.
- The payload is mapped, never parsed. In v2 it starts at a multiple of 256 bytes, aligned for every dtype and for SIMD.
- Scalars, tensors without elements, up to 16 dimensions, every dtype that numpy (with ``ml_dtypes``) and torch share.
- Bit for bit: NaN payloads, -0.0 and subnormals come back as they were.
- A reader refuses all that a writer would not have written, before it allocates or maps anything; a :class:`Fault`
  says why. v2 has a checksum over its header, and may have one over its payload.
- v2 can be a *segment* that its owner fills again and again while other processes have it mapped.

Limits
------
- No objects, strings, dates, structures, masks, sparse, nested or quantized tensors.
- No names or metadata; no compression. Encrypted only as a whole (sealed), and then not mapped but decrypted.
- An element's byte order is always little-endian; strides are not stored.
- The payload, and the product of the sizes other than 0 times the item size, stay below 2**63 bytes.

dtype codes
-----------
Those of v0, v1 and v2::

    1 float32   2 int8   3 int32   4 float16   5 bfloat16   6 float64   7 int16   8 uint8

Those of v2 only::

     9 bool      10 int64        11 uint16         12 uint32       13 uint64           14 complex64
    15 complex128  16 float8_e4m3fn  17 float8_e5m2  18 float8_e4m3fnuz  19 float8_e5m2fnuz  20 float8_e8m0fnu

A bool is one byte, 0 or 1; a complex number is its real part, then its imaginary part.

v0: 28 bytes
------------
::

     0  4s      magic "TSR\0"
     4  i32     version = 1
     8  i32     dtype code, 1 to 8
    12  i32[4]  dims N, C, H, W, each 0 or more; missing leading ones are 1
    28          payload; the file ends with it

v0 stores no ndim, so it is read with four dimensions: what was written as (3,) is read as (1, 1, 1, 3).
Byte 28 is not aligned for types of 8 bytes and more.

v1: 64 bytes
------------
::

     0  4s      magic "TSR!"
     4  i32     version = 1
     8  i32     header size = 64
    12  i32     written 0, ignored by readers
    16  i32     dtype code, 1 to 8
    20  i32     ndim, 0 to 4
    24  i32[4]  dims right-aligned as N, C, H, W, each 0 or more; the first 4 - ndim are 1
    40  i64     element count, the product of the dims
    48  i64[2]  written 0, ignored by readers
    64          payload; the file is exactly 64 + payload bytes

v2: 256 bytes
-------------
::

      0  4s       magic "TSR!"
      4  i32      version = 2
      8  i32      header size = 256
     12  u32      flags: bit 0 CHECKSUM, bit 1 SEGMENT, bit 2 DEVICE (only with SEGMENT); all others 0
     16  i32      dtype code, 1 to 20
     20  i32      ndim, 0 to 16
     24  u64      payload bytes = element count * item size
     32  u64      element count, the product of the dims
     40  u64      when this header was built, nanoseconds since 1970
     48  u64      CRC-32 of the payload; 0 without CHECKSUM
     56  u32      payload offset, a multiple of 256, at least 256
     60  u32      CRC-32 of bytes 0 to 59 followed by bytes 128 to 255
     -- the live line: one cache line, outside the checksum, changed by single aligned 8-byte stores --
     64  u64      seq: publication number; 0 while the tensor is being written, 2**64-1 once the segment is retired
     72  u64      layout_seq: the seq with which bytes 0 to 63 and 128 to 255 were last written
     80  u64      lease: 0 free, 1 held (the session's own reader has a view), 2 pinned (it may have one for ever)
     88  u64      guest: not 0 once a guest has mapped the file
     96  u64[3]   0; with DEVICE 24s, where the owner had the tensor: "cuda:0", say, in ASCII, filled up with zeros
    120  u64      seq again
    -- --
    128  i64[16]  sizes, outermost first; those after the first ndim are 0
    256           the earliest place for the payload; bytes between header and payload mean nothing in a plain file
    512  56 lines of a segment only, 64 bytes each: u64 lease as above, of one other reader; u64[7] 0

CRC-32 is that of zlib and PNG. Without SEGMENT the file is written once: seq is 1 or more, its copy and layout_seq
equal it, lease and guest are 0, and the file ends with the payload.

Sealed: a v2 file, encrypted
----------------------------
::

     0  4s      magic "TSRE"
     4  i32     version = 1
     8  i32     header size = 64
    12  u32     0
    16  u64     n, bytes of the sealed v2 file: its 256-byte header (payload offset 256) and its payload
    24  32s     salt, random for each file
    56  8s      0
    64          ceil(n / 2**20) chunks of 2**20 bytes, the last one shorter, each followed by its tag of 16 bytes;
                the file ends with the last tag

Chunk i is encrypted with AES-256-GCM. Its key is BLAKE2b(salt) with the user's 32 bytes as key, digest size 32, and
"tr_mmap sealed 1" as personalization. Its nonce is i, as 12 bytes little-endian. Its associated data are bytes 0 to 63
of this file. So no nonce is used twice under a key. A reader notices if any part of the file was changed, moved, cut
off or taken from another file. Without the key, only the file's length can be read. The format does not tell which of
two files sealed with one key is the newer one.

Segments: who stores what, in which order
-----------------------------------------
A segment (flag SEGMENT) belongs to the pool of one process, its *owner*. Only the owner stores bytes 0 to 79, 96 to 255
and the payload. A *reader* stores its lease: if the pool is that of one session, the session's other process stores the
lease at 80; every other reader has a lease line, see below. Any other process, a *guest*, stores guest. The file may be
longer than the payload. Stores are aligned and of 8 bytes; header bytes are prepared elsewhere and copied in.

To publish a tensor, the owner

1. chooses a segment that no tag, message or local view of its own holds, and stores seq = 0;
2. reads guest, the lease at 80, and the lease lines that have a reader, and does not fill the segment if any is set;
3. writes the payload; if anything else in the header changes (dtype, shape, offset, checksum, device), also bytes 0 to
   63, 96 to 119 and 128 to 255, and layout_seq = the new seq;
4. stores the copy of seq at 120, then seq at 64, and only then names segment and seq in a message to the reader.

To retire a segment (always, once it has a guest or a lease of 2), the owner stores seq = 2**64-1 in both copies, reads
guest and the leases, and removes the name. Only if all are 0 may it free the pages.

The reader learns segment and seq from a message. It stores lease, then compares seq. If seq differs, the tensor is gone
(``StaleTensor``). A header that it parsed stays valid while layout_seq is the same. When its last view is gone, it
stores lease = 0. If it forks while it holds views, it stores lease = 2, because no process can tell when the child's
views are gone.

The page of readers, ``<stem>.readers``, lies beside the segments ``<stem>_<n>.tsr`` of a pool that has lease lines. It
has 4096 bytes; byte i, 0 to 55, is 1 while line i has a reader, and all others are 0. A reader joins on a line whose
byte is 0: it takes the exclusive lock of that byte for its open file description (``F_OFD_SETLK``), stores 1 there, and
keeps the page mapped by way of that description, so that the lock lasts as long as the mapping does in any process. It
leaves when none of its leases is set: it stores 0 and unmaps the page. If the owner can take the lock of a byte that is
1, the reader has died. The owner never fills a segment again in which that line is not 0, and stores 0 there; then it
stores 0 in the byte, and releases the lock. A reader that finds no line copies the payload, and compares seq before and
after.

A guest gets no message. It reads and checks the header, stores guest = 1, then reads the header again. If the header is
unchanged, its views are good for ever. If it has changed, or if seq = 0, the guest opens the name again. It never
clears guest, because another guest may rely on it.

A slab is a file of n segments, its slots, for tensors of at most 4096 bytes. Bytes 4096 * i to 4096 * i + 4095 hold the
header of slot i, and 4096 bytes from 4096 * (n + i) on its payload. A slot's payload offset counts from the start of
the file. All else holds for each slot as for a segment with a file of its own. A message names slot i of n in the file
``result_7.tsr`` as ``result_7.<i>of<n>.tsr``; n is at most 256. Slot 0, read as a file, is an ordinary segment. So a
guest reads slot 0, and no other. The owner frees the pages and removes the name when all n slots are retired.

Each side stores first and then reads, with a full memory barrier between (any locked instruction will do), so that at
least one of them sees the other's store. A seq that was checked protects a copy that was made before the check. It
never protects a view without lease or guest mark. Neither protects against a process that breaks these rules.
"""

from __future__ import annotations

from ..errors import Fault, TSRFormatError
from .files import load, read_header
from .frameworks import from_file, memmap
from .header import Header, decode, encode_v0, encode_v1, encode_v2
from .saving import save

__all__ = [
    "Fault",
    "Header",
    "TSRFormatError",
    "decode",
    "encode_v0",
    "encode_v1",
    "encode_v2",
    "from_file",
    "load",
    "memmap",
    "read_header",
    "save",
]
