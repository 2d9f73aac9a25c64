"""Element types: TSR code, name, size, and their numpy and torch counterparts.

The table is ``wire.header.DTYPES``: every type that numpy (with ``ml_dtypes``) and torch both have. Codes 1 to 8 are
those of the v0 and v1 layouts. Importing this module imports neither torch nor ``ml_dtypes``: each is imported when a
dtype that only it has is first needed. Handles dtypes only, never tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from ..base import system
from ..errors import MissingPackage, UnsupportedTensor
from ..wire.header import DTYPES

if TYPE_CHECKING:
    import torch as torch_module

__all__ = ["TABLE", "DType", "by_code", "by_name", "from_numpy", "from_torch", "import_torch", "resolve"]


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One element type. There is one object for each type, so ``is`` and ``==`` mean the same, also after pickling.

    Attributes:
        code: the number that stands in a TSR header.
        name: its name in numpy or ``ml_dtypes``.
        itemsize: bytes of one element.
        torch_name: the name of its attribute in ``torch``; None if torch never had it.
    """

    code: int
    name: str
    itemsize: int
    torch_name: str | None

    @property
    def numpy(self) -> np.dtype[Any]:
        """The little-endian numpy dtype.

        Raises:
            MissingPackage: it is one of ``ml_dtypes``, which is not installed.
        """
        dtype = _NUMPY.get(self.code)
        return dtype if dtype is not None else _import_numpy(self)

    @property
    def torch(self) -> torch_module.dtype:
        """The torch dtype; imports torch.

        Raises:
            UnsupportedTensor: the installed torch has no such dtype.
            MissingPackage: torch is not installed.
        """
        dtype: torch_module.dtype | None = _TORCH.get(self.code)
        return dtype if dtype is not None else _import_torch(self)

    def __reduce__(self) -> Any:
        return (by_code, (self.code,))


TABLE: Final[tuple[DType, ...]] = tuple(DType(code, name, itemsize, name) for code, name, itemsize in DTYPES)

_BY_CODE: Final = {d.code: d for d in TABLE}
_BY_NAME: Final = {d.name: d for d in TABLE}
_BY_TORCH_NAME: Final = {d.torch_name: d for d in TABLE}


def _numpys_own(name: str) -> np.dtype[Any] | None:
    """The little-endian dtype of that name that numpy has without ``ml_dtypes``, be that imported or not."""
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    # From its text, so that on a little-endian machine it is numpy's own object, which numpy compares by identity.
    return np.dtype(dtype.newbyteorder("<").str) if dtype.isbuiltin == 1 else None


# Caches, filled when a type is first used. They are bounded, because only dtypes of the table enter. A race between
# threads writes the same value twice, which is harmless.
_NUMPY: Final[dict[int, np.dtype[Any]]] = {d.code: dtype for d in TABLE if (dtype := _numpys_own(d.name)) is not None}
_TORCH: Final[dict[int, Any]] = {}
_FROM_NUMPY: Final[dict[np.dtype[Any], DType]] = {dtype: _BY_CODE[code] for code, dtype in _NUMPY.items()}
_FROM_TORCH: Final[dict[Any, DType]] = {}


def by_code(code: int) -> DType:
    """The type with that TSR code.

    Raises:
        UnsupportedTensor: no type has that code.
    """
    try:
        return _BY_CODE[code]
    except KeyError:
        raise UnsupportedTensor(f"{code} is no TSR dtype code; {_supported()}") from None


