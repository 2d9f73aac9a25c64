"""``tr-mmap sandbox``: what it reads, what it prints for persons and for programs, how it ends."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ROOT
from typer.testing import CliRunner

import tr_mmap
from tr_mmap.cli import app
from tr_mmap.cli.sandbox_arguments import WrongArgument, write_outputs
from tr_mmap.sandbox import diagnosis

WASM = ROOT / "examples" / "wasm"
DOUBLE = "def double(inputs):\n    print('doubling')\n    return {'y': inputs['x'] * inputs.get('n', 2)}\n"


def run(*arguments: object, text: str = "") -> Any:
    """Run the command here; its processes are real ones."""
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}).invoke(
        app, ["sandbox", *map(str, arguments)], input=text
    )


def run_json(*arguments: object, status: int = 0) -> dict[str, Any]:
    ended = run("run", "--json", *arguments)
    assert ended.exit_code == status, ended.stderr
    assert ended.stderr == ""
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with some files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "double.py").write_text(DOUBLE)
    (tmp_path / "echo.py").write_text("output = dict(inputs)")
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    return tmp_path


# -- what it reads ----------------------------------------------------------------------------------------------------


def test_an_algorithm_runs_on_a_file_within_its_limits(place: Path) -> None:
    ended = run("run", "double.py", "--input", "x=a.npy", "--limit", "memory=256M")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout == "doubling\ny: float64 2×3\n[[ 0.  2.  4.]\n [ 6.  8. 10.]]\n"
    assert ended.stderr.startswith("(contained, ")


def test_an_input_is_a_value_of_json_or_else_a_text(place: Path) -> None:
    texts = {
        "3": 3, "-0.5": -0.5, "[1, {}]": [1, {}], "null": None, "true": True, '"3"': "3", "to be": "to be", "": "",
    }  # fmt: skip
    inputs = [each for number, text in enumerate(texts) for each in ("--input", f"y{number}={text}")]
    found = run_json("echo.py", *inputs)["values"]
    assert found == {f"y{number}": value for number, value in enumerate(texts.values())}


def test_a_text_comes_from_the_standard_input(place: Path) -> None:
    ended = run("run", "echo.py", "-i", "y=-", text="3 lines\n")
    assert ended.stdout == "y: 3 lines\n\n"


def write_safetensors(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    names = {"float32": "F32", "int64": "I64", "bool": "BOOL"}
    header, end = {"__metadata__": {"by": "a test"}}, 0
    for name, each in arrays.items():
        header[name] = {  # type: ignore[assignment]
            "dtype": names[each.dtype.name],
            "shape": each.shape,
            "data_offsets": [end, end := end + each.nbytes],
        }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(each.tobytes() for each in arrays.values()))


def test_tensors_come_from_every_kind_of_file(place: Path) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    tr_mmap.save(place / "a.tsr", a)
    write_safetensors(place / "one.safetensors", a=a)
    write_safetensors(place / "two.safetensors", mask=a > 2, big=np.array([1 << 60]))
    found = run_json(
        "echo.py", "-i", "t=a.tsr", "-i", "n=a.npy", "-i", "s=one.safetensors", "-i", "b=two.safetensors:big",
        "-i", "m=two.safetensors:mask",
    )["tensors"]  # fmt: skip
    assert found["t"] == found["s"] == {"dtype": "float32", "shape": [2, 3], "data": a.tolist()}
    assert found["n"]["dtype"] == "float64"
    assert found["b"] == {"dtype": "int64", "shape": [1], "data": [1 << 60]}
    assert found["m"]["data"] == (a > 2).tolist()


def test_arguments_go_to_a_function_and_texts_to_a_command(place: Path) -> None:
    (place / "two.py").write_text("def add(a, b): return a + b\ndef other(): pass")
    assert run_json("two.py", "--function", "add", "--arg", 2, "--arg", "a.npy")["tensors"]["output"]["data"] == [
        [2, 3, 4],
        [5, 6, 7],
    ]
    assert run("run", WASM / "words.wasm", "--input", "stdin=to be or not").stdout == "4 words\n"
    ended = run("run", WASM / "words.wasm", "--arg", place / "two.py", "--allow-read", ".")
    assert ended.stdout == "10 words\n"


def test_grants_and_variables_are_passed_on(place: Path) -> None:
    (place / "read.py").write_text("import os\noutput = [open(inputs['path']).read(), os.environ['MODE']]")
    (place / "text").write_text("granted")
    ended = run("run", "read.py", "--input", f"path={place}/text")
    assert ended.exit_code == 2  # it is a file, and is it meant to be one?
    arguments = ("read.py", "--input", f'path="{place}/text"', "--env", "MODE=a=b")
    assert run_json(*arguments, "--allow-read", "text")["values"]["output"] == ["granted", "a=b"]
    assert run("run", *arguments).exit_code != 0


# -- what it writes ---------------------------------------------------------------------------------------------------


def test_results_are_written_into_a_directory_or_into_files(place: Path) -> None:
    (place / "many.py").write_text(
        "import numpy as np, ml_dtypes\n"
        "output = {'y': np.ones(3), 'b': np.ones(2, ml_dtypes.bfloat16), 'n': {'k': 'ü'}, 'other': np.zeros(1)}"
    )
    ended = run("run", "many.py", "-o", "out/deep", "-o", "other=z.tsr")
    assert ended.exit_code == 0, ended.stderr
    assert np.load(place / "out/deep/y.npy").tolist() == [1, 1, 1]
    assert tr_mmap.load(place / "out/deep/b.tsr").dtype.name == "bfloat16"
    assert json.loads((place / "out/deep/n.json").read_text()) == {"k": "ü"}
    assert tr_mmap.load(place / "z.tsr").tolist() == [0]
    assert "y: float64 3, written to out/deep/y.npy\n" in ended.stdout
    found = run_json("many.py", "-o", "y=y.npy")
    assert found["tensors"]["y"] == {"dtype": "float64", "shape": [3], "file": "y.npy"}
    assert found["tensors"]["b"]["data"] == [1, 1]


def test_a_result_s_name_leads_to_no_file_elsewhere(place: Path) -> None:
    for name in ("../x", "/tmp/x", "", ".x", "a/b", "a\nb", "x" * 101, "\0"):
        with pytest.raises(WrongArgument, match="--output NAME=FILE"):
            write_outputs({name: 1, "good": 2}, {"": place / "out"})
    (place / "evil.py").write_text("output = {'../x': 1, 'good': 2}")
    ended = run("run", "evil.py", "--output", "out")
    assert ended.exit_code == 2
    assert "--output NAME=FILE" in ended.stderr
    assert not (place / "out").exists()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_name_that_the_algorithm_chose_replaces_no_file(place: Path, is_link: bool) -> None:
    (place / "mine.json").write_text('{"mine": 1}')
    if is_link:
        (place / "mine.json").rename(place / "elsewhere")
        (place / "mine.json").symlink_to("elsewhere")
    (place / "evil.py").write_text("output = {'good': 1, 'mine': {'scripts': 'evil'}}")
    ended = run("run", "evil.py", "--output", ".")
    assert ended.exit_code == 2
    assert "mine.json is there already" in ended.stderr
    assert (place / "mine.json").read_text() == '{"mine": 1}'
    assert not (place / "good.json").exists()
    ended = run("run", "evil.py", "--output", ".", "--output", "mine=mine.json")  # the user names it
    assert ended.exit_code == 0, ended.stderr
    assert "evil" in (place / "mine.json").read_text()


def test_what_an_algorithm_says_gives_a_terminal_no_commands(place: Path) -> None:
    evil = "\\x1b[2J\\x9b\\u202e\\r"
    (place / "evil.py").write_text(f'print("{evil}a")\noutput = {{"{evil}b": "{evil}c", "d": ["{evil}"]}}')
    (place / "raises.py").write_text(
        f'class E(Exception): pass\nE.__name__ = "{evil}"\nraise E("{evil}d\\ne")\noutput = 1'
    )
    for arguments in (["evil.py"], ["raises.py"], ["raises.py", "--traceback"], ["evil.py", "--json"]):
        ended = run("run", *arguments)
        shown = ended.stdout + ended.stderr
        assert not [each for each in shown if not each.isprintable() and each != "\n"]
        assert "\\x1b[2J" in shown or "\\u001b[2J" in shown
    assert len(run("run", "raises.py").stderr.splitlines()) == 1


def test_json_is_json_whatever_the_numbers_are(place: Path) -> None:
    (place / "odd.py").write_text(
        "import numpy as np\noutput = {'f': np.array([np.nan, np.inf, -np.inf, 1]), 'c': np.array([1 + 2j]), "
        "'b': np.array(True), 'e': np.zeros((0, 2))}"
    )
    ended = run("run", "odd.py", "--json")
    found = json.loads(ended.stdout, parse_constant=lambda name: pytest.fail(name))["tensors"]
    assert found["f"]["data"] == ["NaN", "Infinity", "-Infinity", 1]
    assert found["c"]["data"] == [[1, 2]]
    assert (found["b"]["data"], found["e"]["data"]) == (True, [])


# -- how it ends ------------------------------------------------------------------------------------------------------

ENDS = {
    "the algorithm raises": (1, "raise ValueError('no good')\noutput = 1", "ValueError: no good (line 1, in <module>"),
    "an error of syntax": (1, "x = [1\ndef f(:", "SyntaxError: invalid syntax (line 2)"),
    "no result": (1, "x = 1", "NameError: the code has no function, and sets no output"),
    "no result of several functions": (1, "def f(): pass\ndef g(): pass", "NameError: the code sets no output"),
    "memory": (
        3,
        "output = bytearray(1 << 30)",
        "more than memory=64M; if it may have more, raise it, say --limit memory=128M",
    ),
    "time": (3, "while True: output = 0", "more than wall=500ms; if it may have more, raise it, say --limit wall=1s"),
    "a file": (
        4,
        "output = open('/etc/shadow')",
        "not allowed (read): /etc/shadow; grant it with --allow-read /etc/shadow",
    ),
    "a socket": (4, "import socket; output = socket.socket()", "or grant --allow-net"),
    "a process": (4, "import os; output = os.fork()", "an algorithm is one process"),
}


@pytest.mark.parametrize("what", ENDS)
def test_an_error_is_one_line_and_a_status_of_its_own(place: Path, what: str) -> None:
    status, code, text = ENDS[what]
    (place / "it.py").write_text(code)
    limits = ("--limit", "memory=64M", "--limit", "wall=0.5s")
    ended = run("run", "it.py", *limits)
    assert ended.exit_code == status, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tr-mmap: ")
    assert text in line
    assert ended.stdout == ""


def test_an_error_is_json_for_programs_and_has_its_frames_for_persons_who_ask(place: Path) -> None:
    (place / "it.py").write_text("def f():\n    raise ValueError('no good')\nf()")
    assert run_json("it.py", status=1)["error"] == {
        "kind": "AlgorithmError",
        "message": "ValueError: no good",
        "exit_status": 1,
        "type": "ValueError",
        "stdout": "",
        "traceback": run("run", "it.py", "--traceback").stderr.rpartition("tr-mmap: ")[0],
    }


WRONG = {
    "no such file": (["nope.py"], "nope.py cannot be read"),
    "an ending of no kind": (["a.npy"], "--kind"),
    "no such kind": (["double.py", "--kind", "x"], "'contained'"),
    "an input that is not there": (["double.py", "--input", "x=b.npy"], "b.npy cannot be read"),
    "an input without a name": (["double.py", "--input", "a.npy"], "write for example --input x=a.npy"),
    "an input twice": (["double.py", "--input", "x=1", "--input", "x=2"], "twice"),
    "no JSON": (["double.py", "--input", "x=[1,"], "no JSON"),
    "a file of no known ending": (["double.py", "--input", "x=double.py"], ".safetensors"),
    "no array": (["double.py", "--input", "x=bad.npy"], "bad.npy is no .npy file"),
    "no safetensors": (["double.py", "--input", "x=bad.safetensors"], "bad.safetensors is no .safetensors file"),
    "objects in an array": (["double.py", "--input", "x=objects.npy"], "objects.npy"),
    "a number that is too large": (["double.py", "--input", f"x={1 << 70}"], "64 bits"),
    "no such limit": (["double.py", "--limit", "ram=1M"], "memory, wall"),
    "no size": (["double.py", "--limit", "memory=much"], "memory=256M"),
    "no time": (["double.py", "--limit", "wall=5M5"], "wall=5s"),
    "a unit where none is": (["double.py", "--limit", "threads=5M"], "threads=4"),
    "half a byte": (["double.py", "--limit", "memory=0.5"], "memory=256M"),
    "a limit of nothing": (["double.py", "--limit", "wall=0"], "above 0"),
    "a limit of another kind": (["double.py", "--limit", "fuel=10"], "wasm"),
    "no such result": (["echo.py", "--output", "z=z.npy"], "the results are none"),
    "an ending that is not written": (["echo.py", "--output", "z=z.csv"], ".npy, .tsr or .json"),
    "too much to grant": (["double.py", "--allow-read", "/etc"], "too much"),
    "no such system call": (["double.py", "--allow-syscall", "x"], "named x"),
    "no such layer": (["double.py", "--require", "x"], "landlock"),
    "arguments and inputs": (["double.py", "--arg", "1", "--input", "x=1"], "either"),
    "arguments of no function": (["echo.py", "--arg", "1"], "--function"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_argument_that_is_wrong_is_one_line_that_says_what_to_write(place: Path, what: str) -> None:
    (place / "bad.npy").write_bytes(b"x" * 100)
    (place / "bad.safetensors").write_bytes(b"x" * 100)
    np.save(place / "objects.npy", np.array([{}], object), allow_pickle=True)
    arguments, text = WRONG[what]
    ended = run("run", *arguments)
    assert ended.exit_code == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert text in line
    assert ended.stdout == ""


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"3", b"null", b'{"x": 1}', b'{"x": []}', b'{"x": {}}', b'{"x": {"dtype": "F32", "shape": [1]}}',
        b'{"x": {"dtype": "F32", "data_offsets": [0, 4]}}', b'{"x": {"shape": [1], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": {}, "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": null}}',
        b'{"x": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}}' % (1 << 80, (1 << 80) + 4),
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_whose_header_is_none_is_one_line_that_says_so(place: Path, header: bytes) -> None:
    (place / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    ended = run("run", "double.py", "--input", "x=x.safetensors")
    assert ended.exit_code == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "x.safetensors is no .safetensors file" in line


def test_a_missing_package_is_a_status_of_its_own(place: Path) -> None:
    ended = run("run", "double.py", "--preload", "no_such_module")
    assert (ended.exit_code, ended.stdout) == (5, "")
    assert "no_such_module" in ended.stderr


# -- doctor, help -----------------------------------------------------------------------------------------------------


def test_doctor_says_what_is_active_and_which_kinds_work_also_in_plain_text_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, found = diagnosis.diagnose, []
    monkeypatch.setattr(diagnosis, "diagnose", lambda: found.append(real()) or found[0])
    ended = run("doctor")
    assert ended.exit_code == 0, ended.stdout
    for text in ("landlock", "active", "contained", "works", "python-wasm", "Algorithms of the default kind run here."):
        assert text in ended.stdout
    assert all(len(line) <= 80 for line in ended.stdout.splitlines())
    program = (
        "import pickle, sys\nfor name in ('rich', 'rich.console', 'rich.table'): sys.modules[name] = None\n"
        "from tr_mmap.cli.sandbox_screens import show_diagnosis\n"
        "show_diagnosis(pickle.load(sys.stdin.buffer), is_json=False)"
    )
    plain = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(found[0]),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert b"  contained" in plain.stdout
    assert b"\x1b" not in plain.stdout


def test_doctor_without_the_extension_names_the_compiler_and_shows_no_traceback() -> None:
    program = (
        "import sys\nfor name in ('_kernel', '_arena'): sys.modules['tr_mmap.sandbox.' + name] = None\n"
        "sys.modules['torch'] = None\n"  # whose kind would only take its time here
        "sys.argv = ['tr-mmap', 'sandbox', 'doctor']\nfrom tr_mmap.cli import main\nmain()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert "installed without a C compiler" in ended.stdout
    assert "Algorithms of the default kind do not run here" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_help_imports_neither_numpy_nor_the_sandbox() -> None:
    program = (
        "import sys\nfrom tr_mmap.cli import app\n"
        "for arguments in (['--help'], ['sandbox', 'run', '--help'], ['--version']):\n"
        "    app(arguments, standalone_mode=False)\n"
        "print(sorted({'numpy', 'msgspec', 'tr_mmap.sandbox', 'tr_mmap.cpp', 'tr_mmap.tsr'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
