"""Makes ``tests/vectors/``: TSR files of every dtype, rank and version, good and bad, and ``index.json`` about them.

The Python and the C++ suite read them alike. They are built here from the specification (the docstring of
``tr_mmap.tsr``) with ``struct`` and ``zlib`` alone, so that neither implementation vouches for itself. The same on
every machine: payloads come from a checksum of their name.

    python tests/make_vectors.py
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "vectors"

# name: (code, bytes of one element)
DTYPES = {
    "float32": (1, 4),
    "int8": (2, 1),
    "int32": (3, 4),
    "float16": (4, 2),
    "bfloat16": (5, 2),
    "float64": (6, 8),
    "int16": (7, 2),
    "uint8": (8, 1),
    "bool": (9, 1),
    "int64": (10, 8),
    "uint16": (11, 2),
    "uint32": (12, 4),
    "uint64": (13, 8),
    "complex64": (14, 8),
    "complex128": (15, 16),
    "float8_e4m3fn": (16, 1),
    "float8_e5m2": (17, 1),
    "float8_e4m3fnuz": (18, 1),
    "float8_e5m2fnuz": (19, 1),
    "float8_e8m0fnu": (20, 1),
}
SHAPES = {0: (), 1: (3,), 2: (2, 3), 3: (2, 1, 3), 4: (2, 1, 2, 2)}  # and for v2 also the ranks up to 16
CREATED_NS = 1_700_000_000_000_000_000
CHECKSUM, SEGMENT, DEVICE = 1, 2, 4


def payload_of(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Bytes that look random; for bools zeros and ones."""
    nbytes = math.prod(shape) * DTYPES[dtype][1]
    data, state = b"", zlib.crc32(name.encode())
    while len(data) < nbytes:
        state = zlib.crc32(struct.pack("<I", state), state)
        data += struct.pack("<I", state)
    return bytes(byte & 1 for byte in data[:nbytes]) if dtype == "bool" else data[:nbytes]


def right_aligned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (4 - len(shape)) + shape


def v0(code: int, shape: tuple[int, ...], *, magic: bytes = b"TSR\0", version: int = 1) -> bytes:
    return struct.pack("<4sii4i", magic, version, code, *right_aligned(shape))


def device(name: bytes) -> tuple[int, ...]:
    """The reserved bytes of a v2 header that name a device."""
    return struct.unpack("<3Q", name.ljust(24, b"\0"))


def v1(code: int, shape: tuple[int, ...], **other: Any) -> bytes:
    f = {"magic": b"TSR!", "version": 1, "header_nbytes": 64, "zeros": (0, 0, 0), "ndim": len(shape)}
    f |= {"dims": right_aligned(shape), "count": math.prod(shape)}
    f |= other
    zero_a, zero_b, zero_c = f["zeros"]
    head = (f["magic"], f["version"], f["header_nbytes"], zero_a, code, f["ndim"])
    return struct.pack("<4s3i2i4i3q", *head, *f["dims"], f["count"], zero_b, zero_c)


def v2(code: int, itemsize: int, shape: tuple[int, ...], **other: Any) -> bytes:
    """A header; its checksum is right for whatever it holds, unless ``header_checksum`` says otherwise."""
    count = math.prod(shape)
    f: dict[str, Any] = {"magic": b"TSR!", "version": 2, "header_nbytes": 256, "flags": 0, "ndim": len(shape)}
    f |= {"nbytes": count * itemsize, "count": count, "created": CREATED_NS, "crc": 0, "offset": 256}
    f |= {"seq": 1, "lease": 0, "guest": 0, "reserved": (0, 0, 0)}
    f |= {"dims": shape + (0,) * (16 - len(shape))}
    f |= other
    fixed = struct.pack("<4sii", f["magic"], f["version"], f["header_nbytes"])
    fixed += struct.pack("<Iii", f["flags"], code, f["ndim"])
    fixed += struct.pack("<QQQQI", f["nbytes"], f["count"], f["created"], f["crc"], f["offset"])
    dims = struct.pack("<16q", *f["dims"])
    checksum = f.get("header_checksum", zlib.crc32(fixed + dims))
    live = (f["seq"], f.get("layout_seq", f["seq"]), f["lease"], f["guest"], *f["reserved"])
    return fixed + struct.pack("<I7Q", checksum, *live) + struct.pack("<Q", f.get("seq_copy", f["seq"])) + dims


