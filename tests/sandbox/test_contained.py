"""What algorithms in contained processes get and give, what they are granted, and the limits that they keep."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import grandchildren

from tr_mmap.sandbox import AlgorithmError, Allow, LimitExceeded, Limits, Mount, NotAllowed, Sandbox


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(wall_ms=30_000)) as box:
        yield box


# -- values -----------------------------------------------------------------------------------------------------------

NO_JSON = {
    "a set": "{1, 2}",
    "not a number": "float('nan')",
    "infinity": "-float('inf')",
    "an int beyond 64 bits": "1 << 64",
    "bytes": "b'x'",
    "a complex number": "1j",
    "an object": "object()",
    "a tensor in a list": "[1, __import__('numpy').zeros(3)]",
    "a tensor in a dictionary": "{'a': {'b': __import__('numpy').zeros(3)}}",
    "a set deep inside": "{'a': [0, {'b': {1}}]}",
    "a number as a key": "{'a': {1: 2}}",
    "half a surrogate pair": "'\\ud800'",
    "a list that contains itself": "(lambda a: a.append(a) or a)([])",
    "a date": "__import__('datetime').date(2026, 1, 1)",
    "a dataclass": "__import__('dataclasses').make_dataclass('A', ['x'])(1)",
}


@pytest.mark.parametrize("what", NO_JSON)
def test_a_value_that_json_lacks_is_an_error_by_name(box: Sandbox, what: str) -> None:
    with pytest.raises(AlgorithmError, match="result 'y'") as caught:
        box.execute(f"output = {{'y': {NO_JSON[what]}}}")
    assert caught.value.type in ("TypeError", "ValueError")
    with pytest.raises((TypeError, ValueError), match="input 'y'"):
        box.execute("output = 1", {"y": eval(NO_JSON[what])})


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(1 << 63),
        (1 << 64) - 1,
        0.1,
        -0.0,
        "",
        "ü\U0001f600\0",
        [],
        {},
        [[{"a": [None]}]],
        {"": {"": 1}},
    ],
)
def test_a_value_of_json_goes_in_and_out_as_it_is(box: Sandbox, value: object) -> None:
    found = (
        box.execute("output = inputs['y']", {"y": value}).outputs["output" if not isinstance(value, dict) else ""]
        if value == {"": {"": 1}}
        else box.execute("output = {'y': inputs['y']}", {"y": value}).outputs["y"]
    )
    expected = value[""] if value == {"": {"": 1}} else value
    assert found == expected
    assert type(found) is type(expected)


def test_numbers_of_numpy_within_values_become_those_of_python(box: Sandbox) -> None:
    code = "import numpy as np; output = {'y': [np.int64(3), np.float32(0.5), np.bool_(True)], 'z': (1, 2)}"
    assert box.execute(code).outputs == {"y": [3, 0.5, True], "z": [1, 2]}


# -- Python algorithms ------------------------------------------------------------------------------------------------


def test_both_forms_of_an_algorithm(box: Sandbox) -> None:
    x = np.arange(6.0).reshape(2, 3)
    for code in ("def process(inputs):\n    return {'y': inputs['x'].T}", "output = {'y': inputs['x'].T}"):
        y = box.run(box.register("form", code), {"x": x}).outputs["y"]
        assert np.array_equal(y, x.T)
        assert not y.flags.writeable


def test_inputs_are_read_only_arrays_of_their_own_type(box: Sandbox) -> None:
    code = "output = {n: [str(a.dtype), list(a.shape), a.flags.writeable] for n, a in inputs.items()}"
    inputs = {
        "a": np.zeros((2, 0, 3), np.float16),
        "b": np.array(7, ">i4"),
        "c": np.arange(24, dtype=np.int16).reshape(2, 3, 4)[:, ::-1, ::2],
    }
    found = box.execute(code, inputs).outputs
    assert found["a"] == ["float16", [2, 0, 3], False]
    assert found["b"] == ["int32", [], False]
    assert found["c"] == ["int16", [2, 3, 2], False]
    same = box.execute("output = dict(inputs)", inputs).outputs
    assert all(np.array_equal(same[name], value) for name, value in inputs.items())


def test_what_is_printed_is_given_and_bounded(box: Sandbox) -> None:
    code = "import os, sys\nprint('a'); print('b', file=sys.stderr); os.write(1, b'c\\n')\noutput = 1"
    assert box.execute(code).stdout == "a\nb\nc\n"
    with Sandbox(limits=Limits(output_nbytes=4096)) as small:
        assert small.execute("print('x' * 100_000); output = 1").stdout == "x" * 4096


def test_an_error_has_the_algorithm_s_own_frames(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.run(
            box.register(
                "wrong", "def inner():\n    return {}['key']\ndef process(inputs):\n    return inner()", "process"
            )
        )
    assert caught.value.type == "KeyError"
    assert "line 2, in inner" in caught.value.traceback
    assert "runner.py" not in caught.value.traceback


@pytest.mark.parametrize(
    "code", ["raise SystemExit(3)", "import os; os._exit(3)", "raise KeyboardInterrupt", "import os; os.abort()"]
)
def test_an_algorithm_that_ends_itself_is_an_error(box: Sandbox, code: str) -> None:
    with pytest.raises(AlgorithmError):
        box.execute(code)
    assert box.execute("output = 1").outputs == {"output": 1}


@pytest.mark.parametrize("count", [3000, 9000])
def test_more_results_than_can_be_described_are_an_error_that_says_so(box: Sandbox, count: int) -> None:
    with pytest.raises(AlgorithmError, match="too many") as caught:
        box.execute(f"import numpy as np\noutput = {{f'y{{n}}': np.zeros(1) for n in range({count})}}")
    assert caught.value.type == "ValueError"


def test_values_have_a_size_of_their_own_and_an_error_that_says_it() -> None:
    with Sandbox(limits=Limits(output_nbytes=32 << 20)) as box:
        assert len(box.execute("output = 'x' * 8_000_000").outputs["output"]) == 8_000_000
        with pytest.raises(
            AlgorithmError, match=r"9000\d\d\d bytes as JSON, and may take 8388608.*as arrays"
        ) as caught:
            box.execute("output = 'x' * 9_000_000")
        assert caught.value.type == "ValueError"


@pytest.mark.parametrize("text", ["x", "\0", "\U0001f600", "\ud800"])
def test_an_error_of_any_length_has_its_type_and_the_beginning_of_its_text(box: Sandbox, text: str) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.execute(f"class Long(Exception): pass\nraise Long('begins' + {text!a} * 100000)")
    assert (caught.value.type, "Long: begins" in str(caught.value)) == ("Long", True)
    assert len(str(caught.value)) <= 8000
    with pytest.raises(AlgorithmError) as caught:
        box.execute("raise type('L' * 200000, (Exception,), {})('well')")
    assert caught.value.type == "L" * 200


def test_annotations_are_those_of_the_algorithm_not_of_the_runner(box: Sandbox) -> None:
    assert (
        box.execute("def f(x: int): pass\ndef g(): pass\noutput = f.__annotations__['x'] is int").outputs["output"]
        is True
    )


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"memory_nbytes": 0}, {"wall_ms": float("nan")}, {"threads": -1}, {"cpu_cores": 0}, {"stack_nbytes": 1.5},
    {"output_nbytes": "1"}, {"disk_nbytes": -1},
])  # fmt: skip
def test_a_limit_that_is_none_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Limits(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("cores", [1, None])
def test_threads_run_on_as_many_cores_as_were_given(cores: int | None) -> None:
    with Sandbox(limits=Limits(cpu_cores=cores)) as box:
        found = box.execute("import os; output = len(os.sched_getaffinity(0))").outputs["output"]
        assert found == (cores or len(os.sched_getaffinity(0)))
        with pytest.raises(NotAllowed):
            box.execute("import os; os.sched_setaffinity(0, range(64))")


def busy_children() -> int:
    """How many contained processes have computed for longer than a short run takes."""
    found = 0
    for each in grandchildren():
        try:
            found += each.cpu_times().user > 0.3 and each.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            pass
    return found


def test_processes_with_one_core_each_are_spread_over_the_cores() -> None:
    usable = sorted(os.sched_getaffinity(0))
    count = min(len(usable), 4)
    with Sandbox(
        limits=Limits(cpu_cores=1, wall_ms=60_000, cpu_ms=60_000),
    ) as box:
        flag = box.empty(1)
        box.register("wait", "import os\nwhile not inputs['flag'][0]: pass\noutput = sorted(os.sched_getaffinity(0))")
        futures = [box.submit("wait", {"flag": flag}) for _ in range(count)]
        while busy_children() < count:  # all of them wait
            time.sleep(0.01)
        flag[0] = 1
        cores = [each.result(60).outputs["output"] for each in futures]
        assert all(len(each) == 1 for each in cores)
        assert len({each[0] for each in cores}) == count
        # One that is kept stays where it was, though all of its threads have others to choose from.
        kept = box.register("kept", "import os\noutput = sorted(os.sched_getaffinity(0))", reuse=True)
        assert len({box.run(kept).outputs["output"][0] for _ in range(5)}) == 1


def test_a_private_directory_is_as_large_as_was_given_and_empty_for_each_run() -> None:
    with Sandbox(limits=Limits(disk_nbytes=1 << 20)) as box:
        code = (
            "import os\nbefore = os.listdir('/tmp')\n"
            "with open('/tmp/a', 'wb') as file: file.write(bytes(inputs['n']))\noutput = before"
        )
        for _ in range(3):
            assert box.execute(code, {"n": 500_000}).outputs["output"] == []
        with pytest.raises(LimitExceeded) as caught:
            box.execute(code, {"n": 2_000_000})
        assert caught.value.limit == "disk_nbytes"
        assert not (Path("/tmp") / "a").exists()
        assert (
            box.execute("import tempfile\nwith tempfile.TemporaryFile() as f: output = f.write(b'x')").outputs["output"]
            == 1
        )


def test_no_private_directory_where_none_was_given() -> None:
    with Sandbox(limits=Limits(disk_nbytes=0)) as box, pytest.raises(NotAllowed) as caught:
        box.execute("open('/tmp/a', 'w')")
    assert caught.value.rule == "write"


# -- grants -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that is not beneath /tmp, which the algorithms have for themselves."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        yield Path(path)


def test_a_path_that_is_granted_beneath_the_private_directory_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("granted")
    with Sandbox(allow=Allow(read=(f"{tmp_path}/file",))) as box:
        assert (
            box.execute("output = open(inputs['path']).read()", {"path": f"{tmp_path}/file"}).outputs["output"]
            == "granted"
        )
        assert box.execute("import os; output = len(os.listdir('/tmp'))").outputs["output"] == 1
        with pytest.raises(NotAllowed):
            box.execute("open(inputs['path'], 'w')", {"path": f"{tmp_path}/file"})


def test_granted_paths_can_be_read_and_no_others(place: Path) -> None:
    tmp_path = place
    for name in ("granted", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with Sandbox(allow=Allow(read=(str(tmp_path / "granted"),))) as box:
        code = "output = open(inputs['path']).read()"
        assert box.execute(code, {"path": f"{tmp_path}/granted/file"}).outputs["output"] == "granted"
        for path in ("other/file", "granted/../other/file"):
            with pytest.raises(NotAllowed) as caught:
                box.execute(code, {"path": f"{tmp_path}/{path}"})
            assert caught.value.rule == "read"
        with pytest.raises(NotAllowed) as caught:
            box.execute("open(inputs['path'], 'a')", {"path": f"{tmp_path}/granted/file"})
        assert caught.value.rule == "write"


def test_a_file_that_is_not_there_in_a_granted_directory_is_an_ordinary_error(tmp_path: Path) -> None:
    with Sandbox(allow=Allow(read=(str(tmp_path),))) as box, pytest.raises(AlgorithmError) as caught:
        box.execute("open(inputs['path'])", {"path": f"{tmp_path}/missing"})
    assert caught.value.type == "FileNotFoundError"


def test_mounts_are_at_their_own_paths(place: Path) -> None:
    tmp_path = place
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "file").write_text("hello")
    mounts = (Mount(f"{tmp_path}/in", "/data/in"), Mount(f"{tmp_path}/out", "/data/out", readonly=False))
    with Sandbox(allow=Allow(mounts=mounts)) as box:
        box.execute("open('/data/out/file', 'w').write(open('/data/in/file').read() * 2)\noutput = 1")
        assert (tmp_path / "out" / "file").read_text() == "hellohello"
        for code in (
            "open('/data/in/file', 'w')",
            "open('/data/in/new', 'w')",
            "import os; os.unlink('/data/in/file')",
        ):
            with pytest.raises(NotAllowed) as caught:
                box.execute(code)
            assert caught.value.rule == "write"
        with pytest.raises(NotAllowed):
            box.execute(f"open('{tmp_path}/in/file')")


@pytest.mark.parametrize("path", ["/tmp", "/tmp/x", "/usr", "/usr/lib/x", "/dev"])
def test_a_mount_that_would_hide_what_is_needed_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=path):
        Sandbox(allow=Allow(mounts=(Mount(str(tmp_path), path),)))


@pytest.mark.parametrize(
    "path",
    ["relative", "/a/../b", "/", "/etc", "/proc", "/proc/1", "/sys/kernel", "/dev/mem", "/dev/shm", "//x", "/x\0y"],
)
def test_a_path_that_grants_too_much_or_is_unclear_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|too much"):
        Allow(read=(path,))
    with pytest.raises(ValueError, match=r"absolute|too much"):
        Mount(path, "/data")


@pytest.mark.parametrize("target", ["/", "/etc", "/proc/1", "/proc/self/root", "/sys/kernel", "/dev/fd"])
def test_a_link_grants_no_more_than_what_it_leads_to(target: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "again").symlink_to("link")
    for name in ("link", "again"):
        with pytest.raises(ValueError, match=r"leads.*too much"):
            Allow(read=(str(tmp_path / name),))
        with pytest.raises(ValueError, match=r"leads.*too much"):
            Mount(str(tmp_path / name), "/data")
    (tmp_path / "well").symlink_to(tmp_path)
    assert Allow(read=(str(tmp_path / "well"), "/dev/shm/tensors"))


def test_one_text_is_not_taken_for_several() -> None:
    with pytest.raises(ValueError, match="one text"):
        Allow(read="/usr/share")  # type: ignore[arg-type]


def test_granted_variables_are_the_environment() -> None:
    with Sandbox(allow=Allow(env={"MODE": "fast"})) as box:
        assert box.execute("import os; output = os.environ['MODE']").outputs["output"] == "fast"


def test_a_granted_network_reaches_ports_and_nothing_else() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with server.accept()[0] as connection:
            connection.sendall(b"hello")

    answering = threading.Thread(target=answer)
    answering.start()
    code = (
        "import socket\nwith socket.create_connection(('127.0.0.1', inputs['port'])) as s: output = s.recv(9).decode()"
    )
    port = server.getsockname()[1]
    try:
        with Sandbox() as closed, pytest.raises(NotAllowed) as caught:
            closed.execute(code, {"port": port})
        assert caught.value.rule == "net"
        with Sandbox(allow=Allow(net=True)) as box:
            assert "net_namespace" not in box.layers
            assert box.execute(code, {"port": port}).outputs["output"] == "hello"
            for family in ("AF_UNIX", "AF_NETLINK", "AF_PACKET"):
                with pytest.raises(NotAllowed) as caught:
                    box.execute(f"import socket; socket.socket(socket.{family})")
                assert caught.value.rule == "net"
    finally:
        answering.join()
        server.close()


def test_a_granted_system_call_works_and_an_unknown_one_is_refused() -> None:
    with Sandbox() as box, pytest.raises(NotAllowed) as caught:
        box.execute("import os; os.sched_setaffinity(0, os.sched_getaffinity(0))")
    assert caught.value.rule == "syscalls"
    with Sandbox(allow=Allow(syscalls=("sched_setaffinity",))) as box:
        assert (
            box.execute("import os; os.sched_setaffinity(0, os.sched_getaffinity(0)); output = 1").outputs["output"]
            == 1
        )
    with pytest.raises(ValueError, match="no_such_call"):
        Sandbox(allow=Allow(syscalls=("no_such_call",)))
    with pytest.raises(ValueError, match="net=True"):
        Allow(syscalls=("socket",))


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [False, True])
def test_a_loan_is_read_in_place_and_an_array_is_copied(box: Sandbox, reuse: bool) -> None:
    algorithm = box.register("double", "def double(inputs): return {'y': inputs['x'] * 2}", reuse=reuse)
    lent = box.empty((1000, 50))
    assert not lent.any()
    for value in range(4):
        lent[:] = value
        for part in (lent, lent.reshape(-1), lent[None]):
            response = box.run(algorithm, {"x": part})
            assert response.copied_nbytes == 0
            assert np.array_equal(response.outputs["y"], part * 2)
        for part in (lent.copy(), lent[:, ::2], lent[8:88], lent[:80], lent.reshape(-1)[8:]):
            response = box.run(algorithm, {"x": part})
            assert response.copied_nbytes == part.nbytes
            assert np.array_equal(response.outputs["y"], part * 2)
    many = {f"x{number}": box.empty(3) for number in range(12)}
    response = box.execute("output = len(inputs)", many)
    assert response.outputs["output"] == 12
    assert response.copied_nbytes == 4 * 24  # the first eight go in place


def test_a_part_of_a_loan_shows_an_algorithm_nothing_else_of_it(box: Sandbox) -> None:
    code = (
        "import sys\nimport numpy as np\nmapped = sys.modules['tr_mmap.sandbox.runner']._mappings.values()\n"
        "output = sum(int((np.frombuffer(each, np.float64) == 7).sum()) for each in mapped)"
    )
    lent = box.empty(1000)
    lent[:] = 7
    assert box.execute(code, {"x": lent}).outputs["output"] >= 1000  # the control
    for part in (lent[:16], lent[-16:], lent.reshape(125, 8)[4:6], lent[64:80].reshape(4, 4)):
        assert box.execute(code, {"x": part}).outputs["output"] == 16


def test_an_algorithm_cannot_write_a_loan(box: Sandbox) -> None:
    lent = box.empty(1000)
    for code in (
        "inputs['x'][0] = 1",
        "import ctypes; ctypes.memset(inputs['x'].ctypes.data, 1, 8)",
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.mprotect(ctypes.c_void_p(inputs['x'].ctypes.data), 4096, 3): raise OSError(ctypes.get_errno(), 'x')",
        "import os\nfor fd in range(3, 64):\n  try:\n    os.fstat(fd)\n  except OSError:\n    continue\n"
        "  try:\n    os.pwrite(fd, b'x' * 8, 0)\n  except OSError:\n    pass\nraise ValueError('tried')",
    ):
        with pytest.raises((AlgorithmError, NotAllowed)):
            box.execute(code, {"x": lent})
        assert not lent.any()


@pytest.mark.parametrize("reuse", [False, True])
def test_results_stay_while_later_runs_use_memory_again(box: Sandbox, reuse: bool) -> None:
    algorithm = box.register(
        "fill", "import numpy as np\ndef fill(i): return {'y': np.full(300_000, i['n'])}", reuse=reuse
    )
    results = [box.run(algorithm, {"n": n}).outputs["y"] for n in range(8)]
    for _ in range(8):
        box.run(algorithm, {"n": -1})
    assert [int(each.min()) for each in results] == list(range(8))
    assert [int(each.max()) for each in results] == list(range(8))


def test_results_outlive_their_sandbox() -> None:
    with Sandbox() as box:
        code = "import numpy as np\ndef fill(i): return {'y': np.full(300_000, 7)}"
        results = [box.run(box.register("fill", code, reuse=reuse)).outputs["y"] for reuse in (False, True)]
    assert all((each == 7).all() for each in results)


def test_results_of_many_shapes_that_lie_anywhere_in_memory(box: Sandbox) -> None:
    code = """
