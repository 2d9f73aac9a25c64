"""The options of a session, checked when they are given. Starts nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from operator import index
from typing import Any, Final, Literal, TypeAlias

from ..base import system
from ..base.identifiers import check_session_id
from ..channel.kinds import CHANNEL_NAMES
from ..errors import BadMessage, ScriptNotFound
from ..protocol.legacy import LEGACY
from ..sessions.workspace import Workspace
from ..transfer.kinds import Device, Views, check_device, check_options, check_views
from ..transfer.options import TransferOptions
from ..tsr.framework_names import check_framework_name, check_installed
from ..wire.messages import MOST_IN_FLIGHT
from ..wire.names import DEFAULT_WORKER, PYTHON_VARIABLE
from ..wire.waits import DEFAULT_TIMEOUT_MS, MAX_SPIN_US

__all__ = [
    "AtBudget",
    "AtLimit",
    "ChannelName",
    "Device",
    "Framework",
    "SessionOptions",
    "Views",
    "check_bool",
    "seconds_of",
    "shown_ms",
]

Framework: TypeAlias = Literal["numpy", "torch"]
ChannelName: TypeAlias = Literal["mapped", "files", "legacy"]
AtBudget: TypeAlias = Literal["fail", "block"]
AtLimit: TypeAlias = Literal["block", "fail"]

MOST_SPARES: Final = 64
_TEXTS: Final = "texts that have no zero byte and can be encoded"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The options of a session, all valid. Made by :meth:`checked`.

    Attributes:
        script_path: of the worker's script, absolute; or ``"default"``.
        session_id: the session's name.
        workspace_root: absolute path of the directory in which sessions live.
        framework: ``"numpy"`` or ``"torch"``.
        channel: ``"mapped"``, ``"files"`` or ``"legacy"``.
        auth: whether each control message is signed.
        spin_us: how many microseconds both sides poll for a message, at most, before they sleep.
        recycle_memory: whether the worker keeps freed private memory for later arrays.
        views: ``"readonly"`` or ``"copy_on_write"``; None for the default of each framework.
        device: ``"same"`` to have received torch tensors where the worker had them; None for CPU memory.
        replace: whether ``start`` closes another session of this process that has the name.
        start_timeout_ms: how long ``with`` waits until the worker is ready.
        args: further words of the worker's command line.
        env: changes to the worker's environment; None removes a variable.
        cwd: the worker's current directory, absolute; None for this process's.
        python: the worker's interpreter; None to choose one.
        max_in_flight: most requests whose answers were not consumed.
        at_limit: ``"block"`` or ``"fail"``: what one more request does then.
        spare_workers: how many processes are kept that can become the worker.
        transfer: how both sides keep their tensors.
    """

    script_path: str
    session_id: str
    workspace_root: str
    framework: Framework = "numpy"
    channel: ChannelName = "mapped"
    auth: bool = False
    spin_us: float = 0.0
    recycle_memory: bool = True
    views: Views | None = None
    device: Device | None = None
    replace: bool = False
    start_timeout_ms: float | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str | None] | None = None
    cwd: str | None = None
    python: str | None = None
    max_in_flight: int = 32
    at_limit: AtLimit = "block"
    spare_workers: int = 0
    transfer: TransferOptions = field(default_factory=TransferOptions)

    @classmethod
    def checked(
        cls,
        script_path: str | os.PathLike[str],
        session_id: str,
        *,
        framework: str,
        channel: str,
        budget_nbytes: int | None,
        at_budget: str,
        auth: bool,
        checksum: bool,
        spin_us: float,
        recycle_memory: bool,
        views: str | None,
        device: str | None,
        replace: bool,
        start_timeout_ms: float | None,
        args: Iterable[str],
        env: Mapping[str, str | None] | None,
        cwd: str | os.PathLike[str] | None,
        python: str | os.PathLike[str] | None,
        max_in_flight: int,
        at_limit: str,
        spare_workers: int,
    ) -> SessionOptions:
        """Check the options that ``PythonSession`` was given. Relative paths are resolved here, once.

        Raises:
            BadMessage: one of them is not valid; ``detail`` is its name.
            MissingPackage: the framework is not installed.
            ScriptNotFound: a path is relative, and this process's current directory has been removed.
        """
        check_session_id(session_id)
        check_framework_name(framework)
        check_installed(framework)
        _check_choice("channel", channel, CHANNEL_NAMES)
        _check_choice("at_budget", at_budget, ("fail", "block"))
        check_views(views)
        check_device(device)
        for name, value in (
            ("auth", auth),
            ("checksum", checksum),
            ("replace", replace),
            ("recycle_memory", recycle_memory),
        ):
            check_bool(name, value)
        budget = None if budget_nbytes is None else _whole_of(budget_nbytes)
        if budget_nbytes is not None and (budget is None or budget < 0):
            raise _bad("budget_nbytes", budget_nbytes, "a number of bytes, or None for no limit")
        spin = _real_of(spin_us)
        if spin is None or not 0 <= spin <= MAX_SPIN_US:
            raise _bad("spin_us", spin_us, f"a number of microseconds, 0 to {MAX_SPIN_US:.0f}")
        start_ms = None if start_timeout_ms is None else _real_of(start_timeout_ms)
        if start_timeout_ms is not None and (start_ms is None or not start_ms >= 0):
            raise _bad("start_timeout_ms", start_timeout_ms, "a number of milliseconds, or None for no limit")
        in_flight = _whole_of(max_in_flight)
        if in_flight is None or not 1 <= in_flight <= MOST_IN_FLIGHT:
            raise _bad("max_in_flight", max_in_flight, f"a number of requests, 1 to {MOST_IN_FLIGHT}")
        _check_choice("at_limit", at_limit, ("block", "fail"))
        spares = _whole_of(spare_workers)
        if spares is None or not 0 <= spares <= MOST_SPARES:
            raise _bad("spare_workers", spare_workers, f"a number of processes, 0 to {MOST_SPARES}")
        if spares and channel == LEGACY:
            raise BadMessage(
                f"spare_workers is not for channel={LEGACY!r}: a worker of the legacy dialect may be any program",
                detail="spare_workers",
            )
        check_options(channel, auth=auth, checksum=checksum)
        transfer = TransferOptions(
            budget_nbytes=budget,
            block_ms=DEFAULT_TIMEOUT_MS if at_budget == "block" else 0.0,
            checksum=checksum,
        )
        script = _path_of("script_path", script_path)
        interpreter = None if python is None else _path_of("python", python)
        return cls(
            script_path=script if script == DEFAULT_WORKER else _absolute("worker's script", script),
            session_id=session_id,
            workspace_root=Workspace.locate(is_made=False).root,
            framework=framework,  # type: ignore[arg-type] # checked above
            channel=channel,  # type: ignore[arg-type] # checked above
            auth=auth,
            spin_us=spin,
            recycle_memory=recycle_memory,
            views=views,  # type: ignore[arg-type] # checked above
            device=device,  # type: ignore[arg-type] # checked above
            replace=replace,
            start_timeout_ms=start_ms,
            args=_args_of(args),
            env=_env_of(env),
            cwd=None if cwd is None else _dir_of(cwd),
            python=None if interpreter is None else _python_of(interpreter),
            max_in_flight=in_flight,
            at_limit=at_limit,  # type: ignore[arg-type] # checked above
            spare_workers=spares,
            transfer=transfer,
        )


