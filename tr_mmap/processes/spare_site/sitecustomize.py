"""Makes an interpreter a spare: it imports what workers need, and waits until it is to run. Standard library only.

:mod:`..spare` starts ``python script.py spare`` with this folder on ``PYTHONPATH``. Python's ``site`` imports a module
of this name before Python opens the script. When the controller says so, this module gives the process the arguments,
the output and the descriptors of a worker, and returns. Python then runs the script as it runs any script: nothing of
ours is on its stack, and what its file holds then is what runs.

What was imported here was imported before the script's own folder was on the path. Where that folder has a module of
the same name, the interpreter starts anew, and is no spare then.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own is slow to import
if TYPE_CHECKING:
    from typing import Any

_VARIABLE = "TR_MMAP_SPARE"
# The words of both sides, one byte each; ``spare.py`` has them too.
_HERE, _ARE_YOU_THERE, _RUN = b"!", b"?", b"="
_MOST_FDS = 8


def _become_worker(settings: str) -> None:
    """Import, wait, and make this process the worker."""
    before = set(sys.modules)
    import _socket
    import json

    wanted = json.loads(settings)
    own = _socket.socket(fileno=wanted["fd"])
    os.set_inheritable(own.fileno(), False)
    _restore_path(wanted["pythonpath"])
    _import(wanted["package_finder"], wanted["modules"])
    told, fds = _wait(own)
    own.close()
    for number in (1, 2):
        os.dup2(fds[0], number)
    os.close(fds[0])
    for name, fd in zip(told["variables"], fds[1:], strict=True):
        os.environ[name] = str(fd)
    sys.argv[1:] = sys.orig_argv[-1:] = told["words"]
    if _is_shadowed({name.partition(".")[0] for name in set(sys.modules) - before}):
        for fd in fds[1:]:
            os.set_inheritable(fd, True)
        os.execv(sys.orig_argv[0], sys.orig_argv)


def _restore_path(pythonpath: "str | None") -> None:
    """Undo what brought Python here, for the script and for what it starts."""
    place = os.path.dirname(__file__)
    sys.path[:] = [each for each in sys.path if each != place]
    sys.path_importer_cache.pop(place, None)
    if pythonpath is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = pythonpath


def _import(package_finder: str, modules: "list[str]") -> None:
    """Import what workers need.

    Args:
        package_finder: the default worker's program, which finds its packages itself; "" for a script.
        modules: names.
    """
    import gc
    import importlib.util

    gc.disable()  # imports leave next to no garbage
    if package_finder:
        spec = importlib.util.spec_from_file_location("", package_finder)
        assert spec is not None
        assert spec.loader is not None
        program: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
        program.find_packages()
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # what was imported stays, so that no collection need look through it
    gc.enable()


def _wait(own: "Any") -> "tuple[dict[str, Any], list[int]]":
    """Wait for what to run. Ends the process if the controller has ended, or wants no spare."""
    import select

    poll = select.poll()
    poll.register(own.fileno(), select.POLLIN)
    parent, pause_ms, pidfd = os.getppid(), None, -1
    try:  # the socket does not tell of the controller's end while a child that it has forked lives
        pidfd = os.pidfd_open(parent)
        poll.register(pidfd, select.POLLIN)
    except (AttributeError, OSError):
        pause_ms = 1000
    word = _ARE_YOU_THERE
    while word == _ARE_YOU_THERE:
        own.send(_HERE)
        ready: list[int] = []
        while not ready and os.getppid() == parent:
            ready = [fd for fd, _ in poll.poll(pause_ms)]
        if own.fileno() not in ready:
            os._exit(0)
        word, fds = _receive(own)
    if word != _RUN:
        os._exit(0)
    if pidfd >= 0:
        os.close(pidfd)
    return _told(own), fds


def _receive(own: "Any") -> "tuple[bytes, list[int]]":
    """One byte, and the descriptors that came with it."""
    import _socket
    import array

    fds = array.array("i")
    word, ancillary, _, _ = own.recvmsg(1, _socket.CMSG_SPACE(_MOST_FDS * fds.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return word, list(fds)


def _told(own: "Any") -> "dict[str, Any]":
    """What to run: JSON, to the end of what the controller sends."""
    import json

    text = b""
    while data := own.recv(1 << 16):
        text += data
    told: dict[str, Any] = json.loads(text)
    return told


def _is_shadowed(imported: "set[str]") -> bool:
    """Whether the script's folder, which is the first place for its imports, has a module of one of these names."""
    from importlib.machinery import PathFinder
    from zipimport import ZipImportError, zipimporter

    script = sys.argv[0]
    if script == "-m":
        return False
    try:
        zipimporter(script)
        return True  # perhaps: Python searches the file itself
    except ZipImportError:
        pass
    if sys.flags.safe_path:
        return False
    folder = os.path.dirname(os.path.realpath(script))
    for name in {entry.partition(".")[0] for entry in os.listdir(folder)} & imported:
        spec = PathFinder.find_spec(name, [folder])
        if spec is not None and spec.origin is not None:  # a folder without __init__.py gives way to a module
            return True
    return False


if _settings := os.environ.pop(_VARIABLE, ""):
    try:
        _become_worker(_settings)
    except BaseException:
        import traceback

        traceback.print_exc()  # to the worker's log, if this is the worker already
        os._exit(1)

# The environment's own module of this name, as if this one had not been there. Python knows what to do without one.
sys.path[:] = [each for each in sys.path if each != os.path.dirname(__file__)]
del sys.modules[__name__]
import sitecustomize  # type: ignore[import-not-found] # noqa: E402, F401
