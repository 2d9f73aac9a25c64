"""The executor of kind ``"native"``: shared libraries with the function of ``tr_algorithm.h``, always contained.

The host neither parses nor loads a library. At registration, a contained process reads what the library exports. For a
run, a contained process loads it from sealed memory, by a descriptor. So the code that runs while it is loaded is
contained too.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

from . import memory
from .contained import ContainedExecutor
from .host import Host, Margin
from .inputs import Inputs
from .interface import Algorithm, Allow
from .kept import Kept
from .native_messages import options_of

__all__ = ["NATIVE_MARGIN", "NativeExecutor"]

NATIVE_MARGIN: Final = Margin(has_descriptors=True)

_MAX_KEPT: Final = 16  # libraries in memory, of all algorithms of a sandbox


class _Library:
    """A library in memory that nobody can write.

    Args:
        code: of the library.

    Attributes:
        fd: its descriptor.
        nbytes: its size.
    """

    def __init__(self, code: bytes) -> None:
        self.fd = -1
        self.nbytes = len(code)
        self.fd = memory.copy_in([(0, np.frombuffer(code, np.uint8))], self.nbytes)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class NativeExecutor(ContainedExecutor):
    """See the module's docstring. Threads may use it at once.

    Args:
        name: of the kind.
        runner: the module of ``runners/`` that runs it.
        host: makes its processes; closed with it.
        kept: libraries by their code.
    """

    takes_bundles = False
    keeps_failed = False  # whoever has written the library decides what an error leaves in it
    maps_ahead = False  # a library's tensors lie in the first half of the outputs' area, which is not mapped ahead

    def __init__(self, name: str, runner: str, host: Host, _: Allow, kept: Kept) -> None:
        super().__init__(name, runner, host)
        self._kept = kept

    def _runner_options(self, algorithm: Algorithm, inputs: Inputs) -> dict[str, Any]:
        inputs.loans.append(self._library(algorithm))  # the last one
        return options_of(algorithm)

    def forget(self, algorithm: Algorithm) -> None:
        """Also drop its library."""
        super().forget(algorithm)
        self._kept.drop(lambda key: key == algorithm.code)

    def _library(self, algorithm: Algorithm) -> _Library:
        found: _Library | None = self._kept.get(algorithm.code)
        if found is None:
            found = _Library(algorithm.code)
            self._kept.put(algorithm.code, found, lambda all_: len(all_) > _MAX_KEPT)
        return found
