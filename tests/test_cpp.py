"""The C++ side against the Python side: the same files, the same faults, and sessions between the two.

The suite in ``tests/cpp`` is compiled once, with AddressSanitizer and UndefinedBehaviorSanitizer, and asked for its
parts. What is compiled is kept in pytest's cache until a source changes.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import make_vectors
import ml_dtypes
import numpy as np
import pytest
import support
from support import ROOT, leftovers

import tr_mmap
from tr_mmap.tsr.header import decode

INCLUDE = ROOT / "tr_mmap" / "include"
SOURCES = ROOT / "tests" / "cpp"
EXAMPLES = ROOT / "examples" / "cpp"
VECTORS = ROOT / "tests" / "vectors"
WARNINGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.timeout(400)  # the first test that needs the suite compiles it


class Notice:
    """Says something at the end of the run, where it is seen."""

    def __init__(self, text: str) -> None:
        self._text = text

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_sep("*", self._text, red=True, bold=True)


@pytest.fixture(scope="session")
def compiler(request: pytest.FixtureRequest) -> str:
    """g++, or whatever CXX says."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        notice = "there is no g++: THE C++ SIDE IS NOT TESTED. Install g++, or name a compiler in CXX"
        if os.environ.get("CI"):
            pytest.fail(notice)
        request.config.pluginmanager.register(Notice(notice))
        pytest.skip(notice)
    return found


