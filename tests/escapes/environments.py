"""Machines on which the attacks are run: this one, this one for an ordinary user, and kernels that lack a layer.

A program of its own becomes that user, and asks the kernel to refuse some system calls, as an older kernel or a
container's profile would. Then it makes a sandbox, runs all attacks in it, and prints what their users get.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks import AREAS, ATTACKS, LIBC, Attack
from attacks_files import COUNT, FILE_ATTACKS, FIND

PRELOAD: list[str] = []  # of this machine
_NOBODY = 65534
_PROFILE = ("unshare", "mount", "pivot_root", "open_tree", "move_mount", "mount_setattr")  # a container's usual denials


@dataclass(frozen=True)
class Environment:
    """One machine.

    Attributes:
        name: of it.
        is_nobody: whether the program becomes an ordinary user.
        refused: system calls that its kernel refuses.
        missing: layers that the sandbox does not have there.
        preload: modules of this folder that its processes import, and this one; see ``old_landlock.py``.
    """

    name: str
    is_nobody: bool = False
    refused: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()
    preload: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


_NAMESPACES = frozenset({"mount_namespace", "net_namespace"})
ENVIRONMENTS = [
    Environment("as it is"),
    Environment("no namespaces", False, _PROFILE, _NAMESPACES),
    Environment("Landlock 2, no namespaces", False, _PROFILE, _NAMESPACES, ("old_landlock",)),
    Environment("no Landlock", False, ("landlock_create_ruleset",), frozenset({"landlock"})),
]
if os.geteuid() == 0:
    ENVIRONMENTS += [
        Environment("nobody", True),
        Environment("nobody, no namespaces", True, _PROFILE, _NAMESPACES),
    ]


def machines(*always: str, of: Sequence[Environment] = ENVIRONMENTS) -> list[Any]:
    """Parameters of a test: these machines, and with ``--full`` all others too."""
    import pytest

    return [pytest.param(each, id=each.name, marks=() if each.name in always else pytest.mark.full_only) for each in of]


def run_in(environment: Environment, program: str, *arguments: str, data: bytes = b"") -> str:
    """Run one of the programs of this module there; returns what it prints.

    Args:
        environment: where.
        program: name of its function.
        arguments: of it.
        data: that it reads from its standard input.
    """
    settings = json.dumps([environment.is_nobody, environment.refused, environment.preload, program, *arguments])
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, __file__, settings],
        input=data,
        capture_output=True,
        timeout=110,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *[each for each in sys.path if each]])},
    )
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    return ended.stdout.decode()


def become_nobody() -> None:
    """Be an ordinary user, who finds this interpreter and its packages at the same paths, whoever owns the folders."""
    from tr_mmap.sandbox import _kernel

    needed = [sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])]
    hidden = [path for path in needed if _closed_parent(path)]
    if hidden:
        _kernel.unshare(0x20000)
        _kernel.mount("/", None, 1 << 14 | 1 << 18, "")
        trees = [(path, _kernel.clone_mount(path, 1)) for path in hidden]
        for parent in {_closed_parent(path) for path in hidden}:
            _kernel.mount(parent, "tmpfs", 0, "mode=755")
        for path, fd in trees:
            os.makedirs(path, exist_ok=True)
            _kernel.move_mount(fd, path)
            os.close(fd)
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)


def _closed_parent(path: str) -> str:
    """The outermost directory above a path that other users may not pass."""
    for parent in [*reversed(Path(path).parents), Path(path)]:
        if not parent.stat().st_mode & 1:
            return str(parent)
    return ""


def refuse(names: tuple[str, ...]) -> None:
    """Let the kernel refuse system calls from now on."""
    from tr_mmap.sandbox import _kernel

    if not names:
        return
    words = [(0x20, 0, 0, 0)]
    for name in names:
        code = errno.ENOSYS if name.startswith("landlock") else errno.EPERM
        words += [(0x15, 0, 1, _kernel.SYSCALLS[name]), (0x06, 0, 0, 0x00050000 | code)]
    words.append((0x06, 0, 0, 0x7FFF0000))
    _kernel.prctl(38, 1)
    _kernel.install_filter(b"".join(struct.pack("=HBBI", *each) for each in words))


def attack_all(kind: str = "contained") -> None:
    """Run all attacks; prints the layers, and for each attack the error: its class and fields; or None."""
    import numpy as np

    def attack_by(box: Any, attack: Attack) -> None:
        box.execute(attack.code, {"x": np.zeros(4)})

    def look_at(box: Any) -> None:
        assert box.execute("output = 7").outputs == {"output": 7}

    _attack_by(kind, ATTACKS, attack_by, look_at)


def attack_native() -> None:
    """The same by a library of attacks, from standard input."""
    import attacks_native
    import numpy as np

    code = sys.stdin.buffer.read()
    numbers = {each.id: number for number, each in enumerate(attacks_native.ATTACKS)}

    def attack_by(box: Any, attack: Any) -> None:
        box.run(box.register("attack", code, f"attack_{numbers[attack.id]}"), {"x": np.zeros(4)})

    def look_at(box: Any) -> None:
        assert box.run(box.register("well", code, "well")).outputs["output"].tolist() == [1]

    _attack_by("native", attacks_native.ATTACKS, attack_by, look_at)


def attack_wasm(granted: str) -> None:
    """The same by modules of WebAssembly, which are granted a directory."""
    import attacks_wasm
    import numpy as np

    from tr_mmap.errors import TRException
    from tr_mmap.sandbox import Allow, Sandbox

    allow = Allow(read=(granted,), clock=True)
    required = ("seccomp", "rlimits", "no_new_privs")
    results: dict[str, Any] = {}
    with Sandbox("wasm", limits=attacks_wasm.LIMITS, allow=allow, required_layers=required) as box:
        for attack in attacks_wasm.ATTACKS:
            inputs = attack.inputs_of(granted)
            try:
                box.run(box.register("attack", attack.code), inputs)
                results[attack.id] = None
            except TRException as error:
                fields = {name: value for name, value in error.__dict__.items() if isinstance(value, str | int | float)}
                results[attack.id] = [type(error).__name__, {**fields, "message": str(error)}]
            assert all((each == 0).all() for each in inputs.values() if isinstance(each, np.ndarray)), attack.id
            assert box.run(box.register("well", attacks_wasm.WELL)).outputs == {"output": 7}
        print(json.dumps([sorted(box.layers), results]))


def _attack_by(
    kind: str, attacks: Sequence[Any], attack_by: Callable[[Any, Any], None], look_at: Callable[[Any], None]
) -> None:
    from tr_mmap.errors import TRException
    from tr_mmap.sandbox import Limits, Sandbox

    required = ("seccomp", "rlimits", "no_new_privs")
    results = {}
    usual = Limits(memory_nbytes=256 << 20, wall_ms=8000, cpu_ms=4000)
    short = Limits(memory_nbytes=256 << 20, wall_ms=2500, cpu_ms=200)
    with (
        Sandbox(kind, limits=usual, required_layers=required, preload=("numpy", *PRELOAD)) as box,
        Sandbox(kind, limits=short, required_layers=required, preload=("numpy", *PRELOAD)) as quick,
    ):
        for attack in attacks:
            chosen = quick if attack.number == 9 else box
            try:
                attack_by(chosen, attack)
                results[attack.id] = None
            except TRException as error:
                fields = {name: value for name, value in error.__dict__.items() if isinstance(value, str | int | float)}
                results[attack.id] = [type(error).__name__, {**fields, "message": str(error)}]
            look_at(chosen)
        print(json.dumps([sorted(box.layers), results]))


def attack_file(path: str) -> None:
    """Attack a file that algorithms read in place; prints for each attack the error, as above, or its output.

    After each of them the file is as it was.
    """
    import numpy as np

    from tr_mmap.errors import TRException
    from tr_mmap.sandbox import Sandbox

    np.arange(float(COUNT)).tofile(path)
    array = np.memmap(path, np.float64, "r")
    results = {}
    with Sandbox(required_layers=("seccomp", "rlimits", "no_new_privs")) as box:
        places = box.execute("output = 1", {"x": array}).input_places
        for name, code in FILE_ATTACKS.items():
            before = os.stat(path)
            try:
                results[name] = box.execute(FIND + code, {"x": array}).outputs["output"]
            except TRException as error:
                results[name] = [type(error).__name__, str(error)]
            after = os.stat(path)
            for field in ("st_ino", "st_size", "st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_ctime_ns", "st_nlink"):
                assert getattr(before, field) == getattr(after, field), (name, field)
            assert np.array_equal(array, np.arange(float(COUNT))), name
        print(json.dumps([sorted(box.layers), places["x"], results]))


def look_around() -> None:
    """Print what a contained process has: its descriptors, its environment, its ids."""
    from tr_mmap.sandbox import Allow, Sandbox

    os.environ["SECRET"] = "of the host"
    code = AREAS + (
        "import sys\ndef frames():\n  frame, found = sys._getframe(), []\n"
        "  while frame:\n    found += [repr(each) for each in frame.f_locals.values() if each is not found]\n"
        "    frame = frame.f_back\n  return found\n"
        "def kind(fd):\n  mode = os.fstat(fd).st_mode\n"
        "  kinds = {stat.S_IFSOCK: 'socket', stat.S_IFIFO: 'pipe', stat.S_IFREG: 'file'}\n"
        "  return kinds.get(stat.S_IFMT(mode), 'device')\n"
        "output = [[kind(fd) for fd in range(1024) if is_open(fd)], dict(os.environ),"
        "\n  [sys.orig_argv, sys.path, frames()]]"
    )
    with Sandbox(allow=Allow(env={"GRANTED": "yes"}), required_layers=()) as box:
        print(json.dumps(box.execute(code).outputs["output"]))


def truncate(path: str, granted: str) -> None:
    """Print what comes of each way to truncate a file that may not be written, and of one that may."""
    from tr_mmap.errors import TRException
    from tr_mmap.sandbox import Allow, Mount, Sandbox

    ways = [
        f"os.truncate({path!r}, 0)",
        f"os.truncate({granted!r} + '/read', 0)",
        f"os.open({granted!r} + '/read', os.O_RDONLY | os.O_TRUNC)",
        f"os.open({path!r}, 3 | os.O_TRUNC)",
        f"call('open', ctypes.c_char_p({path!r}.encode()), 3 | os.O_TRUNC)",
        f"call('creat', ctypes.c_char_p({path!r}.encode()), 0o600)",
        f"call('openat2', -100, ctypes.c_char_p({path!r}.encode()), (ctypes.c_uint64 * 3)(3 | os.O_TRUNC), 24)",
        f"open({granted!r} + '/write/file', 'w').close()",
    ]
    allow = Allow(read=(granted,), mounts=(Mount(f"{granted}/write", f"{granted}/write", readonly=False),))
    found = []
    with Sandbox(allow=allow, required_layers=("landlock", "seccomp"), preload=("numpy", *PRELOAD)) as box:
        for way in ways:
            try:
                box.execute(f"{LIBC}\n{way}; output = 1")
                found.append("worked")
            except TRException as error:
                found.append(type(error).__name__)
    print(json.dumps(found))


def refuse_to_start(kind: str, *layers: str) -> None:
    """Print which layers are missing, if a sandbox of that kind does not start because of that."""
    from tr_mmap.sandbox import Sandbox, SandboxBroken

    try:
        with Sandbox(kind, required_layers=layers):
            print("null")
    except SandboxBroken as error:
        print(json.dumps([error.layers, str(error)]))


def start_with_disk() -> None:
    """The same, if a private directory is asked for by its size."""
    from tr_mmap.sandbox import Limits, Sandbox, SandboxBroken

    try:
        with Sandbox(limits=Limits(disk_nbytes=1 << 20), required_layers=()):
            print("null")
    except SandboxBroken as error:
        print(json.dumps([error.layers, str(error)]))


def ask_the_doctor() -> None:
    """Print what it finds."""
    from tr_mmap.cli.sandbox_screens import show_diagnosis
    from tr_mmap.sandbox.diagnosis import diagnose

    show_diagnosis(diagnose(), is_json=True)


if __name__ == "__main__":
    is_nobody, refused, PRELOAD, program, *arguments = json.loads(sys.argv[1])
    for each in PRELOAD:
        importlib.import_module(each)
    if is_nobody:
        become_nobody()
    refuse(tuple(refused))
    globals()[program](*arguments)
