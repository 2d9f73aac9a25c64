"""``TechRenaissanceServer``: what a worker's program overrides and calls. Never imports the controller's side.

A worker ends after a request to exit, a signal, or the controller's death. This module imports torch only for a server
of that framework, just before the worker says that it is ready: then no request waits for the import.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Container
from types import CodeType
from typing import Any, TypeVar

from ..base.identifiers import check_tag, tensor_file
from ..errors import BadMessage, MissingPackage, MissingTag, SessionNotStarted
from ..protocol.commands import split_words
from ..protocol.status import TRANSITIONS, Status, StatusLine, parse_status
from ..transfer.kinds import Device, Views
from ..tsr.dtypes import import_torch
from ..tsr.framework_names import check_framework_name
from ..wire.names import RESULT_PREFIX, TENSOR_SUFFIX
from .log import log
from .service import RequestService
from .stop_signals import Stop, stop_signals
from .tensor_files import path_and_tensor, read_tsr_file, write_tsr_file

__all__ = ["TechRenaissanceServer"]

_Start = TypeVar("_Start", bound=Callable[[], object])


def _plain(value: Any) -> str:
    """The value as a plain text. For a ``str`` that is a member of an ``Enum`` this is its value, not its name."""
    return str.__str__(value) if isinstance(value, str) else str(value)


class TechRenaissanceServer(RequestService):
    """A worker. Override :meth:`main_logic` and call :meth:`run`.

    Args:
        debug: whether :meth:`debug_message` prints.
        framework: of the tensors from :meth:`get_tensors` and :meth:`empty`, ``"torch"`` or ``"numpy"``. With torch, it
            is imported before the worker says that it is ready.
        views: ``"readonly"`` or ``"copy_on_write"``: what received tensors are. None is ``"readonly"`` for numpy and
            ``"copy_on_write"`` for torch. A store into a read-only torch tensor, or through torch into a read-only
            numpy array, ends the worker with SIGSEGV.
        device: None has received tensors in CPU memory. ``"same"`` puts each torch tensor on the device where the
            controller had it; if the worker has no such device, the request fails with UnsupportedTensor.
        threads: how many requests are handled at once, each in a thread; the answers come in the order of completion.
            None handles one after the other in the main thread. Channels of files carry one request at a time anyway.

    Raises:
        BadMessage: no such framework, no such views, no such device, or no such number of threads.
    """

    def __init__(
        self,
        debug: bool = False,
        framework: str = "torch",
        views: Views | None = None,
        threads: int | None = None,
        device: Device | None = None,
    ) -> None:
        super().__init__(debug, views, threads, device)
        check_framework_name(framework)
        self.framework = framework
        self._on_start: list[Callable[[], object]] = []

    # -- what users call ----------------------------------------------------------------------------------------------

    def on_start(self, function: _Start) -> _Start:
        """Have a function called once, before the worker says that it is ready: to load a model, say. A decorator.

        :meth:`run` calls such functions in the order in which they were registered, when the session is there and the
        framework is imported. What one raises ends the worker; the controller gets WorkerDied with the last lines of
        the output.

        Args:
            function: takes no arguments.

        Raises:
            BadMessage: it is no function.
        """
        if not callable(function):
            raise BadMessage(f"{function!r:.80} is no function; write @server.on_start above one", detail="on_start")
        self._on_start.append(function)
        return function

    def get_tensors(self, parameters: str, count: int | None = None) -> list[Any] | None:
        """The tensors that a parameter text names.

        Args:
            parameters: tags, separated by spaces or commas.
            count: how many there must be; None for any number.

        Returns:
            The tensors, in order; None if one is missing or the count is wrong. The reason goes to the controller with
            the reply, unless the handler gives a message of its own.
        """
        if self._fast_path is not None:
            found = self._fast_path.quick_fetch(parameters, self.framework)
            if found is not None and (count is None or len(found) == count):
                return found
        self._touch()
        tags = split_words(parameters)
        if count is not None and len(tags) != count:
            self._complain(f"{count} tensors are needed, {len(tags)} are named: {parameters[:200]!r}")
            return None
        try:
            return [self._fetch(tag, self.framework) for tag in tags]
        except (MissingTag, LookupError) as error:
            self._complain(str(error))
            self.debug_message(error)
            return None

    def _complain(self, why: str) -> None:
        if (reply := self._context().reply) is not None:
            reply.complaint = why

    def send_tensors(self, *tensors: Any) -> None:
        """Add tensors to the reply, in order.

        Raises:
            UnsupportedTensor: one is not a tensor that TSR can hold.
            OutOfSpace: no room.
            SessionNotStarted: there is no request, or this is a forked child of the worker.
        """
        context = self._shared if self._concurrency is None else self._context()
        if context.reply is None or context.transfer is None or self.is_foreign:
            self._refuse_in_child()
            raise SessionNotStarted("send_tensors answers a request, and there is none now")
        if self._fast_path is not None and self._fast_path.quick_send(tensors):
            return
        self._touch()
        context.transfer.publish(tensors)

    def write_response(self, command: str, result: str, message: str = "") -> None:
        """Set the reply's text. Together with :meth:`send_tensors` in the same request it makes one response.

        Args:
            command: what the handler calls the command.
            result: the text.
            message: a remark.

        Raises:
            SessionNotStarted: there is no request.
        """
        reply = self._context().reply
        if reply is None:
            raise SessionNotStarted("write_response answers a request, and there is none now")
        reply.command = _plain(command)
        reply.result = _plain(result)
        reply.message = _plain(message)

    def write_status(self, text: str) -> None:
        """Write a status with a remark for the controller, for example ``"busy: epoch 3"``.

        ``exiting`` or ``terminated`` also ends the worker after the response to this request.

        Args:
            text: a status word, then perhaps a colon and the remark.

        Raises:
            BadMessage: the first word is no status, or a status that cannot follow the last one.
            SessionNotStarted: the server does not run, or this is a forked child of the worker.
        """
        line = parse_status(text)
        reply = self._context().reply
        if line.status is Status.TERMINATED and reply is not None:
            line = StatusLine(Status.EXITING, line.detail)  # "terminated" would say that no response comes
        self._refuse_in_child()
        channel = self._open_channel()
        if line.status is Status.READY:
            self._load_framework()
        self._touch()
        last = self._responder.status
        if line.status not in TRANSITIONS[last]:
            now = Status.BUSY if reply is not None and last.is_waiting else last
            raise BadMessage(f"a worker that is {now} cannot become {line.status}", detail=text[:80])
        self._advance_status(channel, line.status, line.detail)
        channel.show()  # the handler may go on for long
        channel.ring()
        if reply is not None:
            reply.has_shown = True
        if line.status.is_over:
            self._is_stopping = True
            channel.wake()  # another thread may wait for a request

    def progress(self, fraction: float, text: str = "") -> None:
        """Tell the controller how far the request at hand is.

        The status says it, for example ``busy: 40 % epoch 3``, and a controller that has asked for it gets it. Cheap
        enough for an inner loop: only what comes 50 ms after the last one, and the end, wakes the controller.

        Args:
            fraction: of the work that is done, from 0 to 1; 1 is the end.
            text: one short line of what is being done.

        Raises:
            BadMessage: the fraction is no number.
            SessionNotStarted: there is no request, or this is a forked child of the worker.
        """
        context = self._context()
        reply, attachment, channel = context.reply, self._attachment, self._channel
        if reply is None or attachment is None or channel is None or self.is_foreign:
            self._refuse_in_child()
            raise SessionNotStarted("progress is of a request, and there is none now")
        try:
            fraction = min(max(float(fraction), 0.0), 1.0)
        except (TypeError, ValueError):
            fraction = math.nan
        if math.isnan(fraction):
            raise BadMessage("the fraction of the work that is done is a number from 0 to 1", detail="fraction")
        text = " ".join(_plain(text).split())
        reply.has_shown = True
        if attachment.progress is not None and context.channel is not None and context.request is not None:
            attachment.progress.write(context.request.seq, fraction, text)
        if context.is_report_due() or fraction == 1.0:
            self._touch()
            percent = f"{100 * fraction:.0f} %"
            self._advance_status(channel, Status.BUSY, f"{percent} {text}" if text else percent)
            channel.ring()

    def cancelled(self) -> bool:
        """Whether the controller has cancelled the request at hand, or the worker ends without waiting for its handler.

        A handler that works for long may ask now and then, and raise :class:`RequestCancelled` then. Costs about a
        microsecond. False if there is no request.
        """
        context = self._context()
        return context.reply is not None and context.is_cancelled()

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory; :meth:`send_tensors` copies nothing of it.

        Args:
            shape: sizes in elements, outermost first.
            dtype: ``"float32"``, ``"bfloat16"``, … or a numpy or torch dtype.
            framework: ``"numpy"`` or ``"torch"``; the server's own if left out.

        Raises:
            UnsupportedTensor: no such dtype, or a shape that TSR cannot hold.
            BadMessage: no such framework.
            OutOfSpace: no room.
            SessionNotStarted: the server does not run.
        """
        transfer = self._context().transfer
        if transfer is None:
            raise SessionNotStarted("empty() lends memory of a session, and the server does not run yet")
        self._touch()
        if framework is None:
            framework = self.framework
        loaned = transfer.quick_loan(shape, dtype, framework)
        return transfer.empty(shape, dtype, framework) if loaned is None else loaned

    def read_tsr_file(self, path: Any) -> Any:
        """The tensor of a tag, or of a TSR file, in the server's framework.

        Args:
            path: a tag of the session, with or without ``.tsr`` and the session's directory; or the path of a file.

        Raises:
            MissingTag: it is a plain name, and there is neither such a tag nor such a file.
            TSRFormatError: the file holds no tensor.
            OSError: there is no such file, or it cannot be read.
        """
        tag = self._tag_of(path)
        if tag is None:
            return read_tsr_file(path, self.framework)
        try:
            return self._fetch(tag, self.framework)
        except MissingTag:
            for each in (os.path.join(self.session_dir, tensor_file(tag)), path):
                try:
                    return read_tsr_file(each, self.framework)
                except FileNotFoundError:
                    pass
            raise

    def write_tsr_file(self, path: Any, tensor: Any) -> None:
        """Write a tensor to a TSR file. The two arguments may come in either order.

        Args:
            path: of the file. A plain name (with or without ``.tsr``), or a path in the session's directory, makes a
                file for the controller's ``recv_tensor`` of that name. The next ``result_<i>`` is the same as
                :meth:`send_tensors`.
            tensor: numpy or torch.

        Raises:
            BadTag: such a plain name may not name a tensor.
            UnsupportedTensor: it is not a tensor that TSR can hold.
            BadMessage: neither of the two is a path.
            OSError: the file cannot be written.
        """
        path, tensor = path_and_tensor(path, tensor)
        tag = self._tag_of(path)
        transfer = self._context().transfer
        if tag is None:
            write_tsr_file(path, tensor)
        elif transfer is not None and tag == f"{RESULT_PREFIX}_{len(transfer.results)}":
            self.send_tensors(tensor)
        else:
            check_tag(tag)
            write_tsr_file(os.path.join(self.session_dir, tensor_file(tag)), tensor)

    def _tag_of(self, path: Any) -> str | None:
        """The tag that a path means if there is a session; None if it means a file elsewhere."""
        directory, name = os.path.split(os.fsdecode(path))
        if self._channel is None or directory not in ("", self.session_dir):
            return None
        return name.removesuffix(TENSOR_SUFFIX)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self, session_id: str | None = None) -> None:
        """Serve requests until the session is over.

        Args:
            session_id: of the session, or its directory; if left out, as :meth:`setup_session_dir` finds it.

        Raises:
            SessionNotStarted: there is no such session, or it has another worker; for example, this process is a child
                of that worker, and runs the worker's script again.
            HostilePath: another user can write to it.
            BadMessage: ``session_id`` is not valid, or the session's manifest is not.
        """
        if self._channel is not None:
            self._refuse_in_child()
        if session_id is None:
            session_id = self._named_session()
        with stop_signals(self._stop_once):
            try:
                self.setup_session_dir(session_id)
                channel = self._open_channel()
                self._load_framework()
                for function in self._on_start:
                    function()
                self._advance_status(channel, Status.READY)
                channel.ring()
                while self.should_continue():
                    self.process_request()
            except Stop:
                self.debug_message("asked to end by a signal")
            finally:
                if not self.is_foreign:
                    self._is_stopping = True
                    self.cleanup_session_dir()
                    # The process ends soon: its last collections would look through all of torch for half a second.
                    gc.freeze()

    def _load_framework(self) -> None:
        """Import torch if the tensors are to be its own. It takes seconds, which no request should wait for.

        If that fails, the worker serves all the same: a handler that has only texts needs no torch, and one that asks
        for a tensor gets the error.
        """
        if self.framework != "torch" or sys.modules.get("torch") is not None:
            return
        was_enabled = gc.isenabled()
        gc.disable()  # a collection finds nothing in an import, and takes a tenth of the time of this one
        try:
            import_torch()
            # Torch is 300,000 objects. A full collection during a request, and those at the process's end, skip them.
            gc.freeze()
        except MissingPackage as error:
            self.debug_message(error)
        except Exception as error:  # whatever a broken torch raises
            log(f"[worker] torch cannot be imported: {type(error).__name__}: {error}")
        finally:
            if was_enabled:
                gc.enable()

    # -- what ``Server`` uses beside the public methods ---------------------------------------------------------------

    def _set_result(self, text: str) -> None:
        """Set the reply's text; keep the other fields that the handler has set."""
        reply = (self._shared if self._concurrency is None else self._context()).reply
        if reply is None:
            raise SessionNotStarted("a result answers a request, and there is none now")
        reply.result = _plain(text)

    def _blame_input(self, error: Exception) -> None:
        """Note that this error comes from the request's words or tensors, not from a handler."""
        if (reply := self._context().reply) is not None:
            reply.bad_input = error

    def _blame_result(self, error: Exception, code: CodeType | None) -> None:
        """Note that this error comes from what a handler returned; ``code`` is the handler's."""
        if (reply := self._context().reply) is not None:
            reply.bad_result, reply.handler_code = error, code

    @property
    def _tags(self) -> Container[str]:
        """The tags that name a tensor now."""
        transfer = (self._shared if self._concurrency is None else self._context()).transfer
        return () if transfer is None else transfer.tags

    def _fetch(self, tag: str, framework: str) -> Any:
        """The tensor of a tag."""
        transfer = (self._shared if self._concurrency is None else self._context()).transfer
        if transfer is None:
            raise MissingTag(f"there is no tensor with the tag {tag!r}: the server does not run yet", tag=tag)
        return transfer.fetch(tag, framework)
