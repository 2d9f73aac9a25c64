"""One torch tensor that may also be used as a list of one. Imports torch; only a server that has one imports this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch

__all__ = ["OneTensor", "one_tensor"]


class OneTensor(torch.Tensor):
    """A tensor for programs that take it as one, and for programs that take it as a list of one.

    As a list: ``t[0]`` is the tensor, ``x, = t`` and ``for x in t`` give it, ``len(t)`` is 1, and ``if t:`` is true.
    All else is the tensor's: it shares the memory, is sent and pickled as a plain tensor, and what is computed of it is
    plain. A slice, a mask and ``t[i, j]`` index the tensor.

    An index other than 0 is an error, and so is a store to any whole number: otherwise a loop over ``t[i]`` would get
    the whole tensor first, and then its rows.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operation. Makes results plain tensors, also where torch returns ``self``."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            # A method that changes the tensor in place returns the same object: t.requires_grad_() is still the leaf.
            return result if getattr(func, "__name__", "").endswith("_") else _plain(result)

    def plain(self) -> Any:
        """The same tensor, with nothing of a list."""
        return _plain(self)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.plain(),))

    def __reversed__(self) -> Iterator[torch.Tensor]:
        return iter(self)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> torch.Tensor:
        if type(index) is int:
            return next(iter(self)) if index == 0 else self._refuse(index)
        found: torch.Tensor = self.plain()[index]
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        if type(index) is not int:
            self.plain()[index] = value
        elif not (index == 0 and _is_same(self, value)):  # as after tensors[0] += 1
            self._refuse(index)

    def _refuse(self, index: int) -> NoReturn:
        raise IndexError(
            f"[{index}] may mean a row of the tensor, or an element of the list of one tensor that get_tensors(…, 1) "
            "gives by default; set one_tensor = 'tensor' or 'list' in the server's class"
        )

    def __repr__(self, **options: Any) -> str:  # type: ignore[override] # torch's has an option of its own
        return str(self.plain().__repr__(**options))

    def __format__(self, spec: str) -> str:
        return format(self.plain(), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.plain().__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)


def _plain(value: Any) -> Any:
    if isinstance(value, OneTensor):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(torch.Tensor)
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value


def _is_same(one: torch.Tensor, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and other.is_set_to(one.as_subclass(torch.Tensor))


def one_tensor(tensor: torch.Tensor) -> OneTensor:
    """A received tensor as a :class:`OneTensor` over the same memory."""
    return tensor.as_subclass(OneTensor)
