"""Whether the interpreter that ``[python]`` names can run the algorithms' processes. Starts it once, to ask."""

from __future__ import annotations

import subprocess
from typing import Final

from .. import __version__
from ..errors import ScriptNotFound
from ..processes.interpreter import find_python
from .config import is_version
from .errors import BadConfig
from .sections import PythonConfig

__all__ = ["check_interpreter"]

_ASK: Final = "import platform, tr_mmap; print(platform.python_version(), tr_mmap.__version__)"
_ANSWER_S: Final = 60.0  # of a busy machine with a cold disk


def check_interpreter(python: PythonConfig) -> None:
    """Refuse an interpreter that cannot be started, has another version, or another ``tr_mmap``.

    Raises:
        BadConfig: that is so; one line says what to do.
    """
    if not python.python_path:
        return  # this one, which the configuration was compared with

    def wrong(why: str, key: str = "python.python_path") -> BadConfig:
        return BadConfig(f"{key}: {why}", key=key)

    try:
        path = find_python(python.python_path, what="the algorithms", origin="[python] python_path")
        asked = subprocess.run(
            [path, "-P", "-c", _ASK],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except ScriptNotFound as error:
        raise wrong(str(error)) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise wrong(f"{python.python_path} cannot be run: {error}") from error
    said = asked.stdout.split()
    if asked.returncode or len(said) != 2:
        last = (asked.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise wrong(f"{path} has no tr_mmap that works there: {last:.300}; install it with that interpreter's pip")
    version, ours = said
    if ours != __version__:
        raise wrong(f"{path} has tr_mmap {ours}, and this is {__version__}; install the same")
    if not is_version(version, python.version):
        raise wrong(f"{path} is Python {version}, and not {python.version}", "python.version")
