"""What users give that cannot be meant is refused at once, by name, with what to write instead."""

from __future__ import annotations

import copy
import math
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tr_mmap.errors import MissingPackage
from tr_mmap.sandbox import (
    Algorithm,
    AlgorithmError,
    Allow,
    DeadlineExceeded,
    Limits,
    Mount,
    NotAllowed,
    Sandbox,
    SandboxBroken,
)

ONE = Algorithm("one", b"output = 1", None)

MAKING: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "limits as a dictionary": (lambda: Sandbox(limits={"wall_ms": 1}), TypeError, r"limits is Limits\(\.\.\.\)"),  # type: ignore[arg-type]
    "grants as a dictionary": (lambda: Sandbox(allow={"net": True}), TypeError, r"allow is Allow\(\.\.\.\)"),  # type: ignore[arg-type]
    "a size as a text": (lambda: Limits(memory_nbytes="256M"), ValueError, "256 << 20"),  # type: ignore[arg-type]
    "a size as a float": (lambda: Limits(memory_nbytes=2.5e8), ValueError, "256 << 20"),  # type: ignore[arg-type]
    "several processes": (lambda: Limits(processes=2), ValueError, "processes=2.*submit several"),
    "a variable that is a number": (lambda: Allow(env={"A": 1}), ValueError, "'MODE': 'fast'"),  # type: ignore[dict-item]
    "a variable of no name": (lambda: Allow(env={"A=B": "1"}), ValueError, "'MODE': 'fast'"),
    "a variable of the loader": (
        lambda: Sandbox("native", allow=Allow(env={"LD_PRELOAD": "/a.so"})),
        ValueError,
        "LD_PRELOAD.*-rpath",
    ),
    "a variable of Python": (lambda: Sandbox(allow=Allow(env={"PYTHONPATH": "/a"})), ValueError, "PYTHONPATH is read"),
    "a mount as a pair": (lambda: Allow(mounts=(("/a", "/b"),)), ValueError, r"takes Mount\("),  # type: ignore[arg-type]
    "a path of bytes": (lambda: Allow(read=(b"/a",)), ValueError, "os.fsdecode"),  # type: ignore[arg-type]
    "a relative path": (lambda: Allow(read=("data",)), ValueError, "os.path.abspath"),
    "a path that is not there": (lambda: Sandbox(allow=Allow(read=("/nope",))), ValueError, "'/nope' is no directory"),
    "a mount of nothing": (lambda: Sandbox(allow=Allow(mounts=(Mount("/nope", "/in"),))), ValueError, "'/nope' is no"),
    "a layer that there is not": (lambda: Sandbox(required_layers=("landlok",)), ValueError, "landlok.*landlock"),
    "one layer as a text": (lambda: Sandbox(required_layers="seccomp"), ValueError, r"\('seccomp',\)"),
    "one module as a text": (lambda: Sandbox(preload="numpy"), ValueError, r"\('numpy',\)"),
    "a module that is not there": (lambda: Sandbox(preload=("no_module.x",)), MissingPackage, "'no_module.x'"),
    "a kind that is planned": (lambda: Sandbox("python-wasm"), ValueError, "not in this version.*'contained'"),
    "a network by number": (lambda: Allow(net=1), TypeError, r"Allow\(net=\.\.\.\) takes True or False"),  # type: ignore[arg-type]
    "a network by a text": (lambda: Allow(net="no"), TypeError, "takes True or False, and not 'no'"),  # type: ignore[arg-type]
    "a clock by a text": (lambda: Allow(clock="no"), TypeError, "clock"),  # type: ignore[arg-type]
    "random bytes by number": (lambda: Allow(random=0), TypeError, "random"),  # type: ignore[arg-type]
    "a mount that is read-only by a text": (lambda: Mount("/usr", "/in", readonly="no"), TypeError, "readonly"),  # type: ignore[arg-type]
    "variables as a list": (lambda: Allow(env=["A"]), TypeError, "'MODE': 'fast'"),  # type: ignore[arg-type]
    "a system call by number": (lambda: Allow(syscalls=(5,)), TypeError, "takes names, and not 5"),  # type: ignore[arg-type]
    "a module by number": (lambda: Sandbox(preload=(5,)), TypeError, "each of preload is a text, and 5"),  # type: ignore[arg-type]
    "workers as a text": (lambda: Sandbox(max_workers="4"), TypeError, "max_workers is a whole number"),  # type: ignore[arg-type]
    "no workers": (lambda: Sandbox(max_workers=0), ValueError, "nothing would ever run"),
    "no kind": (lambda: Sandbox("contaned"), ValueError, "no kind.*'contained'"),
}


@pytest.mark.parametrize("what", MAKING)
def test_a_mistake_when_a_sandbox_is_made(what: str) -> None:
    make, error, text = MAKING[what]
    with pytest.raises(error, match=text):
        make()


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


