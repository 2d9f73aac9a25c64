"""Which form source has, calls without arguments and with results by name, and what inspect() finds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tr_mmap.sandbox import AlgorithmError, Limits, Sandbox


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(wall_ms=30_000)) as box:
        yield box


@pytest.mark.parametrize("setting", [
    "output = double(inputs['x'])",
    "if True:\n  output = double(inputs['x'])",
    "for output in [double(inputs['x'])]: pass",
    "output, rest = double(inputs['x']), 1",
    "(output := double(inputs['x']))",
])  # fmt: skip
def test_code_that_sets_output_may_have_one_function_to_help_it(box: Sandbox, setting: str) -> None:
    code = f"def double(x):\n  return 2 * x\n{setting}"
    algorithm = box.register("helped", code)
    assert algorithm.function is None
    assert box.run(algorithm, {"x": 4}).outputs == {"output": 8}


def test_the_only_function_is_called_where_nothing_sets_output(box: Sandbox) -> None:
    code = "def only(inputs):\n  output = inputs['x'] + 1\n  return output"
    assert box.run(box.register("x", code), {"x": 1}).outputs == {"output": 2}


@pytest.mark.parametrize("code", ["x = 1", "print('x')", "import numpy", "class A:\n  def f(self): pass"])
def test_code_that_can_never_give_a_result_is_refused(box: Sandbox, code: str) -> None:
    with pytest.raises(AlgorithmError, match="has no function, and sets no output: define") as caught:
        box.register("x", code)
    assert caught.value.type == "NameError"


@pytest.mark.parametrize("code", ["algo.py", "./algo.py", "/tmp/an algo.py\n", "algo.wasm"])
def test_a_text_that_is_a_path_is_refused_with_what_to_give(box: Sandbox, code: str) -> None:
    for use in (lambda: box.register("x", code), lambda: box.execute(code)):
        with pytest.raises(AlgorithmError, match=r"looks like the path of a file: give .*; in Python, Path\('"):
            use()


@pytest.mark.parametrize("code", ["exec('output = 1')", "globals()['output'] = 1", "from math import pi as output"])
def test_code_that_sets_output_in_a_hidden_way_is_registered(box: Sandbox, code: str) -> None:
    assert box.run(box.register("x", code)).outputs["output"] > 0


def test_functions_that_only_programs_call_need_no_output(box: Sandbox) -> None:
    algorithm = box.register("x", "def f(): return 1\ndef g(): return 2\n")
    assert box.call(algorithm, "g") == 2


def test_a_function_is_called_without_arguments_and_with_some(box: Sandbox) -> None:
    box.register("f", "def f(*arguments): return list(arguments)")
    assert box.call("f", "f") == []
    assert box.call("f", "f", 1, "a", None) == [1, "a", None]
    assert box.run("f", {"x": 1}).outputs == {"output": [{"x": 1}]}


def test_results_by_name_of_a_call_come_as_a_dictionary(box: Sandbox) -> None:
    box.register("f", "def f(x): return {'double': 2 * x, 'n': 3}")
    found = box.call("f", "f", np.ones(2))
    assert found.keys() == {"double", "n"}
    assert found["double"].tolist() == [2, 2]


def test_source_is_given_by_the_path_of_its_file_too(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "double.py").write_text("def process(inputs): return inputs['x'] * 2")
    assert box.run(box.register("double", tmp_path / "double.py"), {"x": 4}).outputs == {"output": 8}
    assert box.execute(tmp_path / "double.py", {"x": 5}).outputs == {"output": 10}


def test_what_was_printed_before_an_error_is_told(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.execute("print('before')\nraise ValueError('x')")
    assert caught.value.stdout == "before\n"


def test_inspect_lists_imports_and_those_that_were_not_declared(box: Sandbox) -> None:
    code = "import os, numpy as np, sklearn.linear_model\nfrom humanize import intcomma\n"
    code += "__import__('yaml')\nimport a.b as c"
    found = box.inspect(code, ["numpy>=2", "scikit-learn[all]==1.5", "humanize == 4.17.0", "PyYAML"])
    assert found.imports == ("a", "humanize", "numpy", "os", "sklearn", "yaml")
    assert found.undeclared == ("a",)
    assert box.inspect(code).undeclared == ("a", "humanize", "numpy", "sklearn", "yaml")


def test_inspect_finds_risky_calls_by_whatever_name_they_were_imported(box: Sandbox) -> None:
    code = "\n".join([
        "import os, subprocess as sp, builtins", "from os import system as run", "eval('1')", "os.system('x')",
        "run('x')", "sp.run([])", "builtins.exec('x')", "import torch", "torch.load('x')", "print(len('x'))",
    ])  # fmt: skip
    assert [(each.name, each.line) for each in box.inspect(code).risky_calls] == [
        ("eval", 3), ("os.system", 4), ("os.system", 5), ("subprocess.run", 6), ("exec", 7), ("torch.load", 9),
    ]  # fmt: skip


def test_inspect_executes_nothing_and_refuses_what_is_no_python(box: Sandbox, tmp_path: Path) -> None:
    box.inspect(f"open({str(tmp_path / 'made')!r}, 'w')\n1 / 0")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SyntaxError):
        box.inspect("def (")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("-" * 100_000 + "1", "nested too deeply"),
        ("1" + "+1" * 200_000, "nested too deeply"),
        ("a" + "()" * 60_000, "nested too deeply"),
        ("x = '\ud800'", "characters that are none"),
        ("1,\n" * 400_000, "1200000 characters"),
    ],
    ids=["unary", "binary", "calls", "surrogate", "long"],
)
def test_inspect_names_what_its_parser_does_not_take(box: Sandbox, code: str, why: str) -> None:
    with pytest.raises(AlgorithmError, match=why):
        box.inspect(code)


INSPECT = """
import sys, threading
from tr_mmap.sandbox import AlgorithmError
from tr_mmap.sandbox.inspection import inspect
sys.setrecursionlimit(int(sys.argv[1]))
threading.stack_size(int(sys.argv[2]))
def look():
    for code in ("x=" + "-" * 2900 + "1", "x=" + "+".join("1" * 200_000), "x" + ".a" * 200_000, "not " * 200_000 + "1"):
        try:
            inspect(code)
        except AlgorithmError:
            pass
    print(threading.stack_size() == int(sys.argv[2]))
thread = threading.Thread(target=look)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(("limit", "stack_nbytes"), [(1000, 128 << 10), (100_000, 0)])
def test_source_however_nested_ends_no_host_whatever_its_recursion_limit_and_stack(
    limit: int, stack_nbytes: int
) -> None:
    command = [sys.executable, "-c", INSPECT, str(limit), str(stack_nbytes)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr
