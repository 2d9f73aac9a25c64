"""Sorts the inputs of one run: values, and tensors, each with the place where the process finds it. Copies nothing."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np

from ..tsr import dtypes
from ..tsr.tensors import is_little_endian, to_array
from .areas import Area, Piece, find_loan, has_loans, size_of
from .bundles import Bundle
from .interface import COPIED, IN_PLACE, Algorithm
from .memory import ALIGNMENT
from .messages import BundleSpec, TensorSpec
from .placement import SharedFile, may_be_in_file, open_file_of
from .values import plain

__all__ = ["ALIGNMENT", "Inputs", "Shared"]

_MAX_LOANS: Final = 8
_LEAST_FILE_NBYTES: Final = 1 << 20  # a smaller array is copied in less time than its file is found


class Shared(Protocol):
    """Memory that a process gets beside its two areas."""

    fd: int
    nbytes: int


class Inputs:
    """See the module's docstring. Close it after the run.

    Args:
        inputs: by name: JSON values, arrays, torch tensors, bundles.
        may_give_files: whether the process may read files in place.

    Attributes:
        values: the inputs that are JSON values.
        pieces: the arrays and bytes to be copied, with their offsets in the inputs' area.
        specs: descriptions of the tensors.
        bundles: descriptions of the bundles, by name.
        loans: areas, bundles and files that are read in place.
        places: of each tensor and bundle, by name: ``"in place"`` or ``"copied"``.
        nbytes: bytes of the tensors that are copied.
        end: where the pieces end in the inputs' area.
        arguments: how many inputs are the function's arguments, named by their number; None if none are.
    """

    def __init__(self, inputs: Mapping[str, Any], *, may_give_files: bool = False) -> None:
        self.values: dict[str, Any] = {}
        self.pieces: list[Piece] = []
        self.specs: list[TensorSpec] = []
        self.bundles: dict[str, BundleSpec] = {}
        self.loans: list[Shared] = []
        self.places: dict[str, str] = {}
        self.arguments: int | None = None
        self.end = 0
        self._may_give_files = may_give_files
        self._kept: list[np.ndarray[Any, Any]] = []  # arrays read in place: while they live, their memory is not reused
        torch = sys.modules.get("torch")
        kinds = (np.ndarray, np.generic) if torch is None else (np.ndarray, np.generic, torch.Tensor)
        try:
            for name, value in inputs.items():  # bundles first, because they cannot be copied if loans run out
                if isinstance(value, Bundle):
                    self.bundles[name] = BundleSpec(self._lend(value), value.specs)
                    self.places[name] = IN_PLACE
            for name, value in inputs.items():
                if isinstance(value, Bundle):
                    continue
                if isinstance(value, kinds):
                    dtype, array = to_array(value)
                    offset, number = self._place(array)
                    self.specs.append(TensorSpec(name, dtype.name, array.shape, offset, number))
                    self.places[name] = IN_PLACE if number else COPIED
                else:
                    self.values[name] = plain(value, f"the input {name!r}")
        except BaseException:
            self.close()
            raise
        self.nbytes = self.end and sum(size_of(piece) for _, piece in self.pieces)

    def add(self, piece: np.ndarray[Any, Any] | bytes) -> int:
        """Add something to be copied; returns its offset."""
        offset = -(-self.end // ALIGNMENT) * ALIGNMENT
        self.end = offset + size_of(piece)
        self.pieces.append((offset, piece))
        return offset

    def add_code(self, algorithm: Algorithm) -> tuple[int, int, int]:
        """Add an algorithm's code; returns the number of its area, its offset there and its size."""
        if algorithm.bundle is None:
            return 0, self.add(algorithm.code), len(algorithm.code)
        (spec,) = algorithm.bundle.specs
        return self._lend(algorithm.bundle), spec.offset, math.prod(spec.shape)

    def private_nbytes(self) -> int:
        """Bytes of memory that private mappings of all inputs may take, in whole pages."""
        ends = {0: self.end}
        for each in self.specs:
            end = each.offset + dtypes.by_name(each.dtype).itemsize * math.prod(each.shape)
            ends[each.area] = max(end, ends.get(each.area, 0))
        for bundle in self.bundles.values():
            ends[bundle.area] = self.loans[bundle.area - 1].nbytes
        return sum(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE for end in ends.values())

    def truncated(self) -> SharedFile | None:
        """A file that is read in place and was truncated; None if there is none."""
        return next((each for each in self.loans if isinstance(each, SharedFile) and each.is_truncated()), None)

    def close(self) -> None:
        """Release the files."""
        for each in self.loans:
            if isinstance(each, SharedFile):
                each.close()
        self.loans = []

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lend(self, bundle: Bundle) -> int:
        """Add a bundle to the loans, unless it is there; returns its number."""
        if bundle not in self.loans:
            if len(self.loans) >= _MAX_LOANS:
                raise ValueError(f"a run takes {_MAX_LOANS} bundles at most; put the tensors of several into one")
            self.loans.append(bundle)
        return 1 + self.loans.index(bundle)

    def _place(self, array: np.ndarray[Any, Any]) -> tuple[int, int]:
        """An array's offset, and the number of the loan that it lies in; 0 for the inputs' area: it is copied."""
        may_be_found = has_loans() or (self._may_give_files and array.nbytes >= _LEAST_FILE_NBYTES)
        if may_be_found and array.nbytes and array.flags.c_contiguous and is_little_endian(array):
            found = self._find(array)
            if found is not None:
                self._kept.append(array)
                return found
        return self.add(array), 0

    def _find(self, array: np.ndarray[Any, Any]) -> tuple[int, int] | None:
        lent = find_loan(array)
        if lent in self.loans:
            return 0, 1 + self.loans.index(lent)
        if len(self.loans) >= _MAX_LOANS:
            return None
        found: tuple[Area | SharedFile, int] | None = (lent, 0) if lent is not None else None
        if found is None and self._may_give_files and array.nbytes >= _LEAST_FILE_NBYTES and may_be_in_file(array):
            found = open_file_of(array)
        if found is None:
            return None
        loan, offset = found
        if offset % ALIGNMENT:
            if isinstance(loan, SharedFile):
                loan.close()
            return None
        self.loans.append(loan)
        return offset, len(self.loans)