def seconds_of(timeout_ms: Any) -> float:
    """A timeout in seconds; infinity for None.

    Raises:
        BadMessage: it is no number of milliseconds.
    """
    if timeout_ms is None:
        return math.inf
    found_ms = _real_of(timeout_ms)
    if found_ms is None or not found_ms >= 0:
        raise _bad("timeout_ms", timeout_ms, "a number of milliseconds, 0 or more, or None for no limit")
    return found_ms / 1000


def shown_ms(timeout_ms: float) -> str:
    """A timeout for the text of an error: as it was given, but with few digits."""
    return f"{timeout_ms + 0.0:.4g}" if timeout_ms < 1000 else f"{timeout_ms:.0f}"  # 0.0 has no sign


def check_bool(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        BadMessage: ``detail`` is the name of the option.
    """
    if not isinstance(value, bool):
        raise _bad(name, value, "True or False")


def _bad(name: str, value: object, wanted: str) -> BadMessage:
    return BadMessage(f"{name} is {value!r:.80}; it must be {wanted}", detail=name)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise _bad(name, value, " or ".join(repr(each) for each in choices))


def _whole_of(value: Any) -> int | None:
    """The whole number that an object of any class stands for; None if it stands for none."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except Exception:  # an array of several numbers, say
        return None


def _real_of(value: Any) -> float | None:
    """As :func:`_whole_of`, for any number."""
    if isinstance(value, bool | str | bytes | bytearray) or getattr(value, "shape", ()) != ():
        return None
    try:
        return float(value)
    except Exception:  # it is no number, or too large for one
        return None


def _path_of(name: str, path: object) -> str:
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type] # that is what is checked here
    except TypeError:
        raise _bad(name, path, "a path: a str or an os.PathLike") from None
    if not text or not _is_passable(text):
        raise _bad(name, path, "a path, which is not empty, has no zero byte and can be encoded")
    return text


