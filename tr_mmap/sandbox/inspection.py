"""Lists what a person may want to know of Python source before it runs. Advice, not a barrier; executes nothing."""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from ..errors import MissingPackage
from .errors import AlgorithmError

__all__ = ["Inspection", "RiskyCall", "check_installed", "inspect"]

_MAX_CHARACTERS: Final = 1 << 20  # parsing so many takes seconds, and hundreds of MiB

_STACK_NBYTES: Final = 256 << 20  # enough for a recursion limit of 100,000; takes memory only where it is used
_starting: Final = threading.Lock()  # held while threading.stack_size is changed

_RISKY: Final = frozenset(
    """
    eval exec compile __import__ open input breakpoint globals vars getattr setattr delattr
    os.system os.popen os.fork os.execv os.execve os.kill os.remove os.unlink os.rmdir shutil.rmtree
    subprocess.run subprocess.Popen subprocess.call subprocess.check_output socket.socket ctypes.CDLL sys.settrace
    pickle.load pickle.loads marshal.loads importlib.import_module torch.load joblib.load
    """.split()  # noqa: SIM905 - as one reads it
)

_OTHER_NAMES: Final = {
    "scikit_learn": ("sklearn",),
    "pillow": ("pil",),
    "opencv_python": ("cv2",),
    "pyyaml": ("yaml",),
    "beautifulsoup4": ("bs4",),
    "python_dateutil": ("dateutil",),
    "candle_nn": ("candle",),
}
"""Names by which packages are imported, in lower case, for packages that may not be installed here."""


@dataclass(frozen=True)
class RiskyCall:
    """A call that does more than compute.

    Attributes:
        name: as it is written, for example ``"os.system"``.
        line: where, from 1.
    """

    name: str
    line: int


@dataclass(frozen=True)
class Inspection:
    """What was found in the source.

    Attributes:
        imports: top-level packages that it imports, sorted.
        undeclared: those of the imports that are neither in the standard library nor declared.
        risky_calls: in the order of their lines.
    """

    imports: tuple[str, ...]
    undeclared: tuple[str, ...]
    risky_calls: tuple[RiskyCall, ...]


def inspect(code: str, dependencies: tuple[str, ...] = ()) -> Inspection:
    """Inspect source.

    Args:
        code: Python source.
        dependencies: names of packages that are declared, perhaps with versions (``"humanize==4.17.0"``).

    Raises:
        SyntaxError: it is not Python.
        AlgorithmError: it is too long, or too deeply nested. Python's parser runs in this process, which is not
            contained, so these limits protect it.
    """
    if len(code) > _MAX_CHARACTERS:
        raise AlgorithmError(
            f"the source has {len(code)} characters, and at most {_MAX_CHARACTERS} are inspected", type="TooLong"
        )
    try:
        return _with_stack(lambda: _inspect(code, dependencies))
    except (RecursionError, MemoryError, UnicodeError) as error:
        why = "it has characters that are none" if isinstance(error, UnicodeError) else "it is nested too deeply"
        raise AlgorithmError(f"the source cannot be inspected: {why}", type=type(error).__name__) from None


def _with_stack(read: Callable[[], Inspection]) -> Inspection:
    """Run Python's parser in a thread with a large stack: it limits its depth, but does not check the stack's size."""
    found: list[Inspection | BaseException] = []

    def work() -> None:
        try:
            found.append(read())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, name="tr_mmap-inspect", daemon=True)
    with _starting:
        former = threading.stack_size(_STACK_NBYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(former)
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _inspect(code: str, dependencies: tuple[str, ...]) -> Inspection:
    imports: set[str] = set()
    known: dict[str, str] = {}  # full names of what the code imports, by the names that it uses
    nodes = list(ast.walk(ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports.add(alias.name.partition(".")[0])
                if alias.asname:
                    known[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
            known.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            imports.add(name)
    calls = [
        RiskyCall(name, node.lineno)
        for node in nodes
        if isinstance(node, ast.Call) and (name := _name_of(node.func, known)) in _RISKY
    ]
    declared = {each for dependency in dependencies for each in _modules_of(dependency)}
    undeclared = {each for each in imports if each not in sys.stdlib_module_names and each.lower() not in declared}
    return Inspection(
        tuple(sorted(imports)), tuple(sorted(undeclared)), tuple(sorted(calls, key=lambda call: call.line))
    )


def check_installed(dependencies: tuple[str, ...], packages: tuple[str, ...] = ()) -> None:
    """Refuse dependencies that are not installed.

    Args:
        dependencies: packages, perhaps with versions.
        packages: directories that are searched before those of this interpreter.

    Raises:
        MissingPackage: one of them is not installed, or not in the version that it names with ``==``.
    """
    for each in dependencies:
        name = _project_of(each)
        try:
            found = _version_of(name, packages)
        except metadata.PackageNotFoundError:
            raise MissingPackage(
                f"the algorithm needs {each}, which is not installed here: pip install {each!r}", package=name
            ) from None
        _, has_version, wanted = each.partition("==")
        if has_version and wanted.partition(";")[0].strip() != found:
            raise MissingPackage(
                f"the algorithm needs {each}, and {found} is installed here: pip install {each!r}", package=name
            )


def _version_of(name: str, packages: tuple[str, ...]) -> str:
    """The installed version of a package.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    for each in metadata.distributions(name=name, path=list(packages)):
        return each.version
    return metadata.version(name)


def _name_of(node: ast.expr, known: dict[str, str]) -> str:
    """The full name of what is called, as far as the code's imports show it; else "" or the name itself."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (name := _name_of(node.value, known)):
        return f"{name}.{node.attr}".removeprefix("builtins.")
    return ""


def _imported_by_call(node: ast.Call) -> str:
    """The package that a call of ``__import__`` or ``import_module`` names by a literal; else ""."""
    function, first = node.func, node.args[0] if node.args else None
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called in ("__import__", "import_module") and isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value.partition(".")[0]
    return ""


def _modules_of(requirement: str) -> set[str]:
    """The names that the code may import from a declared package, in lower case."""
    name = _project_of(requirement)
    found = {name, *_OTHER_NAMES.get(name, ())}
    try:
        files = metadata.files(name) or ()
    except metadata.PackageNotFoundError:
        files = ()
    found.update(each.parts[0].removesuffix(".py").lower() for each in files if each.suffix == ".py")
    return found


def _project_of(requirement: str) -> str:
    """A requirement's package, normalised so that names can be compared."""
    name = requirement
    for mark in "=<>!~[;@ ":
        name = name.partition(mark)[0]
    return name.strip().lower().replace("-", "_").replace(".", "_")
