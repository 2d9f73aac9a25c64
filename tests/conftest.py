"""Every test has a workspace of its own and fails if it leaves anything there: files, semaphores, processes.

Sessions that many tests share live for the whole run, in workspaces of their own that are checked at the end.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib.util
import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from support import TOOLS, TORCH_TOOLS, Gate, empty_place, share_with_this_run

from tr_mmap import PythonSession

settings.register_profile("tests", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("tests")

HAS_TORCH = importlib.util.find_spec("torch") is not None
TESTS = Path(__file__).parent
WITHOUT_TORCH = "NOT TESTED: what needs torch, which is not installed"

# What surrounds the library. These take a third of the time of all tests, so by default a run of all leaves them out.
DOCUMENTS = [f"docs/test_{each}.py" for each in ("examples", "pages", "site", "tutorial")]
OUTER = ("cpp/", "escapes/", "packaging/", "recipes/", "tools/", *DOCUMENTS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="tests marked long at their full length: an hour in all")


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets what it starts with "&" ignore these, and children inherit that.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if hasattr(config, "workerinput"):  # one of several processes that share the tests, with a thread for its orders
        config.addinivalue_line("filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning")


class _NeedsTorch(pytest.Module):
    """A file that imports torch, which is not installed."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        pytest.skip(WITHOUT_TORCH, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if HAS_TORCH or not re.search(r"^(import|from) torch\b", module_path.read_text(), re.MULTILINE):
        return None
    return _NeedsTorch.from_parent(parent, path=module_path)


def _needs_torch(item: pytest.Item) -> bool:
    """Whether a test names it, or the function that maps files for it: in its text, its parameters or its fixtures."""
    assert isinstance(item, pytest.Function)
    text = " ".join((item.nodeid, inspect.getsource(inspect.unwrap(item.function)), *item.fixturenames))
    return "torch" in text or "from_file" in text


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not HAS_TORCH:
        for each in filter(_needs_torch, items):
            each.add_marker(pytest.mark.skip(WITHOUT_TORCH))
    for each in items:
        if str(each.path.relative_to(TESTS)).startswith(OUTER):
            each.add_marker(pytest.mark.outer)
    if not config.getoption("--full"):
        short = _with_each_value([each for each in items if not each.get_closest_marker("full_only")])
        if len(short) < len(items):
            kept = set(short)
            config.hook.pytest_deselected(items=[each for each in items if each not in kept])
            items[:] = short


def _with_each_value(items: list[pytest.Item]) -> list[pytest.Item]:
    """Leave out combinations of parameters of the tests that are marked so, as long as each value is still in one."""
    combinations: dict[str, dict[pytest.Item, set[tuple[str, int]]]] = {}
    for each in items:
        if each.get_closest_marker("each_value"):
            assert isinstance(each, pytest.Function)
            values = {(name, id(value)) for name, value in each.callspec.params.items()}
            combinations.setdefault(each.nodeid.partition("[")[0], {})[each] = values
    chosen: set[pytest.Item] = set()
    for values_of in combinations.values():
        missing = set().union(*values_of.values())
        while missing:
            best = max(values_of, key=lambda each: len(values_of[each] & missing))
            chosen.add(best)
            missing -= values_of[best]
    return [each for each in items if each in chosen or not each.get_closest_marker("each_value")]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What was collected stays: else each collection of garbage would look through these half a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What long tests have counted, and what could not be tested here."""
    reports = [each for outcome in ("passed", "failed") for each in terminalreporter.getreports(outcome)]
    figures = [str(text) for report in reports for name, text in report.user_properties if name == "figures"]
    if figures:
        terminalreporter.section("figures")
        for each in figures:
            terminalreporter.write_line(each)
    reasons = [str(report.longrepr[2]) for report in terminalreporter.getreports("skipped")]
    for reason in sorted({reason for reason in reasons if "NOT TESTED" in reason}):
        terminalreporter.write_sep("*", reason.removeprefix("Skipped: "), red=True, bold=True)


_GRACE_S = 120  # for a test beyond its limit, to end what it has started


def _arm_watchdog(item: pytest.Item) -> None:
    """End this process when an exception at the limit does not end the test: a thread, or the test's end, may hang.

    All threads are shown then, and another process goes on with the tests that are left.
    """
    mark = item.get_closest_marker("timeout")
    limit_s = float(mark.args[0] if mark else item.config.getini("timeout"))
    faulthandler.cancel_dump_traceback_later()
    if limit_s:
        faulthandler.dump_traceback_later(limit_s + _GRACE_S, file=sys.__stderr__, exit=True)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    _arm_watchdog(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    if isinstance(node, pytest.Item):
        _arm_watchdog(node)  # pytest has ended it


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[object]:
    """A child that a test has forked, and that comes out of the test, would go on with all others."""
    pid = os.getpid()
    try:
        return (yield)
    finally:
        if os.getpid() != pid:
            print(f"A child of this test came out of it: {sys.exc_info()[1]!r}", file=sys.__stderr__, flush=True)
            os._exit(70)


@pytest.fixture
def is_full(pytestconfig: pytest.Config) -> bool:
    """Whether a test marked long is to be as long as was promised; else it is short."""
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes what a long test has counted; shown at the end of the run."""

    def take(text: str) -> None:
        shown = f"{request.node.name}\n    " + text.strip().replace("\n", "\n    ")
        request.node.user_properties.append(("figures", shown))  # which reach the process that shows them

    return take


@pytest.fixture(scope="session", autouse=True)
def _place_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    share_with_this_run(tmp_path_factory)


@pytest.fixture(autouse=True)
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's sessions live."""
    with empty_place() as path:
        monkeypatch.setenv("TR_WORKSPACE", str(path))
        yield path


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


@contextmanager
def _shared(script: Path, channel: str) -> Iterator[PythonSession]:
    with empty_place(is_shared=True) as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(path))
        with PythonSession(script, quiet_mode=True, channel=channel) as session:
            patch.undo()
            yield session


@pytest.fixture(scope="session")
def shared_mapped() -> Iterator[PythonSession]:
    with _shared(TOOLS, "mapped") as session:
        yield session


@pytest.fixture(scope="session")
def shared_files() -> Iterator[PythonSession]:
    with _shared(TOOLS, "files") as session:
        yield session


@pytest.fixture(scope="session")
def torch_session() -> Iterator[PythonSession]:
    """A session whose worker gets torch tensors; the session itself gives numpy."""
    with _shared(TORCH_TOOLS, "mapped") as session:
        yield session


def _revive(session: PythonSession) -> None:
    """One failing test is not to fail the others."""
    if not session.is_alive():
        session.start()
        session.wait_until_ready()


def _check_usable(session: PythonSession) -> None:
    """Whatever a test did, the session goes on."""
    assert session.is_alive()
    assert session.fetch_response("hello again") == "Hello Again"
    assert not session.new_response()


@pytest.fixture
def own() -> Iterator[PythonSession]:
    """A session of the test's own, to be ruined."""
    with PythonSession(TOOLS, "own", quiet_mode=True) as session:
        yield session


@pytest.fixture
def mapped(shared_mapped: PythonSession) -> Iterator[PythonSession]:
    """A shared session with the default channel, which must be usable after the test."""
    _revive(shared_mapped)
    yield shared_mapped
    _check_usable(shared_mapped)


@pytest.fixture(params=["mapped", "files"])
def session(request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    """A shared session over each channel, which must be usable after the test."""
    shared: PythonSession = request.getfixturevalue(f"shared_{request.param}")
    _revive(shared)
    yield shared
    _check_usable(shared)
