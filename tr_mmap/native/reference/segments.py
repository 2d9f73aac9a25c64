"""Arrays over segments, in plain Python: views that hold a lease, loans, a pool's free lists. Opens and maps no file.

An array over a mapping keeps a memoryview alive as its base, and so does every view of that array. A weak reference to
the memoryview notices its end, which may come in any thread and between any two steps. Its callback only appends the
weak reference to ``finished``, in C, so it never runs our code there. :func:`drain` does the work when the session is
used next. (The extension's arrays have a base whose destructor does the work, so there ``finished`` is always empty.)
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import weakref
from collections import deque
from typing import Any, Final

import numpy as np

from ...wire.header import LEASE_FREE, LEASE_PINNED, MAX_NDIM
from .lease_words import LeaseWords

__all__ = ["FreeLists", "OwnerSegment", "ReaderSegment", "drain", "finished", "freeze", "loan_of", "view_of"]


class _Anchor(weakref.ref[memoryview]):
    """A weak reference to the memoryview that keeps an array's memory."""

    __slots__ = ("generation", "segment")
    generation: int
    segment: Any

    # A weak reference hashes as its referent does, and a memoryview hashes its whole content.
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class _View(_Anchor):
    """A view of a :class:`ReaderSegment`."""

    __slots__ = ("key", "mapping")
    key: int
    mapping: memoryview | None

    def end(self) -> None:
        if _views.get(self.key) is self:  # a later memoryview may have the same id
            _views.pop(self.key, None)
        self.segment._view_ended(self)


class _Loan(_Anchor):
    """A loan of an :class:`OwnerSegment`."""

    __slots__ = ("array", "is_over", "key", "layout")
    array: weakref.ref[np.ndarray[Any, Any]]
    is_over: bool
    key: int
    layout: object

    def end(self) -> None:
        if _loans.get(self.key) is self:  # a later memoryview may have the same id
            _loans.pop(self.key, None)
        if not self.is_over:
            if self.segment.loaned_layout is self.layout:  # else there is a later loan of another layout
                self.segment.loaned_layout = None  # first: a pool that is put right after an interrupt goes by it
            self.is_over = True  # before the release, in case an interrupt comes: to release twice is worse than never
            self.segment.release()


finished: Final[deque[Any]] = deque()
_loans: Final[dict[int, _Loan]] = {}  # by the id of the memoryview
_views: Final[dict[int, _View]] = {}  # in the same way, those over the shared mapping
_lock = threading.RLock()
_generation = 0  # counts forks; objects of an earlier generation belong to the parent


def _forked_in_child() -> None:
    global _generation, _lock
    _generation += 1
    finished.clear()
    _lock = threading.RLock()  # another one: a signal handler may have forked where the other is still to be released


os.register_at_fork(after_in_child=_forked_in_child)


def drain() -> None:
    """Release the leases and the holds of views and loans that have ended."""
    with _lock:
        while True:
            try:
                anchor = finished[0]  # stays in the list until it is done: twice does no harm, but to miss it would
            except IndexError:
                return
            if getattr(anchor, "generation", None) == _generation:  # it has none if an interrupt came while it was made
                anchor.end()
            with contextlib.suppress(ValueError):  # a signal handler has come here too
                finished.remove(anchor)


class _Layout:
    """Dtype, shape and offset of a tensor in a segment's file."""

    __slots__ = ("count", "dtype", "offset", "shape")

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, file_nbytes: int) -> None:
        if dtype.hasobject or dtype.subdtype is not None or not dtype.itemsize:
            raise ValueError(f"the elements of a segment are plain numbers, not {dtype!r}")
        if not isinstance(shape, tuple) or len(shape) > MAX_NDIM:
            raise ValueError(f"a shape is a tuple of at most {MAX_NDIM} sizes")
        self.dtype = dtype
        self.shape = shape
        self.offset = offset
        self.count = math.prod(shape)
        if min(shape, default=0) < 0 or not 0 <= offset <= file_nbytes - self.count * dtype.itemsize:
            raise ValueError("the tensor does not fit into the file there")
        if offset % dtype.alignment:
            raise ValueError("the tensor is not aligned for its dtype there")

    def view(self, mapping: memoryview) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """An array over a mapping, and the root that it is a view of. The root's base is a memoryview of its own."""
        root: np.ndarray[Any, Any] = np.frombuffer(mapping, self.dtype, self.count, self.offset)
        if self.count == 0 and self.shape:  # numpy gives an array without elements no strides
            strides = (0,) * len(self.shape)
            return np.lib.stride_tricks.as_strided(root.reshape(self.shape), strides=strides), root
        return (root[:] if len(self.shape) == 1 else root.reshape(self.shape)), root


