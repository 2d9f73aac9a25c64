"""One run in a sandbox, which another thread may end at every moment. Knows no HTTP."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from ..errors import TRException
from ..sandbox import RunCancelled, Sandbox
from ..sandbox.steps import SLOW, Steps, finish
from .boxes import Boxes
from .errors import BadRequest
from .models import Lent
from .payloads import Done, TensorForm, encode

__all__ = ["SandboxRun"]


class SandboxRun:
    """A run, for a :class:`Job`. Its id is its own: clients may give two requests the same one.

    Args:
        boxes: that have the sandbox.
        lend: what the run needs, for as long as it goes on.
        inputs: by name, beside those that are lent.
        deadline_s: by ``time.monotonic``.
        form: of the tensors in its result.
        owner: for whose sake its sandbox is made, if it has to be.
        has_model: whether what it needs may have to be loaded.

    Attributes:
        has_begun: whether a process may have got it.
    """

    def __init__(
        self,
        boxes: Boxes,
        lend: Callable[[], AbstractContextManager[Lent]],
        inputs: Mapping[str, Any],
        deadline_s: float,
        form: TensorForm,
        *,
        owner: str = "",
        has_model: bool = True,
    ) -> None:
        self._boxes = boxes
        self._lend = lend
        self._inputs = inputs
        self._deadline_s = deadline_s
        self._form = form
        self._owner = owner
        self._has_model = has_model
        self._id = f"{random.getrandbits(128):032x}"
        self.has_begun = False
        self._is_cancelled = False
        self._box: Sandbox | None = None

    def do(self) -> Done:
        """Run it, and wait for its end; see :meth:`steps`."""
        return finish(self.steps())

    def steps(self) -> Steps[Done]:
        """Run it. May be called again after an error.

        Raises:
            RunCancelled: :meth:`end` was called.
            BadRequest: no process can get an input.
            LimitExceeded, NotAllowed, AlgorithmError, SandboxBroken, MissingPackage: it does not end well.
            NotFound, BadModel, Overloaded: its model cannot be had.
        """
        self._check()
        if self._has_model:
            yield SLOW  # it may have to be loaded
        with self._lend() as lent:
            return (yield from self._boxes.steps(lent.box, lambda box: self._steps_in(box, lent), self._owner))

    def _steps_in(self, box: Sandbox, lent: Lent) -> Steps[Done]:
        self._box = box
        self.has_begun = True
        try:
            response = yield from box.steps(
                lent.algorithm,
                {**self._inputs, **lent.inputs},
                deadline_s=self._deadline_s,
                request_id=self._id,
                check=self._check,  # an end() that came before this is heard there
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, TRException):
                raise
            raise BadRequest(str(error)) from error  # an input that no process can get: 10**20, say
        return encode(response, self._form)  # of few bytes, or in another thread already

    def end(self) -> None:
        """End it, whether or not it has begun. From any thread."""
        self._is_cancelled = True  # first, see do()
        box = self._box
        if box is not None:
            box.cancel(self._id)

    def _check(self) -> None:
        if self._is_cancelled:
            raise RunCancelled("the run was cancelled", request_id=self._id)
