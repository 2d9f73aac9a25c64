"""``PyTorchSession``: a session whose tensors are torch's, by its name in the original framework. Imports no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import BadMessage
from ..wire.names import DEFAULT_WORKER
from .session import PythonSession

if TYPE_CHECKING:
    from typing import Unpack

    import torch

    from .session import SessionKeywords

    _Session = PythonSession[torch.Tensor]
else:
    _Session = PythonSession

__all__ = ["PyTorchSession"]


class PyTorchSession(_Session):
    """A :class:`PythonSession` with ``framework="torch"``; all else is the same.

    Args:
        script_path: as in :class:`PythonSession`, like the other arguments and the options.
        session_id: names the session.
        quiet_mode: False also prints the worker's output.
        **options: all options but ``framework``.

    Raises:
        BadMessage: an option is not valid; or the framework is another one.
        MissingPackage: torch is not installed.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            script_path: str | os.PathLike[str] = DEFAULT_WORKER,
            session_id: str = "default",
            quiet_mode: bool = False,
            **options: Unpack[SessionKeywords],
        ) -> None: ...

    else:

        def __init__(self, *arguments: Any, framework: str = "torch", **options: Any) -> None:
            if framework != "torch":
                raise BadMessage(
                    f"framework is {framework!r:.80}; a PyTorchSession's is 'torch': use a PythonSession",
                    detail="framework",
                )
            super().__init__(*arguments, framework=framework, **options)
