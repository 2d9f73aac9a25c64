"""A worker that notes all that its script can see of its start, before it imports anything of ours.

Arguments: the session, a file to which one line of JSON is added at each start, and more words.
"""

import sys

LOADED = sorted({"numpy", "torch", "tr_mmap"} & set(sys.modules))
SITE = "sitecustomize" in sys.modules
DEPTH = 0
FRAME = sys._getframe()
while FRAME.f_back is not None:
    DEPTH, FRAME = DEPTH + 1, FRAME.f_back
MAIN = sorted(set(vars(sys.modules["__main__"])) - {"LOADED", "SITE", "DEPTH", "FRAME", "sys"})

import faulthandler  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import locale  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
import re  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

# What each start has of its own: numbers of descriptors, and the mark.
OWN = {"TR_MMAP_WORKER", "TR_MMAP_LOCK_FD", "TR_MMAP_LIFELINE_FD", "TR_MMAP_AUTH_FD"}
CHILD = "import json, os, sys; print(json.dumps([sys.path[1:], os.environ.get('PYTHONPATH'), sorted(os.environ)]))"


class Thing:
    """Can be pickled, because this script is ``__main__``."""


def files():
    """What the descriptors lead to, without numbers, and whether programs inherit them."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
        number = int(name) if int(name) < 3 else -1
        flags = re.search(r"^flags:\s*0*(\d+)$", Path(f"/proc/self/fdinfo/{name}").read_text(), re.MULTILINE)[1]
        found.append((number, re.sub(r"[0-9a-f]{32}|\d+", "#", target), int(flags, 8) & ~os.O_CLOEXEC))
    return sorted(found)


def trace():
    try:
        raise ValueError("for its traceback")
    except ValueError:
        return traceback.format_exc()


def stream(file):
    names = ["name", "mode", "encoding", "errors", "line_buffering", "write_through", "closed", "newlines"]
    return [*(repr(getattr(file, name)) for name in names), file.isatty(), file.fileno(), type(file.buffer).__name__]


STATUS = Path("/proc/self/status").read_text()
main = sys.modules["__main__"]
FACTS = {
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "flags": str(sys.flags),
    "path": sys.path,
    "options": [sys.warnoptions, sys._xoptions, sys.executable, sys.prefix, sys.pycache_prefix],
    "main": MAIN,
    "main_values": [repr(getattr(main, name, None)) for name in ("__name__", "__file__", "__package__", "__spec__")],
    "loader": [type(main.__loader__).__name__, getattr(main.__loader__, "path", None)],
    "pickled": type(pickle.loads(pickle.dumps(Thing()))) is Thing,
    "environ": {name: value for name, value in os.environ.items() if name not in OWN},
    "own": sorted(OWN & set(os.environ)),
    "cwd": os.getcwd(),
    "files": files(),
    "streams": [stream(each) for each in (sys.stdin, sys.stdout, sys.stderr)],
    "signals": {str(int(each)): repr(signal.getsignal(each)) for each in signal.valid_signals()},
    "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
    "status": re.findall(r"^(?:Sig(?:Blk|Ign)|Umask|Cap\w+|Groups|NoNewPrivs):.*$", STATUS, re.MULTILINE),
    "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")],
    "leads": [os.getpid() == os.getsid(0), os.getpid() == os.getpgrp(), os.getppid()],
    "priority": [os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))],
    "depth": DEPTH,
    "trace": trace(),
    "threads": [threading.active_count(), threading.current_thread().name],
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
    "switches": [sys.getrecursionlimit(), sys.getswitchinterval(), faulthandler.is_enabled(), sys.dont_write_bytecode],
    "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__, str(sys.gettrace())],
    "locale": [locale.setlocale(locale.LC_ALL), sys.getfilesystemencoding()],
    "site": SITE,
    "child": json.loads(subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True).stdout),
}
with open(sys.argv[2], "a") as file:
    file.write(json.dumps({"loaded": LOADED, "facts": FACTS}) + "\n")

from tr_mmap import Server  # noqa: E402

server = Server()


@server.command("hello")
def hello() -> str:
    return "hello"


server.run()