USING: dict[str, tuple[Callable[[Sandbox], object], type[Exception], str]] = {
    "a path that leads nowhere": (lambda box: box.register("x", Path("/x.py")), FileNotFoundError, "/x.py"),
    "a function for code": (lambda box: box.register("x", len), TypeError, "inspect.getsource"),  # type: ignore[arg-type]
    "a name that is none": (lambda box: box.register(3, "output = 1"), TypeError, "name is a text"),  # type: ignore[arg-type]
    "an unknown name": (lambda box: box.run("unknown"), KeyError, r"see register\(\)"),
    "inputs of no names": (lambda box: box.execute("output = 1", np.zeros(3)), TypeError, "inputs is a dictionary"),  # type: ignore[arg-type]
    "a number for a name": (lambda box: box.execute("output = 1", {3: 1}), TypeError, "3 is none"),  # type: ignore[dict-item]
    "a relative deadline": (
        lambda box: box.run(box.register("x", "output = 1"), deadline_s=time.monotonic() - 1),
        DeadlineExceeded,
        r"time\.monotonic\(\) \+",
    ),
    "a negative size": (lambda box: box.empty(-1), ValueError, r"\(-1,\)"),
    "half a size": (lambda box: box.empty(1.5), TypeError, "whole number.*1.5 is none"),  # type: ignore[arg-type]
    "half of the sizes": (lambda box: box.empty((2, "3")), TypeError, "whole number"),  # type: ignore[arg-type]
    "a deadline as a text": (lambda box: box.run(ONE, deadline_s="5"), TypeError, r"time\.monotonic\(\) \+"),  # type: ignore[arg-type]
    "no deadline at all": (lambda box: box.run(ONE, deadline_s=math.nan), ValueError, "nan is no time"),
    "a priority as a text": (lambda box: box.submit(ONE, priority="1"), TypeError, "priority is a whole"),  # type: ignore[arg-type]
    "no priority at all": (lambda box: box.submit(ONE, priority=math.nan), TypeError, "priority is a whole"),  # type: ignore[arg-type]
    "a list for an id": (lambda box: box.run(ONE, request_id=[]), TypeError, "request_id is a text"),  # type: ignore[arg-type]
    "a number for an id": (lambda box: box.run(ONE, request_id=5), TypeError, "request_id is a text"),  # type: ignore[arg-type]
    "a list to cancel": (lambda box: box.cancel([]), TypeError, "request_id is a text"),  # type: ignore[arg-type]
    "a number to call": (lambda box: box.call(ONE, 5), TypeError, "function is a text"),  # type: ignore[arg-type]
    "a number for the function": (lambda box: box.register("x", "output = 1", 5), TypeError, "function is a text"),  # type: ignore[arg-type]
    "a number for a digest": (lambda box: box.register("x", "output = 1", sha256=5), TypeError, "sha256 is a text"),  # type: ignore[arg-type]
    "half a pair for a name": (lambda box: box.execute("output = 1", {"\ud800": 1}), ValueError, "half a surrogate"),
    "half a pair for a function": (lambda box: box.call(ONE, "\ud800"), ValueError, "half a surrogate"),
    "half a pair for an output": (
        lambda box: box.register("x", "output = 1", outputs=("\ud800",)),
        ValueError,
        "half a surrogate",
    ),
    "one dependency as a text": (
        lambda box: box.register("x", "output = 1", dependencies="numpy"),
        ValueError,
        r"\('numpy',\)",
    ),
    "one output as a text": (lambda box: box.register("x", "output = 1", outputs="y"), ValueError, r"\('y',\)"),
    "a number for an output": (lambda box: box.register("x", "output = 1", outputs=(5,)), TypeError, "5 is none"),  # type: ignore[arg-type]
    "a copy of a sandbox": (copy.copy, TypeError, "cannot be copied"),
    "a loan of objects": (lambda box: box.empty(3, object), ValueError, "object"),
    "several functions": (lambda box: box.execute("def a(i): pass\ndef b(i): pass"), AlgorithmError, "a, b.*'process'"),
    "a function by async def": (lambda box: box.execute("async def process(i): pass"), AlgorithmError, "by def"),
    "a package that is missing": (
        lambda box: box.register("x", "output = 1", dependencies=("no-such-package>=2",)),
        MissingPackage,
        "no-such-package>=2.*pip install",
    ),
    "a package of another version": (
        lambda box: box.register("x", "output = 1", dependencies=("numpy==0.0.1",)),
        MissingPackage,
        f"numpy==0.0.1.*{np.__version__}",
    ),
    "a file in /tmp": (lambda box: box.execute("open('/tmp/x')"), AlgorithmError, r"its own.*Allow\(read="),
}


