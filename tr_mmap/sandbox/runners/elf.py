"""Reads from a shared library's file for which machine it is, and which functions it exports. Executes nothing of it.

It reads the dynamic segment, as the loader does, and not the sections, which may be stripped.
"""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from .compiled import Refused

__all__ = ["exported_functions"]

_MACHINES: Final = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}
_SHARED: Final = 3  # ET_DYN
_LOAD, _DYNAMIC = 1, 2  # kinds of segments
_HASH, _STRTAB, _SYMTAB, _STRSZ, _FLAGS_1, _GNU_HASH = 4, 5, 6, 10, 0x6FFFFFFB, 0x6FFFFEF5  # tags of the dynamic one
_PROGRAM: Final = 0x08000000  # DF_1_PIE, of _FLAGS_1: a position-independent program
_WORD: Final = "<" if sys.byteorder == "little" else ">"
_HEADER: Final = struct.Struct(_WORD + "16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct(_WORD + "IIQQQQQQ")
_ENTRY: Final = struct.Struct(_WORD + "qQ")
_SYMBOL: Final = struct.Struct(_WORD + "IBBHQQ")
_INT: Final = struct.Struct(_WORD + "I")
_MAX_SYMBOLS: Final = 1 << 20
_MAX_NAME_NBYTES: Final = 4096


class _Segment(NamedTuple):
    address: int
    offset: int
    nbytes: int  # in the file


def exported_functions(data: bytes) -> list[str]:
    """Names of the functions that a library exports, in the order of its symbol table.

    Args:
        data: the file.

    Raises:
        Refused: it is not a shared library for this machine.
    """
    try:
        return _Library(data).functions()
    except (struct.error, IndexError, OverflowError, MemoryError) as error:
        raise _refused(f"is damaged: {error}") from None


def _refused(why: str) -> Refused:
    return Refused(
        "NotALibrary", f"the code {why}; give a shared library for this machine, as `g++ -shared -fPIC` makes"
    )


class _Library:
    def __init__(self, data: bytes) -> None:
        self._data = data
        if data[:4] != b"\x7fELF":
            raise _refused("is no ELF file")
        if len(data) < _HEADER.size:
            raise _refused("ends within its header")
        if data[4] != 2 or data[5] != (1 if _WORD == "<" else 2):
            raise _refused("is for machines of another word or byte order")
        _, kind, machine, _, _, segments_at, _, _, _, segment_nbytes, count, *_ = _HEADER.unpack_from(data)
        if machine != _MACHINES.get(platform.machine(), machine):
            raise _refused(f"is for another machine: its number is {machine}, and this is {platform.machine()}")
        if kind != _SHARED or segment_nbytes != _SEGMENT.size:
            raise _refused("is an object file or a program")
        self._segments = []
        dynamic = None
        for index in range(count):
            which, _, offset, address, _, nbytes, *_ = _SEGMENT.unpack_from(data, segments_at + index * segment_nbytes)
            if which == _LOAD:
                self._segments.append(_Segment(address, offset, nbytes))
            elif which == _DYNAMIC:
                dynamic = _Segment(address, offset, nbytes)
        if dynamic is None:
            raise _refused("has no dynamic segment")
        self._tags = dict(self._entries(dynamic))
        if self._tags.get(_FLAGS_1, 0) & _PROGRAM:
            raise _refused("is a program")

    def functions(self) -> list[str]:
        """See :func:`exported_functions`."""
        if not {_SYMTAB, _STRTAB, _STRSZ} <= self._tags.keys():
            raise _refused("exports nothing")
        symbols, texts = self._place(self._tags[_SYMTAB]), self._place(self._tags[_STRTAB])
        texts_end = min(texts + self._tags[_STRSZ], len(self._data))
        found = []
        for index in range(1, self._count_symbols()):
            name, info, visibility, section, *_ = _SYMBOL.unpack_from(self._data, symbols + index * _SYMBOL.size)
            # FUNC or GNU_IFUNC; defined here; global, weak or unique; default or protected visibility.
            if info & 15 in (2, 10) and section and info >> 4 in (1, 2, 10) and visibility & 3 in (0, 3):
                start = texts + name
                end = self._data.find(b"\0", start, min(start + _MAX_NAME_NBYTES, texts_end))
                if start >= texts_end or end < 0:
                    raise _refused("is damaged: a name lies outside of it")
                found.append(self._data[start:end].decode("utf-8", "replace"))
        return found

    def _entries(self, dynamic: _Segment) -> Iterator[tuple[int, int]]:
        for at in range(dynamic.offset, dynamic.offset + dynamic.nbytes, _ENTRY.size):
            tag, value = _ENTRY.unpack_from(self._data, at)
            if tag == 0:
                return
            yield tag, value

    def _place(self, address: int) -> int:
        """The offset in the file of an address."""
        for each in self._segments:
            if each.address <= address < each.address + each.nbytes:
                return address - each.address + each.offset
        raise _refused(f"is damaged: nothing is loaded at {address:#x}")

    def _count_symbols(self) -> int:
        """The length of the symbol table, from the hash tables: the symbol table itself does not have it."""
        if _HASH in self._tags:
            count = self._int(self._place(self._tags[_HASH]) + 4)
        elif _GNU_HASH in self._tags:
            count = self._count_by_gnu_hash(self._place(self._tags[_GNU_HASH]))
        else:
            raise _refused("exports nothing")
        if count > _MAX_SYMBOLS:
            raise _refused(f"has {count} symbols, more than {_MAX_SYMBOLS}")
        return count

    def _count_by_gnu_hash(self, at: int) -> int:
        buckets, first, filter_words = self._int(at), self._int(at + 4), self._int(at + 8)
        if buckets > _MAX_SYMBOLS:
            raise _refused(f"has {buckets} buckets of symbols, more than {_MAX_SYMBOLS}")
        buckets_at = at + 16 + 8 * filter_words
        chains_at = buckets_at + 4 * buckets
        last = max((self._int(buckets_at + 4 * index) for index in range(buckets)), default=0)
        if last < first:
            return first  # nothing is exported
        while last <= _MAX_SYMBOLS and not self._int(chains_at + 4 * (last - first)) & 1:
            last += 1
        return last + 1

    def _int(self, at: int) -> int:
        return int(_INT.unpack_from(self._data, at)[0])
