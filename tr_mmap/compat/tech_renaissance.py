"""The original framework's module, by tr_mmap. Where the original is installed, it is the original.

This file is in two places: in this room, which a ``PythonSession`` puts on its worker's path, and at the top level, for
a worker that anybody else starts. Python takes the first module of the name that it finds. If there is another one
further along its path, this one puts that in its own place.
"""

# This line tells our copies of the module from the original.
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import Any


def _is_ours(spec: Any) -> bool:
    """Whether a module is a copy of this one, of this source tree or of an installed tr_mmap."""
    get_source = getattr(spec.loader, "get_source", None)
    try:
        source = get_source(spec.name) if get_source else None
    except (ImportError, SyntaxError, OSError):  # it has no source, or none that can be read
        return False
    return source is not None and "# This line tells our copies of the module from the original" in source


def _originals() -> Iterator[Any]:
    """Every other module of the name, in the order in which Python would find them."""
    for finder in list(sys.meta_path):
        if finder is PathFinder:
            found = [PathFinder.find_spec(__name__, [place]) for place in list(sys.path)]
        elif hasattr(finder, "find_spec"):  # that of a package that was installed to be edited, say
            found = [finder.find_spec(__name__, None)]
        else:
            continue
        # A folder without __init__.py has no loader, or one that runs nothing: C++ headers may lie in it.
        yield from (each for each in found if each is not None and each.origin is not None and each.loader is not None)


def _take_place(spec: Any) -> None:
    """Run another module as the one of this name. Whoever imports the name gets it."""
    module = importlib.util.module_from_spec(spec)
    sys.modules[__name__] = module
    spec.loader.exec_module(module)  # if that raises, importlib forgets the name, and the import raises it


_original = None
if __name__ == "tech_renaissance":  # else it is imported as a module of this room
    _original = next((each for each in _originals() if not _is_ours(each)), None)
if _original is not None:
    _take_place(_original)
else:
    from tr_mmap.compat.names import __all__, __dir__, __getattr__  # noqa: F401 - what a module is asked for