def _is_passable(text: str) -> bool:
    """Whether the system can take a text: it has no zero byte, and no surrogate that stands for no byte."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _absolute(what: str, path: str) -> str:
    try:
        found = system.absolute(path)
    except FileNotFoundError:
        raise ScriptNotFound(
            f"the {what} {path!r} cannot be found, because this process's current directory has been removed; give an "
            "absolute path",
            path=path,
        ) from None
    # "w.py/" names a directory, for open(2) too.
    return os.path.join(found, "") if os.path.basename(path) in ("", ".") else found


def _python_of(path: str) -> str:
    """An interpreter; a name without a slash is looked up in PATH later."""
    return _absolute("worker's interpreter", path) if os.sep in path else path


def _dir_of(path: str | os.PathLike[str]) -> str:
    found = _absolute("worker's current directory", _path_of("cwd", path))
    if not os.path.isdir(found):
        raise _bad("cwd", path, "a directory that exists")
    return found


def _args_of(args: Iterable[str]) -> tuple[str, ...]:
    if isinstance(args, str | Mapping | Set) or not isinstance(args, Iterable):  # a mapping's values would be lost
        raise _bad("args", args, "a list of texts, one for each word of the command line")
    try:
        words = tuple(args)
    except TypeError:  # an array without dimensions
        raise _bad("args", args, "a list of texts, one for each word of the command line") from None
    for word in words:
        if not isinstance(word, str) or not _is_passable(word):
            raise _bad("args", word, f"a list of {_TEXTS}")
    return words


def _env_of(env: Mapping[str, str | None] | None) -> dict[str, str | None] | None:
    if env is None:
        changes: dict[str, str | None] = {}
    elif isinstance(env, Mapping):
        changes = dict(env)
    else:
        raise _bad("env", env, "a dict from names to texts, or to None to remove a variable")
    for name, value in changes.items():
        if not isinstance(name, str) or not name or "=" in name or not _is_passable(name):
            raise _bad("env", name, "a dict whose keys are names of variables")
        if value is not None and (not isinstance(value, str) or not _is_passable(value)):
            wanted = "its value is a text that has no zero byte and can be encoded, or None to remove the variable"
            raise BadMessage(f"env: {name} is {value!r:.80}; {wanted}", detail="env")
    python = changes.get(PYTHON_VARIABLE, os.environ.get(PYTHON_VARIABLE))
    if python:
        changes[PYTHON_VARIABLE] = _python_of(python)
    return changes or None