import numpy as np
def process(inputs):
    a = np.arange(400_000.0).reshape(1000, 400)
    keep.append(a)
    return {
        'whole': a, 'part': a[100:900], 'odd': a[1:, 1:], 'turned': a.T, 'inputs': inputs['x'], 'small': a[:1, :3],
        'big_endian': a.astype('>f8'), 'grown': np.resize(a, 500_000), 'zeros': np.zeros(200_000), 'text': 'x',
        'appended': np.concatenate([a, a])[900:1100], 'bools': a > 5, 'scalar': np.float32(2), 'empty': a[:0],
    }
keep = []
"""
    x = np.random.default_rng(1).random(100_000)
    a = np.arange(400_000.0).reshape(1000, 400)
    for reuse in (False, True, True, True):
        found = box.run(box.register("shapes", code, "process", reuse=reuse), {"x": x}).outputs
        expected = {
            "whole": a, "part": a[100:900], "odd": a[1:, 1:], "turned": a.T, "inputs": x, "small": a[:1, :3],
            "big_endian": a, "grown": np.resize(a, 500_000), "zeros": np.zeros(200_000),
            "appended": np.concatenate([a, a])[900:1100], "bools": a > 5, "scalar": np.float32(2), "empty": a[:0],
        }  # fmt: skip
        assert found.pop("text") == "x"
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_results_up_to_their_limit_and_no_more() -> None:
    code = (
        "import numpy as np\nh = inputs['n'] // 2\nt = np.ones(2 * h, np.uint8)\n"
        "output = {'y': t[:h], 'z': t[h:][::-1]}"
    )
    with Sandbox(limits=Limits(output_nbytes=4 << 20)) as box:
        assert box.execute(code, {"n": (4 << 20) - 64}).outputs["z"].size == (2 << 20) - 32
        for n in ((4 << 20) + 2, 7 << 20, 9 << 20):
            with pytest.raises(LimitExceeded) as caught:
                box.execute(code, {"n": n})
            assert caught.value.limit == "output_nbytes"


def test_a_process_that_may_fork_leaves_no_writer_of_results_and_no_child() -> None:
    """Its child lives on and writes; the results that were given are a copy."""
    code = """
