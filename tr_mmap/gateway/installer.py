"""Runs uv, as a process of its own: it chooses versions, and installs them. Knows no environments, and allows all.

Nothing of a package is executed: only wheels are taken, which are archives. An installer has no variable of this
process's, a directory for all that it writes, and a time. It ends when the thread that started it does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..errors import MissingPackage
from .errors import BadDependency, InstallFailed
from .logs import log
from .requirements import Locked, lock_text, name_of, read_lock
from .sections import DependenciesConfig

__all__ = ["PACKAGES", "Installer", "find_uv"]

PACKAGES: Final = "packages"
"""The directory, in an installation's own, that has the packages."""

_PASSED: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_MOST_TEXT: Final = 600
# What uv says when packages cannot be had now, for no fault of whoever declares them.
_NO_NETWORK: Final = re.compile(
    r"Failed to fetch|Request failed after|error sending request|timed out|dns error|HTTP status server error"
    r"|returned a 40[13]"
)
_NO_ROOM: Final = ("No space left on device", "File too large")
# Between the start of this process and its own first call, the one that has started it may have ended.
_LAUNCHER: Final = """
import ctypes, os, resource, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.umask(0o077)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_uv() -> str:
    """The path of uv's program.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import uv

        return os.fsdecode(uv.find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        text = "[python.dependencies] auto_install needs uv: pip install 'tr_mmap[gateway]'"
        raise MissingPackage(text, package="uv") from error


class Installer:
    """Runs uv for one gateway. Threads may use it at once.

    Args:
        config: where packages come from, and how long it may take.
        uv: its program.
        python: the interpreter that the packages are for.
    """

    def __init__(self, config: DependenciesConfig, uv: str, python: str) -> None:
        self._config = config
        self._uv = uv
        self._python = python
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False

    def lock(
        self, requirements: Sequence[str], provided: Mapping[str, str], folder: str, fd: int
    ) -> tuple[Locked, ...]:
        """Choose versions of packages, and of all that they need.

        Args:
            requirements: of the packages.
            provided: versions of packages that are there, whatever is chosen: by name.
            folder: an empty directory for it.
            fd: is passed on, so that whoever looks sees from its lock that the directory is in use.

        Returns:
            Those that are not provided.

        Raises:
            BadDependency: there are no such versions, or they do not fit together.
            InstallFailed: the installer was ended, or the index cannot be reached.
        """
        stubs = os.path.join(folder, "provided")
        os.makedirs(stubs)
        for name, version in provided.items():
            _write_stub(stubs, name, version)
        _write(folder, "requirements.in", "".join(f"{each}\n" for each in requirements))
        _write(folder, "provided.txt", "".join(f"{name}=={version}\n" for name, version in provided.items()))
        line = ["compile", "requirements.in", "--constraints", "provided.txt", "--find-links", stubs]
        line += ["--output-file", "lock.txt", "--generate-hashes", "--no-header", "--no-annotate"]
        self._run_uv(line, folder, fd, [name_of(each) for each in requirements])
        with open(os.path.join(folder, "lock.txt"), encoding="utf-8") as file:
            return tuple(each for each in read_lock(file.read()) if each.name not in provided)

    def install(self, locked: Sequence[Locked], folder: str, fd: int) -> None:
        """Install just these into the directory ``packages`` in ``folder``, and compile their sources.

        Raises:
            BadDependency: a file has another hash now, or is no wheel.
            InstallFailed: the installer was ended.
        """
        _write(folder, "lock.txt", lock_text(locked))
        line = ["install", "-r", "lock.txt", "--target", PACKAGES, "--require-hashes", "--no-deps"]
        self._run_uv(line, folder, fd, [each.name for each in locked])
        # Python's own, for a file is only read for it; and one that cannot be compiled may never be imported.
        self._run([self._python, "-I", "-S", "-m", "compileall", "-qq", PACKAGES], folder, fd)

    def close(self) -> None:
        """End those that run. Idempotent."""
        with self._lock:
            self._is_closed = True
            for each in self._running:
                _kill(each)

    def _run_uv(self, arguments: Sequence[str], folder: str, fd: int, packages: Sequence[str]) -> None:
        wheels = self._config.wheel_dir
        if wheels is not None and not os.path.isdir(wheels):
            raise InstallFailed("[python.dependencies] wheel_dir is no directory that is there", retry_after_s=60.0)
        source = ["--no-index", "--offline", "--find-links", wheels] if wheels is not None else []
        line = [self._uv, "pip", *arguments, *source, "--python", self._python, "--only-binary", ":all:"]
        line += ["--no-config", "--no-cache", "--no-python-downloads", "--no-progress", "--color", "never", "--quiet"]
        status, said = self._run(line, folder, fd)
        if status and any(each in said for each in _NO_ROOM):
            raise InstallFailed("the packages have no room in [python.dependencies] cache_dir", retry_after_s=60.0)
        if status:
            log.warning("uv has refused dependencies", extra={"status": status, "said": said[-4000:]})
        if status and _NO_NETWORK.search(said):
            raise InstallFailed("the index of packages cannot be reached now; try again", retry_after_s=10.0)
        if status:
            places = (folder, wheels or "", os.path.dirname(self._python))
            text = _in_one_line(said, places)
            raise BadDependency(
                f"the dependencies cannot be installed: {text}", package=_named_in(text, packages) or packages[0]
            )

    def _run(self, line: Sequence[str], folder: str, fd: int) -> tuple[int, str]:
        """
        Raises:
            InstallFailed: it was ended.
        """
        most_nbytes = self._config.max_cache_mb << 20
        launch = [self._python, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(most_nbytes), *line]
        process = self._start(launch, folder, fd)
        began_s = time.monotonic()
        try:
            _, said = process.communicate(timeout=self._config.install_timeout_s)
        except subprocess.TimeoutExpired:
            raise InstallFailed(
                f"the installation did not end within {self._config.install_timeout_s:g} s, and was ended; see "
                "[python.dependencies] install_timeout_s",
                retry_after_s=60.0,
            ) from None
        finally:
            _kill(process)
            process.communicate()
            with self._lock:
                self._running.discard(process)
        log.debug("an installer has ended", extra={"seconds": time.monotonic() - began_s, "status": process.returncode})
        if process.returncode < 0:
            raise InstallFailed(
                f"the installer was ended by {signal.Signals(-process.returncode).name}; try again", retry_after_s=1.0
            )
        return process.returncode, said.decode("utf-8", "replace")

    def _start(self, line: Sequence[str], folder: str, fd: int) -> subprocess.Popen[bytes]:
        temporary = os.path.join(folder, "tmp")
        os.makedirs(temporary, exist_ok=True)
        with self._lock:
            if self._is_closed:
                raise InstallFailed("the gateway is about to end; try again", retry_after_s=1.0)
            process = subprocess.Popen(
                line,
                env=_environment(temporary, has_index=self._config.wheel_dir is None),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(fd,),
                start_new_session=True,
            )
            self._running.add(process)
        return process


def _environment(temporary: str, *, has_index: bool) -> dict[str, str]:
    """All variables that an installer has."""
    names = [each for name in _PASSED for each in (name, name.lower())] if has_index else []
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {"PATH": os.defpath, "HOME": temporary, "TMPDIR": temporary, "LANG": "C.UTF-8", **passed}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:  # else its number may be another one's
            os.killpg(process.pid, signal.SIGKILL)


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)


def _write_stub(folder: str, name: str, version: str) -> None:
    """A wheel that has only a name: so uv finds a version that is provided, wherever that came from."""
    stem = re.sub(r"[-_.]+", "_", name)
    about = f"{stem}-{version}.dist-info"
    with zipfile.ZipFile(os.path.join(folder, f"{stem}-{version}-py3-none-any.whl"), "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def _named_in(text: str, packages: Iterable[str]) -> str:
    """The package that a text is about: the first that it names; empty for none."""
    places = {}
    for each in packages:
        found = re.search(rf"(?<![\w.-]){re.escape(each)}\b", text)
        if found is not None:
            places[each] = found.start()
    return min(places, key=places.__getitem__, default="")


def _in_one_line(said: str, hidden: Iterable[str]) -> str:
    """What uv says, without the names of places here."""
    for each in sorted(filter(None, hidden), key=len, reverse=True):
        said = said.replace(f"{each}/", "").replace(each, "the gateway's directory")
    text = " ".join(said.split()).replace("error: ", "", 1).replace(" cause: ", ": ")
    return text[:_MOST_TEXT] or "uv does not say why"
