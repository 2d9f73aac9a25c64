"""Which layers and kinds of the sandbox work on this machine; for the others, why not, and what to do. Prints nothing.

Each kind is tried by running something. A missing layer is tried once more, in a process of its own, to find out what
refuses it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import TRException
from . import layers
from .box import REQUIRED_LAYERS, Sandbox
from .kinds import KINDS, PLANNED

try:
    from . import _kernel
except ImportError:  # there was no compiler
    _kernel = None  # type: ignore[assignment]

__all__ = ["Diagnosis", "KindState", "LayerState", "diagnose"]

_KEEPS: Final = {
    "no_new_privs": "programs that would give it more rights give none",
    "rlimits": "memory, stack, descriptors, sizes of files",
    "capabilities": "none of root's rights",
    "landlock": "no path but those that were granted, no TCP port",
    "seccomp": "no system call but those of a list: no socket, no other process",
    "mount_namespace": "other paths are not even seen; a private /tmp",
    "net_namespace": "no network is there at all",
}
_LANDLOCK_VERSION: Final = 444, 0, 0, 1  # landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)
_SAMPLES: Final[Mapping[str, bytes]] = {
    "contained": b"output = 1",
    # (module (memory (export "memory") 1) (func (export "f") (result i32) (i32.const 0)))
    "wasm": bytes.fromhex(
        "0061736d010000000105016000017f030201000503010001070e02066d656d6f72790200016600000a0601040041000b"
    ),
}


@dataclass(frozen=True)
class LayerState:
    """One layer.

    Attributes:
        name: of it.
        keeps: what it protects.
        is_active: whether this machine has it.
        is_required: whether a sandbox does not start without it by default.
        reason: why it is missing, and what to do.
    """

    name: str
    keeps: str
    is_active: bool
    is_required: bool
    reason: str = ""


@dataclass(frozen=True)
class KindState:
    """One kind.

    Attributes:
        name: of it.
        works: whether a small algorithm ran; for a kind without one here, whether its sandbox started.
        detail: which version runs it; or why it does not work, and what to do.
        start_ms: how long it took to make its sandbox.
    """

    name: str
    works: bool
    detail: str
    start_ms: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """What this machine has.

    Attributes:
        user: the user of this process; other users may have other layers.
        kernel: of the machine.
        layers: all layers.
        kinds: all kinds, the default one first.
    """

    user: str
    kernel: str
    layers: tuple[LayerState, ...]
    kinds: tuple[KindState, ...]

    @property
    def is_well(self) -> bool:
        """Whether the default kind works."""
        return self.kinds[0].works


def diagnose() -> Diagnosis:
    """Examine the machine, and try every kind."""
    active = set(layers.active_layers())
    kinds = [_try_kind(name, active) for name in KINDS]
    kinds += [KindState(name, False, why) for name, why in PLANNED.items()]
    states = [
        LayerState(
            name, _KEEPS[name], name in active, name in REQUIRED_LAYERS, "" if name in active else _why_not(name)
        )
        for name in layers.LAYERS
    ]
    system = os.uname()
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    return Diagnosis(user, f"{system.sysname} {system.release} {system.machine}", tuple(states), tuple(kinds))


def _try_kind(name: str, active: set[str]) -> KindState:
    began_s = time.perf_counter()
    try:
        with Sandbox(name, required_layers=()) as box:
            active |= box.layers
            start_ms = (time.perf_counter() - began_s) * 1000
            version = box.version
            if name in _SAMPLES:
                box.execute(_SAMPLES[name])
        missing = [each for each in REQUIRED_LAYERS if each not in active]
        if missing:
            return KindState(
                name,
                False,
                f"without {', '.join(missing)} it does not start; see above, or name fewer required_layers",
                start_ms,
            )
        return KindState(name, True, version, start_ms)
    except TRException as error:
        return KindState(name, False, str(error))


# -- why a layer is missing -------------------------------------------------------------------------------------------


def _why_not(name: str) -> str:
    if _kernel is None:
        return "tr_mmap was installed without a C compiler, which this layer needs: install one, then tr_mmap again"
    if name == "landlock":
        return _why_no_landlock()
    if name == "seccomp":
        return "the kernel has no filters of system calls (CONFIG_SECCOMP_FILTER), or none of this processor's"
    if name in ("mount_namespace", "net_namespace"):
        return _why_no_namespaces()
    return "the kernel does not have it"


def _why_no_landlock() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(*map(ctypes.c_long, _LANDLOCK_VERSION))
    code = ctypes.get_errno()
    if code == errno.EOPNOTSUPP:
        return "the kernel has Landlock, but it is switched off: add landlock to lsm= on the kernel's command line"
    if code == errno.ENOSYS:
        return (
            "the kernel is older than 5.13 or was built without Landlock (CONFIG_SECURITY_LANDLOCK): take a newer one"
        )
    if code == errno.EPERM:
        return "this container's profile refuses Landlock: allow landlock_create_ruleset, _add_rule, _restrict_self"
    return f"the kernel refuses Landlock: {os.strerror(code)}"


def _why_no_namespaces() -> str:
    """Try to make namespaces in a process of its own; they end with it."""
    program = "from tr_mmap.sandbox.diagnosis import try_namespaces; try_namespaces()"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    step, _, code = ended.stdout.strip().partition(" ")
    if step == "unshare":
        return _why_no_unshare()
    if step == "clone_mount" and code == str(errno.ENOSYS):
        return "the kernel is older than 5.12, and has no mount_setattr: take a newer one"
    if step:
        return (
            f"the kernel or this container's profile refuses {step} ({os.strerror(int(code))}): run the "
            "container with a profile that allows it"
        )
    return "the kernel refuses it"


def _why_no_unshare() -> str:
    switches = {
        "user.max_user_namespaces": "0",
        "kernel.unprivileged_userns_clone": "0",
        "kernel.apparmor_restrict_unprivileged_userns": "1",
    }
    for name, off in switches.items():
        if _read(f"/proc/sys/{name.replace('.', '/')}") == off:
            on = {"0": "1", "1": "0"}[off] if name != "user.max_user_namespaces" else "10000"
            return f"user namespaces are switched off for ordinary users: sysctl -w {name}={on}, as root"
    if "Seccomp:\t2" in _read("/proc/self/status"):
        return "a filter of this container refuses unshare: run the container with a seccomp profile that allows it"
    return "the kernel refuses unshare to this user: run it as root with CAP_SYS_ADMIN, or allow user namespaces"


def try_namespaces() -> None:
    """Print the step at which namespaces are refused and the error's number; nothing if they are not refused."""
    from . import namespaces

    step = "unshare"
    try:
        try:
            _kernel.unshare(namespaces._NEWNS)
        except PermissionError:
            _kernel.unshare(namespaces._NEWNS | namespaces._NEWUSER)
        step = "mount"
        _kernel.mount("/", None, namespaces._MS_REC | namespaces._MS_PRIVATE, "")
        step = "clone_mount"
        os.close(_kernel.clone_mount("/dev/null", namespaces._READ_ONLY))
    except OSError as error:
        print(step, error.errno)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
