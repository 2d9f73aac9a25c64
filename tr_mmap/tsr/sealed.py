"""Sealed files: a v2 file, encrypted and authenticated under a key. The layout is in the docstring of ``tr_mmap.tsr``.

Reading decrypts into memory of this process; a sealed file is never mapped. Needs the package ``cryptography``, which
is imported when the first key is used.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from ..base import system
from ..errors import BadKey, Fault, MissingPackage, TSRFormatError
from ..wire.header import SEALED_MAGIC, V2_HEADER_NBYTES
from .header import Header, decode
from .tensors import from_buffer

if TYPE_CHECKING:
    from .tensors import Tensor

__all__ = ["KEY_NBYTES", "SEALED_HEADER_NBYTES", "check_key", "load", "read_header", "sealed_nbytes", "write"]

KEY_NBYTES: Final = 32  # AES-256
SEALED_HEADER_NBYTES: Final = 64
CHUNK_NBYTES: Final = 1 << 20  # decrypted at a time; far below the 64 GiB that GCM allows for one nonce
TAG_NBYTES: Final = 16
_SALT_NBYTES: Final = 32
_VERSION: Final = 1
_HEADER: Final = struct.Struct(f"<4siiIQ{_SALT_NBYTES}s8s")
_NO_BYTES: Final = bytes(8)


def check_key(key: object) -> bytes:
    """The key as bytes, if it is a valid one.

    Raises:
        BadKey: it is not 32 bytes.
        MissingPackage: ``cryptography`` is not installed.
    """
    if not isinstance(key, bytes | bytearray | memoryview) or len(bytes(key)) != KEY_NBYTES:
        what = f"{len(key)} bytes" if isinstance(key, bytes | bytearray | memoryview) else type(key).__name__
        raise BadKey(
            f"a key is {KEY_NBYTES} bytes, not {what}; secrets.token_bytes({KEY_NBYTES}) makes one, and "
            "hashlib.scrypt makes one of a passphrase"
        )
    _aes()
    return bytes(key)


def write(fd: int, key: bytes, header: bytes, payload: memoryview) -> None:
    """Write a sealed file.

    Args:
        fd: of a new file.
        key: from :func:`check_key`.
        header: of the v2 file that is sealed, 256 bytes.
        payload: the elements of that file, which follow its header without a gap.

    Raises:
        OutOfSpace: the file system is full.
    """
    salt = os.urandom(_SALT_NBYTES)
    nbytes = len(header) + len(payload)
    outer = _HEADER.pack(SEALED_MAGIC, _VERSION, SEALED_HEADER_NBYTES, 0, nbytes, salt, _NO_BYTES)
    cipher = _cipher(key, salt)
    system.write_all(fd, outer)
    start = CHUNK_NBYTES - len(header)
    chunk: bytes | memoryview = header + payload[:start]
    for index in range(_count(nbytes)):
        system.write_all(fd, cipher.encrypt(_nonce(index), chunk, outer), _place(index))
        chunk = payload[start : start + CHUNK_NBYTES]
        start += CHUNK_NBYTES


def read_header(path: str, key: bytes) -> Header:
    """The checked header of a sealed file. Only the first chunk is decrypted.

    Raises:
        TSRFormatError: as in :func:`load`.
    """
    fd = system.open_path(path)
    try:
        return _Sealed(fd, path, key).header
    finally:
        system.close(fd)


def sealed_nbytes(nbytes: int) -> int:
    """Bytes of the sealed form of a v2 file of ``nbytes`` bytes."""
    return SEALED_HEADER_NBYTES + nbytes + TAG_NBYTES * _count(nbytes)


def load(path: str, key: bytes, framework: str, is_writable: bool, verify: bool) -> Tensor:
    """The tensor of a sealed file, in memory of its own.

    Args:
        path: of the file.
        key: from :func:`check_key`.
        framework: ``"numpy"`` or ``"torch"``.
        is_writable: whether numpy may write to the array; torch always may.
        verify: compare the payload with its CRC-32 too, if there is one. All of the file is authenticated anyway.

    Raises:
        TSRFormatError: NOT_SEALED; SEAL_BROKEN: another key, or any byte was changed; or any other defect.
        HostilePath: not a regular file.
    """
    fd = system.open_path(path)
    try:
        sealed = _Sealed(fd, path, key)
        payload = sealed.read_payload()
    finally:
        system.close(fd)
    header = sealed.header
    buffer = payload.data
    if verify and header.payload_checksum is not None and zlib.crc32(buffer) != header.payload_checksum:
        _refuse(Fault.PAYLOAD_CHECKSUM, "the payload does not match its checksum; it was sealed so", path)
    if framework == "numpy" and not is_writable:
        buffer = buffer.toreadonly()
    return from_buffer(buffer, header.dtype, header.shape, 0, framework)


class _Sealed:
    """An open sealed file whose first chunk was authenticated.

    Attributes:
        header: of the v2 file inside.
    """

    def __init__(self, fd: int, path: str, key: bytes) -> None:
        self._fd = fd
        self._path = path
        self._outer = outer = self._bytes(SEALED_HEADER_NBYTES, 0)
        self._nbytes, salt = _parse(outer, system.file_nbytes(fd), path)
        self._cipher = _cipher(key, salt)
        # Before anything is allocated: only a writer that has the key can claim a terabyte.
        self._first = self._read(0)
        self.header = decode(self._first[:V2_HEADER_NBYTES], file_nbytes=self._nbytes, path=path)
        if self.header.version != 2 or self.header.is_segment or self.header.payload_offset != V2_HEADER_NBYTES:
            _refuse(Fault.BAD_VERSION, "what is sealed is not a plain v2 file", path)

    def read_payload(self) -> np.ndarray[Any, Any]:
        """The decrypted payload, as an array of bytes."""
        payload = np.empty(self.header.payload_nbytes, np.uint8)
        position = 0
        part = self._first[V2_HEADER_NBYTES:]
        for index in range(1, _count(self._nbytes) + 1):
            payload[position : position + len(part)] = np.frombuffer(part, np.uint8)
            position += len(part)
            if position < len(payload):
                part = self._read(index)
        return payload

    def _bytes(self, nbytes: int, offset: int) -> bytes:
        try:
            return system.read_all(self._fd, nbytes, offset)
        except OSError as error:
            error.filename = self._path
            raise

    def _read(self, index: int) -> bytes:
        from cryptography.exceptions import InvalidTag

        nbytes = min(CHUNK_NBYTES, self._nbytes - index * CHUNK_NBYTES)
        data = self._bytes(nbytes + TAG_NBYTES, _place(index))
        try:
            plain: bytes = self._cipher.decrypt(_nonce(index), data, self._outer)
        except InvalidTag:
            _refuse(Fault.SEAL_BROKEN, "sealed with another key, or changed since", self._path)
        return plain


def _parse(outer: bytes, file_nbytes: int, path: str) -> tuple[int, bytes]:
    """The size of the v2 file inside in bytes, and the salt."""
    if outer[:4] != SEALED_MAGIC:
        _refuse(Fault.NOT_SEALED, "not sealed, so the key proves nothing; load it without one if you trust it", path)
    if len(outer) < SEALED_HEADER_NBYTES:
        _refuse(Fault.TOO_SHORT, f"{len(outer)} bytes, a sealed file's header has {SEALED_HEADER_NBYTES}", path)
    _, version, header_nbytes, flags, nbytes, salt, reserved = _HEADER.unpack(outer)
    if version != _VERSION:
        _refuse(Fault.BAD_VERSION, f"sealed version {version}, {_VERSION} is known", path)
    if header_nbytes != SEALED_HEADER_NBYTES:
        _refuse(Fault.BAD_HEADER_SIZE, f"header size {header_nbytes}, it is {SEALED_HEADER_NBYTES}", path)
    if flags:
        _refuse(Fault.BAD_FLAGS, f"flags {flags:#x}, none is known", path)
    if reserved != _NO_BYTES:
        _refuse(Fault.BAD_RESERVED, "bytes 56 to 63 must be 0", path)
    if nbytes < V2_HEADER_NBYTES:
        _refuse(Fault.BAD_PAYLOAD_SIZE, f"{nbytes} sealed bytes, a v2 file has {V2_HEADER_NBYTES} and more", path)
    wanted = sealed_nbytes(nbytes)
    if file_nbytes != wanted:
        fault = Fault.TRUNCATED if file_nbytes < wanted else Fault.TRAILING_BYTES
        _refuse(fault, f"{file_nbytes} bytes, {nbytes} sealed ones make {wanted}", path)
    return nbytes, salt


def _count(nbytes: int) -> int:
    return -(-nbytes // CHUNK_NBYTES)


def _place(index: int) -> int:
    return SEALED_HEADER_NBYTES + index * (CHUNK_NBYTES + TAG_NBYTES)


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "little")  # never twice under one key: each file has a key of its own


def _cipher(key: bytes, salt: bytes) -> Any:
    import hashlib  # here: it loads OpenSSL, which no unsealed file needs

    return _aes()(hashlib.blake2b(salt, key=key, digest_size=32, person=b"tr_mmap sealed 1").digest())


def _aes() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except (ImportError, OSError) as error:  # the import opens files
        system.check_import(error, "the package cryptography, which a key needs, cannot be imported")
        if isinstance(error, OSError):
            raise
        raise MissingPackage(
            "a key needs the package cryptography, which is not installed: pip install 'tr_mmap[crypto]'",
            package="cryptography",
        ) from error
    return AESGCM


def _refuse(fault: Fault, what: str, path: str) -> NoReturn:
    raise TSRFormatError(f"{path}: {what}", fault=fault, path=path)