import mmap, os, stat, time
import numpy as np
def is_area(fd):
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
def process(inputs):
    if not os.fork():
        os.setpgid(0, 0) if inputs['away'] else None
        areas = []
        for fd in filter(is_area, range(3, 64)):
            try:
                areas.append(mmap.mmap(fd, 0))
            except OSError:
                pass
        for _ in range(200):
            for area in areas:
                if len(area) >= 2 << 20:  # the others are not of results
                    area[1 << 20 : 2 << 20] = b'x' * (1 << 20)
            time.sleep(0.01)
        os._exit(0)
    return {'y': np.ones(300_000)}
"""
    allow = Allow(syscalls=("fork", "clone", "clone3", "setpgid"))
    with Sandbox(allow=allow) as box:
        algorithm = box.register("fork", code, "process")
        for away in (False, True):
            result = box.run(algorithm, {"away": away}).outputs["y"]
            assert (result == 1).all()
            for _ in range(3):
                assert (box.run(box.register("ones", code.replace("if not os.fork()", "if 0"))).outputs["y"] == 1).all()
            assert (result == 1).all()


def test_files_are_copied_with_all_that_an_algorithm_may_know_of_them() -> None:
    with Sandbox() as box:
        code = "import os, shutil, sysconfig; output = 1\nif os.path.isdir('/tmp'):\n"
        code += "  output = len(shutil.copyfile(sysconfig.get_paths()['stdlib'] + '/os.py', '/tmp/os.py'))\n"
        code += "  shutil._copyxattr('/tmp/os.py', '/tmp/os.py')"
        assert box.execute(code).outputs["output"]
