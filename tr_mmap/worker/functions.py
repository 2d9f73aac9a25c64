"""``Server``: a worker made of plain functions. Never sends or receives a message; ``server`` does that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..errors import BadMessage, TRException
from ..protocol.batches import BATCH_START, NO_BATCHES
from ..protocol.messages import Request
from ..protocol.named_values import FORM_NAMED, pack, unpack
from ..transfer.kinds import Device, Views
from ..tsr.framework_names import check_installed
from ..wire.messages import ARGUMENT_TAG_PREFIX, EXIT_COMMAND, RELEASE_COMMAND
from .annotations import code_of
from .binding import Command
from .server import TechRenaissanceServer

__all__ = ["Server"]

_SEVERAL: Final = (tuple, list)

F = TypeVar("F", bound=Callable[..., Any])


def _is_text(name: str) -> bool:
    """Whether a message can hold it: it has no surrogate."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Server(TechRenaissanceServer):
    """A worker made of plain functions::

        server = Server()

        @server.command("scale")
        def scale(x, factor: float):
            return x * factor

        server.run()

    A parameter gets a tensor, or a word if it is annotated ``str``, ``int``, ``float``, ``bool``, a ``Literal`` of
    words, ``np.dtype``, or one of them ``| None``. The function returns a tensor, several tensors (a tuple or list), a
    text, None, or a dict of tensors, texts, numbers, None, and lists of these, by name.

    Args:
        framework: of the tensors that the functions get, ``"numpy"`` or ``"torch"``.
        debug: whether :meth:`debug_message` prints.
        views: ``"readonly"`` or ``"copy_on_write"``, as in :class:`TechRenaissanceServer`.
        device: None or ``"same"``, as in :class:`TechRenaissanceServer`.
        threads: how many requests plain functions handle at once, as in :class:`TechRenaissanceServer`. ``async def``
            functions run in one event loop beside them, any number at once.

    Raises:
        BadMessage: no such framework, no such views, no such device, or no such number of threads.
        MissingPackage: the framework is not installed.
    """

    def __init__(
        self,
        framework: str = "numpy",
        debug: bool = False,
        views: Views | None = None,
        threads: int | None = None,
        device: Device | None = None,
    ) -> None:
        super().__init__(debug=debug, framework=framework, views=views, threads=threads, device=device)
        check_installed(framework)
        self._commands: dict[str, Command] = {}

    def command(self, name: str) -> Callable[[F], F]:
        """Register a function under a command's word.

        Args:
            name: the word.

        Raises:
            BadMessage: the name is no text or empty, has a space, a surrogate or a null character in it, begins with
                ``{``, or is taken. The decorator itself raises it for a function that no message could call: one
                with a parameter annotated ``list``, say.
        """
        if not isinstance(name, str):
            raise BadMessage(f'{name!r:.80} names no command; write @server.command("name")', detail="command")
        if name in self._commands:
            raise BadMessage(f"{name!r} cannot name a command: it is taken", detail=name)
        if name in (EXIT_COMMAND, RELEASE_COMMAND):
            raise BadMessage(f"{name!r} cannot name a command: it is one of the library's own", detail=name)
        if name.split() != [name] or name[0] == "{" or "\0" in name or not _is_text(name):
            raise BadMessage(
                f"{name!r} cannot name a command: it is not one word, begins with {{, or has a character "
                "that no message can hold",
                detail=name,
            )

        def register(function: F) -> F:
            self._commands[name] = Command(name, function)
            return function

        return register

    def main_logic(self, command: str, parameters: str) -> bool | None:
        """Call the function of a command; what it returns becomes the reply."""
        known = self._commands.get(command)
        if known is None:
            return False
        if known.is_coroutine:
            coroutine = self._main_coroutine(command, parameters)
            is_known: bool | None = self._handler_loop().run(coroutine)
            return is_known
        context = self._shared if self._concurrency is None else self._context()  # in line: each request comes here
        request, convert_text, fast_path = context.request, known.convert_text, self._fast_path
        if request is not None and request.form:
            if request.parameters.startswith(BATCH_START):
                self._answer_batch(known, request)
                return True
            arguments, named = self._arguments(known, parameters)
            result = known.function(*arguments, **named)
        elif convert_text is not None and parameters:
            result = known.function(parameters if convert_text is str else convert_text(parameters))
        elif (
            fast_path is not None
            and known.tensor_counts
            and (quick := fast_path.quick_fetch(parameters, self.framework)) is not None
            and len(quick) in known.tensor_counts
        ):
            result = known.function(*quick)
        else:
            arguments, named = self._arguments(known, parameters)
            result = known.function(*arguments, **named)
        reply = context.reply
        if reply is not None:  # as _say(), in fewer steps
            if result.__class__ is str:
                reply.result = result
                return True
            if fast_path is not None and fast_path.quick_send(result):
                return True
        return self._say(known, result)

    def _answer_batch(self, known: Command, request: Request) -> None:
        from .batches import answer  # here: most workers never get one

        answer(self, known, self._values(request), self._failure_of)

    async def _main_coroutine(self, command: str, parameters: str) -> bool | None:
        known = self._commands[command]
        if parameters.startswith(BATCH_START):
            self._refuse_form(NO_BATCHES)
        arguments, named = self._arguments(known, parameters)
        return self._say(known, await known.function(*arguments, **named))

    def _check_form(self, form: str) -> None:
        if form != FORM_NAMED:
            self._refuse_form(
                f"this worker does not know arguments of the form {form[:80]!r}: use one tr_mmap for both"
            )

    def _has_coroutines(self) -> bool:
        return any(known.is_coroutine for known in self._commands.values())

    def _is_coroutine(self, command: str) -> bool:
        known = self._commands.get(command)
        return known is not None and known.is_coroutine

    def _say(self, known: Command, result: Any) -> bool | None:
        """Make what a function has returned the reply."""
        if self.is_foreign:
            return True  # the function has forked, and this is the child: what it returns goes nowhere
        if isinstance(result, str):
            self._set_result(result)
        elif result is not None:
            try:
                if isinstance(result, dict):
                    self._say_named(result)
                elif isinstance(result, _SEVERAL):
                    self.send_tensors(*result)
                else:
                    self.send_tensors(result)
            except Exception as error:
                self._blame_result(error, code_of(known.function))
                raise
        return True

    def _say_named(self, values: dict[Any, Any]) -> None:
        """Make values by name the reply."""
        text, tensors = pack(values)
        self.send_tensors(*tensors)
        reply = self._context().reply
        if reply is not None:
            reply.result, reply.form = text, FORM_NAMED

    def _arguments(self, known: Command, parameters: str) -> tuple[list[Any], dict[str, Any]]:
        """The arguments for a command's function by position and by name."""
        try:
            request = self._context().request
            if request is not None and request.form:
                return known.bind_named(self._values(request), self.framework)
            return known.bind(parameters, self._tags, self._fetch, self.framework)
        except TRException as error:
            self._blame_input(error)
            raise

    def _values(self, request: Request) -> dict[str, Any]:
        """The arguments by name of a request."""
        tags = [ref.tag for ref in request.tensors if ref.tag[:1] == ARGUMENT_TAG_PREFIX]
        quick = None if self._fast_path is None else self._fast_path.quick_fetch(" ".join(tags), self.framework)
        tensors = [self._fetch(tag, self.framework) for tag in tags] if quick is None else quick
        return unpack(request.parameters, tensors)

    def describe_unknown(self, command: str) -> str:
        return f"the worker knows no command {command[:80]!r}; it knows {', '.join(sorted(self._commands))}"