def by_name(name: str) -> DType:
    """The type with that name, for example ``"bfloat16"``.

    Raises:
        UnsupportedTensor: no type has that name.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UnsupportedTensor(f"{name!r} is no TSR dtype; {_supported()}") from None


def from_numpy(dtype: np.dtype[Any]) -> DType:
    """The type of a numpy dtype of either byte order.

    Raises:
        UnsupportedTensor: the table has no such type.
    """
    try:
        return _FROM_NUMPY[dtype]
    except KeyError:
        return _meet_numpy(dtype)


def from_torch(dtype: torch_module.dtype) -> DType:
    """The type of a torch dtype.

    Raises:
        UnsupportedTensor: the table has no such type.
    """
    try:
        return _FROM_TORCH[dtype]
    except KeyError:
        return _meet_torch(dtype)


def resolve(dtype: Any) -> DType:
    """The type that a user asks for.

    Args:
        dtype: a name, of the table or one that numpy knows (``"f4"``, ``"<f4"``, ``"double"``); a numpy dtype or scalar
            type; ``float``, ``int``, ``bool`` or ``complex``, which are what numpy makes of them; a torch dtype; or a
            :class:`DType`.

    Raises:
        UnsupportedTensor: the table has no such type; or it is big-endian, because TSR stores little-endian elements
            and never replaces the byte order that was asked for silently.
    """
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str) and dtype in _BY_NAME:
        return _BY_NAME[dtype]
    if type(dtype).__module__ == "torch":
        return from_torch(dtype)
    found = None
    if dtype is not None:  # numpy takes None for float64
        try:
            found = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):  # numpy parses some texts as Python code
            pass
    if found is None:
        raise UnsupportedTensor(f"{dtype!r} is no dtype; {_supported()}")
    known = from_numpy(found)
    if not found.isnative and found.newbyteorder("<") != found:
        raise UnsupportedTensor(
            f"{dtype!r} is big-endian, and TSR is little-endian; ask for {known.name!r}: numpy swaps the bytes as you "
            "store into it"
        )
    return known


def _supported() -> str:
    return "supported are " + ", ".join(d.name for d in TABLE)


def _import_numpy(known: DType) -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        _refuse_missing(error, "ml_dtypes", f"numpy has no {known.name}, the package ml_dtypes has it")
    except (ImportError, OSError) as error:
        system.check_import(error, "ml_dtypes cannot be imported")
        raise
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, known.name))
    _NUMPY[known.code] = dtype
    _FROM_NUMPY[dtype] = known
    return dtype


def import_torch() -> Any:
    """The module torch.

    Raises:
        MissingPackage: it is not installed.
        SystemLimit: a limit of the system forbids to open its files.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        _refuse_missing(error, "torch", 'this needs torch (framework="numpy" does not)')
    except (ImportError, OSError) as error:
        system.check_import(error, "torch cannot be imported")
        raise
    return torch


def _refuse_missing(error: ModuleNotFoundError, package: str, what: str) -> NoReturn:
    if error.name != package:
        raise error  # the package is installed; one that it imports is not
    raise MissingPackage(f"{what}; it is not installed: pip install {package}", package=package) from error


def _import_torch(known: DType) -> torch_module.dtype:
    torch = import_torch()
    dtype: torch_module.dtype | None = getattr(torch, known.torch_name or "", None)
    if dtype is None:
        raise UnsupportedTensor(
            f"torch {torch.__version__} has no dtype {known.name}; ask for numpy, or install a newer torch"
        )
    _TORCH[known.code] = dtype
    return dtype


def _meet_numpy(dtype: np.dtype[Any]) -> DType:
    # The name is only a first test: another library may register a dtype of the same name, and longlong has int64's.
    known = _BY_NAME.get(dtype.name)
    if known is None or (dtype != known.numpy and dtype != known.numpy.newbyteorder()):
        raise UnsupportedTensor(f"numpy dtype {dtype!s} has no TSR form; {_supported()}; convert with .astype() first")
    _FROM_NUMPY[dtype] = known
    return known


def _meet_torch(dtype: torch_module.dtype) -> DType:
    known = _BY_TORCH_NAME.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise UnsupportedTensor(f"{dtype} has no TSR form; {_supported()}; convert with .to() first")
    _FROM_TORCH[dtype] = known
    return known
