"""The default worker: ``python -m tr_mmap.worker SESSION_ID``, or this file with that argument.

``PythonSession()`` runs the file, with ``-P``. Then neither the current directory nor ``PYTHONPATH`` decides which code
the worker runs: it is the package that this file is in, the standard library, and the installed packages.
"""

import gc
import os
import sys


def find_packages() -> None:
    """Make ``tr_mmap`` the package that this file is in, whatever else on the path has that name; find the others."""
    if not __package__:
        _load_own_package()
    _find_dependencies()


def _load_own_package() -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    worker_dir = os.path.dirname(__file__)
    package_dir = os.path.dirname(worker_dir)
    sys.path[:] = [
        place for place in sys.path if place not in (worker_dir, os.path.realpath(worker_dir))
    ]  # without -P, Python puts it there
    if getattr(sys.modules.get("tr_mmap"), "__path__", None) == [package_dir]:  # this process was a spare
        return
    spec = spec_from_file_location(
        "tr_mmap", os.path.join(package_dir, "__init__.py"), submodule_search_locations=[package_dir]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["tr_mmap"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


def _find_dependencies() -> None:
    """Look for packages also where the controller found them, but after the standard library and all other places."""
    from tr_mmap.wire.names import PACKAGES_VARIABLE

    for place in os.environ.pop(PACKAGES_VARIABLE, "").split(os.pathsep):
        if place and place not in sys.path:
            sys.path.append(place)


if __name__ == "__main__":
    find_packages()
    gc.disable()
    from tr_mmap.worker.default import server

    gc.freeze()  # what was imported stays: else each full collection, and the process's end, would look through it
    gc.enable()
    server.run()
