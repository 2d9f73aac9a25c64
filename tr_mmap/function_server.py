"""A worker made of plain functions: ``@server.command("scale")``. Binding words to parameters is in ``commands``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from .commands import Command
from .errors import BadMessage, TRException
from .protocol import EXIT_COMMAND
from .server import TechRenaissanceServer

__all__ = ["Server"]

_SEVERAL: Final = (tuple, list)

F = TypeVar("F", bound=Callable[..., Any])


class Server(TechRenaissanceServer):
    """A worker made of plain functions::

        server = Server()

        @server.command("scale")
        def scale(x, factor: float):
            return x * factor

        server.run()

    A function takes tensors, and words where it is annotated ``str``, ``int``, ``float`` or ``bool``. It returns a
    tensor, several (a tuple or list), a text, or nothing.
    """

    def __init__(self, framework: str = "numpy", debug: bool = False) -> None:
        super().__init__(debug=debug, framework=framework)
        self._commands: dict[str, Command] = {}

    def command(self, name: str) -> Callable[[F], F]:
        """Register a function under a command's word.

        Raises:
            BadMessage: the name is empty, has a space in it, or is taken.
        """
        if not name or name.split() != [name] or name == EXIT_COMMAND or name in self._commands:
            raise BadMessage(f"{name!r} cannot name a command: it is not one word, or it is taken", detail=name)

        def register(function: F) -> F:
            self._commands[name] = Command(name, function)
            return function

        return register

    def main_logic(self, command: str, parameters: str) -> bool:
        known = self._commands.get(command)
        if known is None:
            return False
        try:
            store, answerer = self._store, self._answerer
            assert store is not None
            arguments = None
            if answerer is not None and known.tensor_counts and self.framework == "numpy":
                arguments = answerer.fetch_again(parameters)
            if arguments is None or len(arguments) not in known.tensor_counts:
                arguments = known.bind(parameters, store.tags, store.fetch, self.framework)
        except TRException as error:
            error.is_bad_input = True  # type: ignore[attr-defined]
            raise
        result = known.function(*arguments)
        if isinstance(result, str):
            assert self._answer is not None
            self._answer.result = str(result)
        elif isinstance(result, _SEVERAL):
            self.send_tensors(*result)
        elif result is not None:
            store.publish((result,))
        return True

    def describe_unknown(self, command: str) -> str:
        return f"the worker knows no command {command[:80]!r}; it knows {', '.join(sorted(self._commands))}"