class ReaderSegment(LeaseWords):
    """A segment on its reader's side.

    Args:
        head: its first page, mapped for writing.
        file: the whole file, mapped for reading.
        line: the number of this reader's lease line; None for the session's own reader, which has the live line's.

    Attributes:
        spare: a copy-on-write mapping of the file that no view uses any more, for the next one.
        is_pinned: a forked child may use a view for ever, so the lease is never released.
        is_recent: a view was made since somebody cleared this.
        is_givable: other processes may read it too, each with a lease line.
        is_orphan: its owner has ended.
        links: names of its file, which the extension removes with it: paths, by who has made them.
    """

    __slots__ = (
        "_anchors",
        "_file",
        "_generation",
        "_layout",
        "_layout_seq",
        "is_givable",
        "is_orphan",
        "is_pinned",
        "is_recent",
        "links",
        "spare",
    )

    def __init__(self, head: Any, file: memoryview, line: int | None = None) -> None:
        super().__init__(head, None, line)
        self._file = file
        self._layout: _Layout | None = None
        self._layout_seq = 0
        self._anchors: set[object] = set()
        self._generation = _generation
        self.spare: memoryview | None = None
        self.is_pinned = False
        self.is_recent = False
        self.is_givable = False
        self.is_orphan = False
        self.links: dict[int, bytes] | None = None

    @property
    def views(self) -> int:
        """How many views live; each counts with all views of it."""
        return len(self._anchors)

    def set_layout(self, layout_seq: int, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> None:
        """Set the layout that the header describes.

        Args:
            layout_seq: the number of the layout in the header.
            dtype: of an element.
            shape: sizes in elements, outermost first.
            offset: of the payload in the file, in bytes.

        Raises:
            ValueError: the tensor does not fit into the file, or is not aligned there, or its elements are not plain
                numbers. Then there is no layout.
        """
        self._layout_seq = 0
        self._layout = _Layout(dtype, shape, offset, len(self._file))
        self._layout_seq = layout_seq

    def view(self, seq: int, mapping: memoryview | None = None) -> np.ndarray[Any, Any] | None:
        """An array over the tensor. The lease is held while the array or a view of it lives.

        Args:
            seq: the number that the tensor was published under.
            mapping: a copy-on-write mapping of the file for the array to use; it becomes the spare one when the array
                is gone. None to use the shared mapping.

        Returns:
            The array; None if the tensor's layout is not the one that was set.

        Raises:
            LookupError: the segment holds another tensor by now.
        """
        if mapping is not None and len(mapping) != len(self._file):
            raise ValueError("the mapping is not of the whole file")
        if self._generation != _generation:  # a child could not release the lease
            raise LookupError("the lease is that of the process that this one was forked from")
        with _lock:
            held = object()
            try:
                self._anchors.add(held)  # so that the end of another view does not release the lease meanwhile
                self.is_recent = True
                layout_seq = self.acquire(seq)
                layout = self._layout
                if not layout_seq:
                    raise LookupError("another tensor is there by now")
                if layout is None or layout_seq != self._layout_seq:
                    return None
                if not layout.count:
                    array: np.ndarray[Any, Any] = np.empty(layout.shape, layout.dtype)
                    array.flags.writeable = mapping is not None
                    return array
                array, root = layout.view(self._file if mapping is None else mapping)
                memory: Any = root.base
                anchor = _View(memory, finished.append)
                anchor.segment, anchor.mapping, anchor.generation = self, mapping, _generation
                anchor.key = id(memory)
                if mapping is None:
                    _views[anchor.key] = anchor
                self._anchors.add(anchor)
                return array
            finally:
                # As in _release_if_unused(), but without a call, because an interrupt could come after a call.
                self._anchors -= {held}
                if not self._anchors and self._generation == _generation:
                    self._words[self._lease_word] = LEASE_PINNED if self.is_pinned else LEASE_FREE

    def _view_ended(self, anchor: _View) -> None:
        self._anchors.discard(anchor)
        mapping, anchor.mapping = anchor.mapping, None  # only once, even if this is called again
        if self.spare is None:
            self.spare = mapping
        self._release_if_unused()

    def _release_if_unused(self) -> None:
        """Release the lease if no view is left."""
        if not self._anchors and self._generation == _generation:
            self._words[self._lease_word] = LEASE_PINNED if self.is_pinned else LEASE_FREE


class OwnerSegment(LeaseWords):
    """A segment on its owner's side.

    Args:
        file: the whole file, mapped for writing.
        members: the page that says which lease lines have a reader; None if none may have one.

    Attributes:
        name: of its file; the pool chooses it.
        requested_dtype: the dtype as the borrower wrote it, if the layout was made for a loan; else None.
        layout: dtype, shape and offset for the next tensor; None if not known.
        is_header_current: the header describes ``layout``, so a tensor of that layout needs only a stamp.
        loaned_layout: the layout that was loaned; None while the segment is not on loan.
        is_published: the loan was published, so this process may no longer write to it.
        is_private: the place of its payload is the borrower's own; the file is mapped elsewhere, or not.
        is_torch_loan: the loan is a torch tensor, which cannot be made read-only.
        twin: always None here; the extension's come to the place of a loan.
        is_slot: its file is not its own, so no tag may name it.
        holds: how many tags, messages and loans need its content; it is not filled while there are any.
        free_list: the list that it is appended to when the last hold is released; None if there is none.
        torch_loans: what was loaned as a torch tensor, by its address.
        pool_token: the same object for all segments of a pool, so that a pool recognises its own.
        seq: the number that it was last published under; 0 before.
        last_take: its pool's count of takes when the segment was last taken.
    """

    __slots__ = (
        "_dtype",
        "_file",
        "free_list",
        "holds",
        "is_header_current",
        "is_private",
        "is_published",
        "is_slot",
        "is_torch_loan",
        "last_take",
        "layout",
        "loaned_layout",
        "name",
        "pool_token",
        "requested_dtype",
        "seq",
        "twin",
    )

    def __init__(self, file: memoryview, members: memoryview | None = None) -> None:
        super().__init__(file, members)
        self._file = file
        self._dtype: np.dtype[Any] | None = None
        self.name = ""
        self.requested_dtype: object = None
        self.layout: tuple[Any, tuple[int, ...], int] | None = None
        self.is_header_current = False
        self.loaned_layout: tuple[Any, tuple[int, ...], int] | None = None
        self.is_published = False
        self.is_private = False
        self.is_torch_loan = False
        self.twin: object = None
        self.is_slot = False
        self.holds = 0
        self.free_list: list[Any] | None = None
        self.pool_token: object = None
        self.seq = 0
        self.last_take = 0

    def set_layout(self, layout: tuple[Any, tuple[int, ...], int], dtype: np.dtype[Any]) -> None:
        """Set the layout of the next tensor.

        Args:
            layout: the dtype (a ``DType``), the shape, and the offset in the file.
            dtype: the same dtype, as numpy's.

        Raises:
            ValueError: the tensor does not fit into the file, or is not aligned there, or its elements are not plain
                numbers. Then there is no layout.
        """
        self.clear_layout()
        _Layout(dtype, layout[1], layout[2], len(self._file))
        self._dtype = dtype
        self.layout = layout

    def clear_layout(self) -> None:
        """Forget the layout."""
        self.is_header_current = False
        self.requested_dtype = self.layout = None

    def release(self) -> None:
        """Release one hold; if it was the last one, append the segment to its free list."""
        self.holds -= 1
        if not self.holds and self.free_list is not None:
            self.free_list.append(self)

    def restore(self, holds: int, free_list: list[Any]) -> None:
        """Set the holds and the free list anew.

        Args:
            holds: how many there are without that of a loan.
            free_list: the segment is appended to it if it has no holds.
        """
        self.holds = holds + (self.loaned_layout is not None)
        self.free_list = free_list
        if not self.holds:
            free_list.append(self)

    def let_twin_come(self) -> bool:
        """Never makes the borrower's memory its own: there is no twin."""
        return False

    def let_twin_go(self) -> bool:
        """Whether the place is shared by now."""
        return not self.is_private

    def loan(self) -> np.ndarray[Any, Any]:
        """An array over the segment, of the layout that was set. The array and all its views together are one hold.

        Raises:
            ValueError: no layout was set.
        """
        if self.layout is None or self._dtype is None:
            raise ValueError("the segment has no layout")
        # The borrower gets a view, never the root. So any other reference to the root comes from another view.
        array, root = _Layout(self._dtype, *self.layout[1:], len(self._file)).view(self._file)
        memory: Any = root.base
        handed, key = weakref.ref(array), id(memory)
        loan = _Loan(memory, finished.append)  # no call from here on, because an interrupt could come after one
        loan.segment, loan.array, loan.key, loan.is_over, loan.layout = self, handed, key, False, self.layout
        self.is_published = False
        self.holds += 1
        _loans[key] = loan
        loan.generation = _generation
        self.loaned_layout = self.layout  # last: it says that there is a loan whose end will be noticed
        return array


class FreeLists:
    """The free segments of a pool, and its counters.

    Attributes:
        to_retire: segments without holds that must not be filled again.
        free: the free lists, one for each capacity; the last segment of one was used most recently.
        viewed: segments that were taken off their free list because the reader has a view of them.
        pool_token: the same object for all segments of this pool, so that the pool recognises its own.
        hands_on: the slow path may name a tensor of another pool instead of copying it.
        is_slow_path_running: a thread is in the middle of the slow path, so no other may take the fast path.
        seq: the number that was last published.
        takes: how many segments were taken from a free list.
        copied_nbytes: bytes that were copied into segments.
    """

    def __init__(self) -> None:
        self.to_retire: list[Any] = []
        self.free: dict[int, list[Any]] = {}
        self.viewed: list[Any] = []
        self.torch_loans: dict[int, Any] = {}
        self.pool_token = object()
        self.hands_on = False
        self.is_slow_path_running = False
        self.seq = 0
        self.takes = 0
        self.copied_nbytes = 0

    def next_seq(self) -> int:
        """The number of the next tensor to be published; no other tensor gets it."""
        self.seq += 1
        return self.seq

    def quick_publish(self, tensor: Any, held: list[Any] | None = None, may_share: bool = True) -> Any:  # noqa: ARG002
        """Publish an array of the layout that some free segment had last, or a whole loan.

        Args:
            tensor: the array.
            held: a list, to which the segment is appended before this returns: a signal handler may raise as soon as
                it returns, and then only the list knows of the hold. None if the caller takes that risk.
            may_share: whether the segment's file may be that of others too.

        Returns:
            Its segment, with one more hold; None if the slow path is needed, and then nothing was published. Always
            None here: only the extension has the fast path.
        """
        return None

    def quick_loan(self, shape: object, dtype: object, framework: str) -> Any:  # noqa: ARG002
        """Loan a segment again that was loaned before for the same shape and dtype, as an array or as a tensor.

        Returns:
            The loan; None if the slow path is needed, as always here.
        """
        return None


def _root_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _loan_under(root: np.ndarray[Any, Any]) -> _Loan | None:
    loan = _loans.get(id(root.base))
    memory: object = root.base
    return loan if loan is not None and loan() is memory else None


def loan_of(array: Any) -> Any:
    """The segment whose loan an array lies in; None if the array is no loan."""
    loan = _loan_under(_root_of(array)) if isinstance(array, np.ndarray) else None
    return None if loan is None else loan.segment


def view_of(array: Any) -> Any:
    """The peer's segment that an array is a view of; None if it is no view, or a copy-on-write one."""
    if not isinstance(array, np.ndarray):
        return None
    memory: object = _root_of(array).base
    view = _views.get(id(memory))
    return view.segment if view is not None and view() is memory else None


def _count_own_references() -> int:
    probe = object()
    return sys.getrefcount(probe)


_OWN_REFERENCES: Final = _count_own_references()  # what a variable and the call count: 2, and 1 from Python 3.14 on


def freeze(array: np.ndarray[Any, Any]) -> bool:
    """Make these read-only: an array of a loan, the arrays that it is a view of, and the array that was handed out.

    Returns:
        Whether there may be other views of the loan, which can still be written to.

    Raises:
        TypeError: the array is no loan.
    """
    loan = _loan_under(_root_of(array))
    if loan is None:
        raise TypeError("freeze takes an array of a loan")
    handed = loan.array()
    is_apart = handed is not None
    root = array
    while True:
        is_apart = is_apart and root is not handed
        root.flags.writeable = False
        if not isinstance(root.base, np.ndarray):
            break
        root = root.base
    if handed is not None and is_apart:
        handed.flags.writeable = False
    # The root's references: the chain of bases that ends there, the array that was handed out, and unknown views.
    known = (array is not root) + is_apart
    del array
    return sys.getrefcount(root) - _OWN_REFERENCES > known