@pytest.mark.parametrize("what", USING)
def test_a_mistake_when_it_is_used(box: Sandbox, what: str) -> None:
    use, error, text = USING[what]
    with pytest.raises(error, match=text):
        use(box)


@pytest.mark.parametrize(
    "use",
    [
        lambda box: box.run(ONE),
        lambda box: box.submit(ONE),
        lambda box: box.register("one", "output = 1"),
        lambda box: box.unregister("one"),
        lambda box: box.set_limits(wall_ms=1),
        lambda box: box.empty(3),
        lambda box: box.__enter__(),
    ],
)
def test_a_sandbox_that_was_closed_says_so_whatever_is_asked_of_it(use: Callable[[Sandbox], object]) -> None:
    box = Sandbox()
    box.register("one", "output = 1")
    box.close()
    with pytest.raises(SandboxBroken, match="closed"):
        use(box)


def test_paths_may_be_paths(tmp_path: Path) -> None:
    assert Allow(read=(tmp_path,)).read == (str(tmp_path),)  # type: ignore[arg-type]
    assert Mount(tmp_path, "/data").host_path == str(tmp_path)  # type: ignore[arg-type]


DENIALS = {
    "open('/etc/shadow')": r"the rule 'read' refuses /etc/shadow: grant .*Allow\(read=",
    "import os; os.listdir('/')": r"the rule 'read' refuses /: grant",
    "open('x.txt', 'w')": r"the rule 'write' refuses x.txt: .*outputs",
    "import socket; socket.socket()": r"the rule 'net' refuses .*Allow\(net=True\)",
    "import urllib.request as u; u.urlopen('http://127.0.0.1')": r"the rule 'net' refuses .*Allow\(net=True\)",
    "import subprocess; subprocess.run(['ls'])": r"the rule 'processes' refuses subprocess.Popen: .*several runs",
}


@pytest.mark.parametrize("code", DENIALS)
def test_a_denial_names_its_rule_what_was_tried_and_what_to_do(box: Sandbox, code: str) -> None:
    with pytest.raises(NotAllowed, match=DENIALS[code]) as caught:
        box.execute(f"def process(inputs):\n    {code}")
    assert "line 2, in process" in caught.value.traceback


def test_dependencies_that_are_there_are_noted(box: Sandbox) -> None:
    dependencies = ("numpy>=1", f"numpy=={np.__version__}", "msgspec")
    assert box.register("x", "output = 1", dependencies=dependencies).dependencies == dependencies


@pytest.mark.parametrize("limit", ["memory_nbytes", "stack_nbytes", "output_nbytes", "disk_nbytes", "fuel"])
def test_a_limit_that_no_machine_could_have_is_refused(limit: str) -> None:
    for value in (1 << 63, 1 << 64, 10**30):
        with pytest.raises(ValueError, match=f"{limit}=.* at most"):
            Limits(**{limit: value})


def test_a_limit_for_which_there_are_no_addresses_is_one_error_that_says_so() -> None:
    most = 1 << 44
    with Sandbox(limits=Limits(memory_nbytes=most)) as box:
        assert box.execute("output = 1").outputs == {"output": 1}
    resource_limit = resource.getrlimit(resource.RLIMIT_AS)
    with Sandbox(limits=Limits(output_nbytes=most)) as box:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 44, resource_limit[1]))
        try:
            with pytest.raises(SandboxBroken, match="Cannot allocate memory"):
                box.execute("output = 1")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, resource_limit)


HOSTILE_EXCEPTIONS = {
    "no class": "class E(Exception):\n    __class__ = property(lambda self: 1 / 0)",
    "no attributes": "class E(Exception):\n    def __getattribute__(self, name): raise ZeroDivisionError(name)",
    "an error of the system without attributes": (
        "class E(OSError):\n    def __getattribute__(self, name): raise ZeroDivisionError(name)"
    ),
    "an exception that pretends": "class E(Exception):\n    __class__ = MemoryError",
    "no name": (
        "class Meta(type):\n    __name__ = property(lambda cls: 1 / 0)\nclass E(Exception, metaclass=Meta):\n    pass"
    ),
    "a text that is none": (
        "class T(str):\n    def __getitem__(self, _): raise ZeroDivisionError\n    encode = __getitem__\n"
        "class E(Exception):\n    def __str__(self): return T('odd')"
    ),
}


@pytest.mark.parametrize("what", HOSTILE_EXCEPTIONS)
def test_an_exception_that_cannot_be_examined_is_an_error_of_its_algorithm(box: Sandbox, what: str) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.execute(f"{HOSTILE_EXCEPTIONS[what]}\nraise E('on purpose')")
    assert caught.value.type == "E"
    assert "in <module>" in caught.value.traceback