class Vectors:
    """The files, and what is to be said about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good: list[dict[str, Any]] = []
        self.bad: list[dict[str, Any]] = []

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def add(self, name: str, header: bytes, version: int, dtype: str, shape: tuple[int, ...], **other: Any) -> None:
        """A good file: header, ``gap``, payload, ``tail``; ``other`` goes into the index too."""
        payload = other.pop("payload", payload_of(name, dtype, shape))
        gap, tail = other.pop("gap", b""), other.pop("tail", b"")
        self.write(f"good/{name}.tsr", header + gap + payload + tail)
        entry = {"file": f"good/{name}.tsr", "version": version, "dtype": dtype, "shape": list(shape)}
        entry |= {"payload_crc32": zlib.crc32(payload), "seq": 1, "has_checksum": False, "is_segment": False}
        self.good.append(entry | {"offset": len(header + gap)} | other)

    def reject(self, fault: str, name: str, data: bytes, *, only_verified: bool = False) -> None:
        """A bad file; ``only_verified``: it loads, unless its payload is verified."""
        self.write(f"bad/{fault}-{name}.tsr", data)
        self.bad.append({"file": f"bad/{fault}-{name}.tsr", "fault": fault, "only_verified": only_verified})


def add_good(vectors: Vectors) -> None:
    for dtype, (code, itemsize) in DTYPES.items():
        for rank, shape in SHAPES.items():
            vectors.add(f"v2-{dtype}-{rank}", v2(code, itemsize, shape), 2, dtype, shape)
            if code <= 8:
                vectors.add(f"v1-{dtype}-{rank}", v1(code, shape), 1, dtype, shape)
                vectors.add(f"v0-{dtype}-{rank}", v0(code, shape), 0, dtype, right_aligned(shape))
    for rank in range(5, 17):
        shape = (2,) + (1,) * (rank - 2) + (3,)
        vectors.add(f"v2-float32-{rank}", v2(1, 4, shape), 2, "float32", shape)
    empty = (0, 3)
    vectors.add("v0-empty", v0(1, empty), 0, "float32", right_aligned(empty))
    vectors.add("v1-empty", v1(1, empty), 1, "float32", empty)
    vectors.add("v2-empty", v2(1, 4, empty), 2, "float32", empty)
    huge = (0, 2**31, 2**29)
    vectors.add("v2-empty-huge", v2(1, 4, huge), 2, "float32", huge)
    vectors.add("v2-empty-checksum", v2(1, 4, empty, flags=CHECKSUM), 2, "float32", empty, has_checksum=True)
    shape = (2, 3)
    vectors.add("v1-zero-fields-ignored", v1(1, shape, zeros=(7, 8, -9)), 1, "float32", shape)
    payload = payload_of("checksum", "float32", shape)
    header = v2(1, 4, shape, flags=CHECKSUM, crc=zlib.crc32(payload))
    vectors.add("v2-checksum", header, 2, "float32", shape, payload=payload, has_checksum=True)
    vectors.add("v2-offset-512", v2(1, 4, shape, offset=512), 2, "float32", shape, gap=b"\xa5" * 256)
    vectors.add("v2-seq", v2(1, 4, shape, seq=2**64 - 2), 2, "float32", shape, seq=2**64 - 2)
    vectors.add("v2-created-0", v2(1, 4, shape, created=0), 2, "float32", shape)
    segment = v2(1, 4, shape, flags=SEGMENT, seq=9, layout_seq=4, lease=1, guest=1, offset=4096)
    long = {"gap": bytes(4096 - 256), "tail": bytes(4096 - 24)}
    vectors.add("v2-segment", segment, 2, "float32", shape, seq=9, is_segment=True, **long)
    segment = v2(1, 4, shape, flags=SEGMENT | DEVICE, seq=9, reserved=device(b"cuda:0"), offset=4096)
    vectors.add("v2-segment-device", segment, 2, "float32", shape, seq=9, is_segment=True, **long)


def add_bad(vectors: Vectors) -> None:
    shape = (2, 3)
    payload = payload_of("bad", "float32", shape)
    vectors.reject("too_short", "nothing", b"")
    vectors.reject("too_short", "7", b"TSR!\1\0\0")
    vectors.reject("too_short", "v0", v0(1, shape)[:27])
    vectors.reject("too_short", "v1", v1(1, shape)[:63])
    vectors.reject("too_short", "v2", v2(1, 4, shape)[:255])
    vectors.reject("bad_magic", "numpy", b"\x93NUMPY\1\0" + bytes(120))
    vectors.reject("bad_magic", "lower", v1(1, shape, magic=b"tsr!") + payload)
    vectors.reject("bad_magic", "space", v0(1, shape, magic=b"TSR ") + payload)
    vectors.reject("sealed", "v2", struct.pack("<4siiIQ", b"TSRE", 1, 64, 0, 280) + bytes(40 + 280 + 16))
    vectors.reject("sealed", "short", b"TSRE\1\0\0\0")
    for version in (0, 2, -1):
        vectors.reject("bad_version", f"v0-{version}", v0(1, shape, version=version) + payload)
    for version in (0, 3, -2):
        vectors.reject("bad_version", f"v1-{version}", v1(1, shape, version=version) + payload)
    vectors.reject("bad_version", "v2-big-endian", v2(1, 4, shape, version=2 << 24) + payload)
    vectors.reject("bad_header_size", "v1", v1(1, shape, header_nbytes=256) + payload)
    vectors.reject("bad_header_size", "v2", v2(1, 4, shape, header_nbytes=64) + payload)
    vectors.reject("bad_header_size", "negative", v1(1, shape, header_nbytes=-64) + payload)
    vectors.reject("bad_flags", "4", v2(1, 4, shape, flags=4) + payload)
    vectors.reject("bad_flags", "top", v2(1, 4, shape, flags=1 << 31) + payload)
    for code in (0, 9, -1):
        vectors.reject("bad_dtype", f"v0-{code}", v0(code, shape) + payload)
        vectors.reject("bad_dtype", f"v1-{code}", v1(code, shape) + payload)
    for name, code in (("0", 0), ("unknown", len(DTYPES) + 1), ("-1", -1)):
        vectors.reject("bad_dtype", f"v2-{name}", v2(code, 4, shape) + payload)
    for ndim in (-1, 5):
        vectors.reject("bad_ndim", f"v1-{ndim}", v1(1, shape, ndim=ndim) + payload)
    for ndim in (-1, 17):
        vectors.reject("bad_ndim", f"v2-{ndim}", v2(1, 4, shape, ndim=ndim) + payload)
    vectors.reject("bad_dims", "v0-negative", v0(1, (-2, 3)) + payload)
    vectors.reject("bad_dims", "v1-negative", v1(1, (-2, -3), count=6) + payload)
    vectors.reject("bad_dims", "v1-unused-not-1", v1(1, shape, dims=(1, 0, 2, 3)) + payload)
    vectors.reject("bad_dims", "v1-left-aligned", v1(1, shape, dims=(2, 3, 1, 1)) + payload)
    vectors.reject("bad_dims", "v2-negative", v2(1, 4, (-2, -3)) + payload)
    vectors.reject("bad_dims", "v2-unused-not-0", v2(1, 4, shape, dims=(2, 3) + (1,) * 14) + payload)
    vectors.reject("bad_count", "v1", v1(1, shape, count=7) + payload)
    vectors.reject("bad_count", "v1-negative", v1(1, shape, count=-6) + payload)
    vectors.reject("bad_count", "v2", v2(1, 4, shape, count=7) + payload)
    vectors.reject("bad_payload_size", "v2", v2(1, 4, shape, nbytes=28) + payload)
    vectors.reject("bad_payload_size", "v2-code-of-other-size", v2(6, 4, shape) + payload)
    vectors.reject("bad_offset", "0", v2(1, 4, shape, offset=0) + payload)
    vectors.reject("bad_offset", "odd", v2(1, 4, shape, offset=257) + b"\0" + payload)
    vectors.reject("bad_offset", "64", v2(1, 4, shape, offset=320) + bytes(64) + payload)
    for index in range(3):
        reserved = tuple(int(index == each) for each in range(3))
        vectors.reject("bad_reserved", f"{96 + 8 * index}", v2(1, 4, shape, reserved=reserved) + payload)
    for name, text in (("none", b""), ("gap", b"cuda\0:0"), ("not-ascii", b"\xffcuda"), ("control", b"cuda\n")):
        header = v2(1, 4, shape, flags=SEGMENT | DEVICE, reserved=device(text))
        vectors.reject("bad_reserved", f"device-{name}", header + payload)
    vectors.reject("bad_reserved", "lease", v2(1, 4, shape, lease=1) + payload)
    vectors.reject("bad_reserved", "guest", v2(1, 4, shape, guest=1) + payload)
    vectors.reject("bad_reserved", "checksum-without-flag", v2(1, 4, shape, crc=1) + payload)
    vectors.reject("bad_reserved", "checksum-of-33-bits", v2(1, 4, shape, flags=CHECKSUM, crc=1 << 32) + payload)
    big = (2**31 - 1,) * 4
    vectors.reject("too_large", "v0", v0(1, big) + payload)
    vectors.reject("too_large", "v1", v1(1, big, count=6) + payload)
    vectors.reject("too_large", "v2", v2(1, 4, (2**62, 2), nbytes=24, count=6) + payload)
    vectors.reject("too_large", "v2-empty", v2(1, 4, (0, 2**62, 2)))
    vectors.reject("too_large", "v2-one-byte", v2(8, 1, (2**63 - 1,)) + payload)
    vectors.reject("header_checksum", "v2", v2(1, 4, shape, header_checksum=0) + payload)
    for bit_of in (12, 40, 128, 255):
        raw = bytearray(v2(1, 4, shape) + payload)
        raw[bit_of] ^= 0x80
        vectors.reject("header_checksum", f"byte-{bit_of}", bytes(raw))
    crc = zlib.crc32(payload) ^ 1
    broken = v2(1, 4, shape, flags=CHECKSUM, crc=crc) + payload
    vectors.reject("payload_checksum", "v2", broken, only_verified=True)
    vectors.reject("payload_checksum", "empty", v2(1, 4, (0,), flags=CHECKSUM, crc=1), only_verified=True)
    vectors.reject("unpublished", "v2", v2(1, 4, shape, seq=0) + payload)
    vectors.reject("unpublished", "segment", v2(1, 4, shape, flags=SEGMENT, seq=0) + payload)
    vectors.reject("unpublished", "given-up", v2(1, 4, shape, flags=SEGMENT, seq=2**64 - 1) + payload)
    vectors.reject("unpublished", "before-its-checksum", v2(1, 4, shape, seq=0, header_checksum=0) + payload)
    vectors.reject("torn", "v2", v2(1, 4, shape, seq=2, seq_copy=1) + payload)
    vectors.reject("torn", "segment", v2(1, 4, shape, flags=SEGMENT, seq=2, seq_copy=1) + payload)
    vectors.reject("torn", "layout-seq", v2(1, 4, shape, seq=2, layout_seq=1) + payload)
    for name, header in (("v0", v0(1, shape)), ("v1", v1(1, shape)), ("v2", v2(1, 4, shape))):
        vectors.reject("truncated", name, header + payload[:-1])
        vectors.reject("truncated", f"{name}-header-alone", header)
        vectors.reject("trailing_bytes", name, header + payload + b"\0")
    vectors.reject("truncated", "v1-a-gigabyte", v1(1, (2**28,)) + payload)
    vectors.reject("truncated", "v2-an-exabyte", v2(8, 1, (2**60,)) + payload)
    vectors.reject("truncated", "segment", v2(1, 4, shape, flags=SEGMENT) + payload[:-1])
    vectors.reject("truncated", "v2-offset", v2(1, 4, shape, offset=2**32 - 256) + payload)


def main(folder: Path = FOLDER) -> None:
    """Write every file and the index."""
    vectors = Vectors(folder)
    add_good(vectors)
    add_bad(vectors)
    lines = [
        f' "{kind}": [\n  ' + ",\n  ".join(map(json.dumps, getattr(vectors, kind))) + "\n ]" for kind in ("good", "bad")
    ]
    (folder / "index.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