def run(arguments: Sequence[str | Path], within_s: float = 300, **environment: str) -> str:
    """What it prints; fails the test if it fails."""
    result = subprocess.run(
        [str(each) for each in arguments],
        env={**support.environment(), "TR_PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_both(commands: Sequence[Sequence[str | Path]]) -> None:
    """Run commands, two at a time."""
    running: list[tuple[Sequence[str | Path], subprocess.Popen[str]]] = []
    waiting = list(commands)
    while waiting or running:
        while waiting and len(running) < 2:
            command = waiting.pop(0)
            process = subprocess.Popen(
                [str(each) for each in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            running.append((command, process))
        command, process = running.pop(0)
        errors = process.communicate()[1]
        if process.returncode != 0:
            for _, other in running:
                other.communicate()
        assert process.returncode == 0, f"{' '.join(map(str, command))}\n{errors}"


@pytest.fixture(scope="session")
def suite(compiler: str, request: pytest.FixtureRequest) -> Path:
    """The program made of tests/cpp."""
    sources = [SOURCES / name for name in ("sessions.cpp", "tools.cpp", "formats.cpp", "main.cpp")]  # slow ones first
    headers = [*INCLUDE.rglob("*.h*"), SOURCES / "check.hpp"]
    flags = [*WARNINGS, "-O0", *SANITIZERS, f"-I{INCLUDE}"]
    state = hashlib.sha256(" ".join([compiler, *flags]).encode())
    for path in sorted([*sources, *headers]):
        state.update(path.name.encode() + path.read_bytes())
    cache = request.config.cache
    assert cache is not None
    program = cache.mkdir("cpp") / f"suite-{state.hexdigest()[:16]}"
    if not program.exists():
        for older in program.parent.glob("suite-*"):
            older.unlink()
        objects = [program.parent / f"{each.stem}-{os.getpid()}.o" for each in sources]
        try:
            run_both(
                [
                    [compiler, *flags, "-c", source, "-o", target]
                    for source, target in zip(sources, objects, strict=True)
                ]
            )
            temporary = program.with_suffix(".new")
            run([compiler, *SANITIZERS, *objects, "-o", temporary, "-pthread"])
            temporary.rename(program)
        finally:
            for each in objects:
                each.unlink(missing_ok=True)
    return program


@pytest.fixture
def ask(suite: Path, tmp_path: Path) -> Any:
    """Run the suite with some arguments."""

    def asked(*arguments: str | Path, within_s: float = 200) -> str:
        worker = str(SOURCES / "worker.py")
        return run([suite, *arguments], within_s, TR_TEST_WORKER=worker, TR_TEST_FOLDER=str(tmp_path))

    return asked


@pytest.fixture
def vectors(tmp_path: Path) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """A copy of the vectors (loading a segment marks it), and their index."""
    folder = tmp_path / "vectors"
    shutil.copytree(VECTORS, folder)
    return folder, json.loads((folder / "index.json").read_text())


# -- the suite -------------------------------------------------------------------------------------------------------


def test_formats_in_cpp(ask: Any) -> None:
    assert " 0 failed" in ask("test", "format")


def test_sessions_from_cpp(ask: Any) -> None:
    assert " 0 failed" in ask("test", "session")


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_the_header_compiles_without_a_warning(compiler: str, name: str, is_full: bool) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    for standard in ("17", "20", "23") if is_full else ("17",):
        more = ["-Wshadow", "-Wconversion", f"-std=c++{standard if name == 'g++' or standard != '23' else '2b'}"]
        run([name, *WARNINGS, *more, f"-I{INCLUDE}", "-fsyntax-only", EXAMPLES / "matmul.cpp"])


def test_headers_stand_alone(compiler: str, tmp_path: Path, is_full: bool) -> None:
    names = sorted(each.name for each in (INCLUDE / "tr_mmap").glob("*.hpp"))
    for name in names if is_full else ("print.hpp",):
        source = tmp_path / "x.cpp"
        source.write_text(f"#include <tr_mmap/{name}>\n#include <tr_mmap/{name}>\nint main() {{}}\n")
        run([compiler, *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source])
    run([compiler, *WARNINGS, "-x", "c++", "-fsyntax-only", INCLUDE / "tr_mmap" / "tr_mmap.hpp"])  # by itself


# -- files -----------------------------------------------------------------------------------------------------------


def test_vectors_are_what_their_script_makes(tmp_path: Path) -> None:
    make_vectors.main(tmp_path / "again")
    made = sorted(each.relative_to(tmp_path / "again") for each in (tmp_path / "again").rglob("*") if each.is_file())
    kept = sorted(each.relative_to(VECTORS) for each in VECTORS.rglob("*") if each.is_file())
    assert made == kept
    _, differing, missing = filecmp.cmpfiles(tmp_path / "again", VECTORS, [str(each) for each in made], shallow=False)
    assert (differing, missing) == ([], [])


def test_vectors_cover_every_fault_that_a_reader_of_files_can_find(vectors: Any) -> None:
    found = {each["fault"] for each in vectors[1]["bad"]}
    assert set(tr_mmap.Fault) - found == {
        tr_mmap.Fault.UNREPRESENTABLE,  # a writer's
        tr_mmap.Fault.NOT_SEALED,  # of readers with a key
        tr_mmap.Fault.SEAL_BROKEN,
    }


def test_python_reads_the_vectors(vectors: Any) -> None:
    folder, index = vectors
    for each in index["good"]:
        path = folder / each["file"]
        header = tr_mmap.read_header(path)
        found = (header.version, header.dtype.name, list(header.shape), header.seq, header.payload_offset)
        assert found == (each["version"], each["dtype"], each["shape"], each["seq"], each["offset"]), each
        assert (header.payload_checksum is not None, header.is_segment) == (each["has_checksum"], each["is_segment"])
        array = tr_mmap.load(path, verify=True)
        assert list(array.shape) == each["shape"], each
        assert zlib.crc32(array.tobytes()) == each["payload_crc32"], each
    for each in index["bad"]:
        path = folder / each["file"]
        if each["only_verified"]:
            tr_mmap.load(path)
        with pytest.raises(tr_mmap.TSRFormatError) as caught:
            tr_mmap.load(path, verify=each["only_verified"])
        assert caught.value.fault == each["fault"], each


def test_cpp_reads_the_vectors(ask: Any, vectors: Any) -> None:
    folder, index = vectors
    assert ask("vectors", folder) == f"{len(index['good'])} good, {len(index['bad'])} bad\n"


def _timeless(data: bytes) -> bytes:
    """A file without the moment of its making, and without the header checksum over it."""
    return data if data[:8] != b"TSR!\2\0\0\0" else data[:40] + bytes(8) + data[48:60] + bytes(4) + data[64:]


def test_both_write_the_same_bytes(ask: Any, vectors: Any, tmp_path: Path) -> None:
    folder, index = vectors
    out = tmp_path / "out"
    out.mkdir()
    ask("rewrite", folder, out)
    for each in index["good"]:
        ours = tmp_path / "ours.tsr"
        array = tr_mmap.load(folder / each["file"])
        tr_mmap.save(ours, array, version=each["version"], checksum=each["has_checksum"])
        theirs = out / Path(each["file"]).name
        assert _timeless(theirs.read_bytes()) == _timeless(ours.read_bytes()), each
        tr_mmap.read_header(theirs)


def _mutants(count: int, seed: int) -> Iterator[tuple[bytes, int]]:
    """Headers with a few changes, most of them with a right checksum, and file sizes that fit more or less."""
    source = random.Random(seed)
    seeds = [path.read_bytes() for path in sorted(VECTORS.rglob("*.tsr"))]
    values = [0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 20, 21, 64, 255, 256, 257, 512, 4096, 2**31 - 1, 2**31, 2**32 - 1]
    values += [2**32, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    for _ in range(count):
        data = bytearray(source.choice(seeds))
        size = len(data)
        for _ in range(source.randrange(4)):
            if not data:
                break
            at = source.randrange(min(len(data), 256))
            kind = source.randrange(4)
            if kind == 0:
                data[at] ^= 1 << source.randrange(8)
            elif kind == 1:
                width = source.choice((4, 8))
                at -= at % width
                value = struct.pack("<Q", source.choice(values))[:width]
                data[at : at + width] = value[: len(data) - at]
            elif kind == 2:
                del data[source.randrange(len(data)) :]
            else:
                size = max(0, size + source.choice((-1, 1, 64, 4096)))
        if len(data) >= 256 and source.random() < 0.8:
            data[60:64] = struct.pack("<I", zlib.crc32(data[128:256], zlib.crc32(data[:60])))
        yield bytes(data[:256]), size


def _verdict(raw: bytes, file_nbytes: int) -> str:
    try:
        header = decode(raw, file_nbytes=file_nbytes)
    except tr_mmap.TSRFormatError as error:
        return error.fault
    return f"{'x'.join(map(str, header.shape)) or '()'} {header.dtype.name}"


def test_both_give_the_same_verdict_on_any_header(ask: Any, tmp_path: Path) -> None:
    mutants = list(_mutants(20_000, seed=4))
    path = tmp_path / "mutants"
    path.write_bytes(b"".join(struct.pack("<QQ", size, len(raw)) + raw for raw, size in mutants))
    theirs = ask("faults", path).splitlines()
    assert len(theirs) == len(mutants)
    for (raw, size), verdict in zip(mutants, theirs, strict=True):
        assert _verdict(raw, size) == verdict, raw.hex()
    assert len(set(theirs)) > 20  # they are not all refused for one reason


def test_small_floats_are_those_of_ml_dtypes(ask: Any, tmp_path: Path) -> None:
    bits = np.random.default_rng(7).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32).copy()
    values[:5000] = np.random.default_rng(8).standard_normal(5000, dtype=np.float32)
    values[:8] = [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 1e-45]
    values[8:264] = np.ldexp(np.float32(1.5), np.arange(-128, 128))  # ties, for a type without a mantissa
    values[264:4360] = np.arange(4096).astype(np.float16).astype(np.float32) + np.float32(0.5)  # and for the others
    path = tmp_path / "floats"
    path.write_bytes(values.tobytes())
    for line in ask("lowfloats", path).splitlines():
        name, *numbers = line.split()
        dtype = np.dtype(np.float16 if name == "float16" else getattr(ml_dtypes, name))
        kind = np.uint8 if dtype.itemsize == 1 else np.uint16
        count = 256**dtype.itemsize
        decoded = np.array(numbers[:count], np.float32)
        np.testing.assert_array_equal(decoded, np.arange(count).astype(kind).view(dtype).astype(np.float32), name)
        encoded = np.array(numbers[count:], np.int64).astype(kind)
        with np.errstate(all="ignore"):
            expected = values.astype(dtype)
        is_number = ~np.isnan(expected.astype(np.float32))
        assert np.isnan(encoded.view(dtype).astype(np.float32)[~is_number]).all(), name
        np.testing.assert_array_equal(encoded[is_number], expected.view(kind)[is_number], name)


def _verdict_on_file(data: bytes) -> str:
    """What load_tsr is to say of a file."""
    try:
        header = decode(data[:256], file_nbytes=len(data))
    except tr_mmap.TSRFormatError as error:
        return error.fault
    crc = zlib.crc32(data[header.payload_offset : header.file_nbytes])
    if header.payload_checksum not in (None, crc):
        return tr_mmap.Fault.PAYLOAD_CHECKSUM
    return f"{'x'.join(map(str, header.shape)) or '()'} {header.dtype.name} {crc}"


@pytest.mark.long
def test_mutated_files_are_to_load_tsr_what_they_are_to_python(
    suite: Path, vectors: Any, is_full: bool, figures: Callable[[str], None]
) -> None:
    """And mutated messages do no harm."""
    count = 1_000_000 if is_full else 30_000
    reader, writer = os.pipe()
    arguments = [suite, "fuzz", str(count), "1", vectors[0], f"/dev/fd/{writer}"]
    process = subprocess.Popen(arguments, pass_fds=[writer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    verdicts: Counter[str] = Counter()
    try:
        with open(reader, "rb") as records:
            while size := records.read(8):
                data = records.read(int.from_bytes(size, "little"))
                theirs = records.read(int.from_bytes(records.read(8), "little")).decode()
                assert theirs == _verdict_on_file(data), data[:256].hex()
                verdicts["accepted" if " " in theirs else theirs] += 1
    finally:
        if sys.exc_info()[0] is not None:
            process.kill()
        text, errors = process.communicate()
    assert process.returncode == 0, errors
    assert text.startswith(f"{count} headers, {verdicts['accepted']} accepted\n{count // 2} messages\n"), text
    assert verdicts.total() == count
    reachable = set(tr_mmap.Fault) - {"unrepresentable", "not_sealed", "seal_broken"}
    assert set(verdicts) == {"accepted", *map(str, reachable)}
    figures(f"{count} headers\n" + "\n".join(f"{verdict}: {number}" for verdict, number in verdicts.most_common()))


# -- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "delay_s"),
    [
        *(("started", 0.0), ("started", 0.1), ("ready", 0.0), ("sent", 0.0), ("holding", 0.0), ("asking", 0.1)),
        *(("answered", 0.0), ("busy", 0.01), ("busy", 0.0173), ("busy", 0.0311)),
    ],
)
def test_a_killed_controller_leaves_nothing(
    suite: Path, stage: str, delay_s: float, workspace: Path, tmp_path: Path
) -> None:
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    process = subprocess.Popen([str(suite), "stage", stage], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"{stage}\n"
        time.sleep(delay_s)  # which moment of it is hit does not matter, as long as it is not always the same
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 20
    while (left := leftovers(workspace) + _semaphores_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


@pytest.mark.long
def test_controllers_killed_at_random_moments_leave_nothing(
    suite: Path, workspace: Path, tmp_path: Path, is_full: bool
) -> None:
    """From before the session exists to the middle of its work; a worker ends by itself, a sweep finds the rest."""
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    source = random.Random(5)
    for _ in range(200 if is_full else 6):
        process = subprocess.Popen([str(suite), "stage", "busy"], env=environment, stdout=subprocess.DEVNULL)
        try:
            time.sleep(source.uniform(0.0, 0.9))
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        # Again and again: a process that is at exec(2) has no environment to be known by.
        while left := leftovers(workspace) + _semaphores_of(process.pid):
            assert time.monotonic() < deadline, left
            if not support.processes_of(workspace):
                tr_mmap.sweep()
            time.sleep(0.02)


def _semaphores_of(pid: int) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"sem.tr_{pid}_")]


# -- programs --------------------------------------------------------------------------------------------------------


EXPECTED = {
    "hello": ["Hello World"],
    "matmul": ["4x5", "result: 4x5 FP32", "[[9.0, 9.0, 9.0, 9.0, 9.0],"],
    "loan": ["sent 64 MiB, copied 0 bytes", "can still be written: no", "theirs 0.0625, mine -1"],
}


@pytest.fixture(scope="session")
def examples(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples and the program of the README, each built in another of the ways that users have."""
    folder = tmp_path_factory.mktemp("examples") / "cpp"
    shutil.copytree(EXAMPLES, folder)
    include = run([sys.executable, "-m", "tr_mmap.cli", "include"]).strip()
    make = ["make", "-s", "-C", folder, f"CXX={compiler}", f"INCLUDE={include}", "CXXFLAGS=-Wall -Wextra -Werror"]
    # The original program takes no flag but the threads library.
    plain = [compiler, f"-I{include}", folder / "matmul.cpp", "-o", folder / "matmul", "-pthread"]
    (folder / "readme.cpp").write_text((ROOT / "README.md").read_text().split("```cpp\n", 1)[1].split("```", 1)[0])
    readme = [compiler, "-std=c++17", f"-I{include}", folder / "readme.cpp", "-o", folder / "readme", "-pthread"]
    if shutil.which("cmake") is None:
        run_both([[*make, "hello", "loan"], plain, readme])
    else:
        where = f"-Dtr_mmap_DIR={ROOT / 'tr_mmap' / 'cmake'}"
        run(["cmake", "-S", folder, "-B", folder / "build", where, f"-DCMAKE_CXX_COMPILER={compiler}"])
        run_both([["cmake", "--build", folder / "build", "--target", "hello"], plain, readme, [*make, "loan"]])
        (folder / "build" / "hello").rename(folder / "hello")
    return folder


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
def test_cmake_finds_the_package_in_an_environment(compiler: str, tmp_path: Path) -> None:
    """Where pip puts it: the configuration file in share, the headers in the package."""
    places = {"cmake": "share/cmake/tr_mmap", "include": "lib/python3.11/site-packages/tr_mmap/include"}
    for source, target in places.items():
        shutil.copytree(ROOT / "tr_mmap" / source, tmp_path / "env" / target)
    named = [f"-DCMAKE_PREFIX_PATH={tmp_path / 'env'}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    run(["cmake", "-S", EXAMPLES, "-B", tmp_path / "build", *named])
    found = [each.read_text() for each in (tmp_path / "build").rglob("flags.make")]
    assert found
    assert all(f"{tmp_path / 'env' / places['include']}" in each for each in found)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_example_runs(examples: Path, name: str) -> None:
    lines = run([examples / name]).splitlines()
    assert [each for each in EXPECTED[name] if each not in lines] == [], lines
    if name == "matmul":
        assert lines[0] == "4x5"
        assert " ".join(lines).count("9.0") == 20


def test_the_program_of_the_readme_runs_as_it_stands(examples: Path) -> None:
    assert run([examples / "readme"]) == "512x256: 3072\n"


def test_every_example_is_run() -> None:
    assert {each.stem for each in EXAMPLES.glob("*.cpp")} == set(EXPECTED)
    assert "foreach(name hello matmul loan)" in (EXAMPLES / "CMakeLists.txt").read_text()


def test_tr_mmap_include_prints_where_the_headers_are() -> None:
    assert run([sys.executable, "-m", "tr_mmap.cli", "include"]) == f"{INCLUDE}\n"


def test_tr_mmap_version() -> None:
    assert re.fullmatch(r"tr-mmap \d+\.\d+\.\d+\n", run([sys.executable, "-m", "tr_mmap.cli", "--version"]))
