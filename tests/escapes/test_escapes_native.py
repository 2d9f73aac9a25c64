"""Every attack of a shared library is denied with a typed error, on every machine of ``environments.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks_native import ATTACKS, NativeAttack, attack_library, write_library
from environments import Environment, machines, run_in
from native_libraries import library
from support import once_a_run

from tr_mmap.sandbox import AlgorithmError, Limits, Sandbox


@once_a_run
def results_in(environment: Environment) -> tuple[list[str], dict[str, Any]]:
    layers, results = json.loads(run_in(environment, "attack_native", data=attack_library()))
    return layers, results


@pytest.mark.parametrize("environment", machines("as it is"))
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_an_attack_is_denied_by_name(attack: NativeAttack, environment: Environment) -> None:
    layers, results = results_in(environment)
    found = results[attack.id]
    assert found is not None, "it works"
    error, (name, value) = attack.denial(layers)
    assert found[0] == error, found[1]
    assert not name or found[1][name] == value, found[1]


CONTROL = """
import ctypes, sys
function = ctypes.CDLL(sys.argv[1])[sys.argv[2]]
error = ctypes.create_string_buffer(1024)
code = function(None, 0, None, 0, error, ctypes.c_size_t(1024))
sys.exit(0 if code == 0 else f"{code}: {error.value}")
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_library(tmp_path_factory.mktemp("native") / "attacks.so")


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.has_control], ids=lambda attack: attack.id)
def test_the_same_attack_works_without_the_sandbox(attack: NativeAttack, path: Path) -> None:
    if attack.is_for_root and os.geteuid() != 0:
        pytest.skip("NOT TESTED: controls of attacks that work for root only; run the tests as root")
    function = f"attack_{ATTACKS.index(attack)}"
    ended = subprocess.run([sys.executable, "-c", CONTROL, path, function], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


WRITES = """
FUNCTION(writes) { // its result, for ever
    const int64_t size = 1 << 20;
    volatile char *y = static_cast<char *>(tr_make(&out[0], TR_UINT8, 1, &size));
    static bool is_running;
    if (!is_running)
        std::thread([y] {
            for (char value = 1;; value++)
                for (int i = 0; i < 1 << 20; i += 512) y[i] = value;
        }).detach();
    is_running = true;
    return 0;
}
"""


@pytest.mark.parametrize("reuse", [False, True])
def test_13_a_result_does_not_change_after_it_was_returned(reuse: bool) -> None:
    limits = Limits(wall_ms=60_000, cpu_ms=60_000, output_nbytes=1 << 20)
    with Sandbox("native", limits=limits) as box, Sandbox() as other:
        algorithm = box.register("writes", library(WRITES), "writes", reuse=reuse)
        for _ in range(2):
            result = box.run(algorithm).outputs["output"]
            before = result.copy()
            other.execute("import time; time.sleep(0.05); output = 1")
            assert np.array_equal(result, before)
            with pytest.raises(ValueError, match="read-only"):
                result[0] = 1


LEAVES = """
#include <sys/stat.h>
static int global;
FUNCTION(leaves) {
    const int64_t three = 3;
    int32_t *y = static_cast<int32_t *>(tr_make(&out[0], TR_INT32, 1, &three));
    y[0] = global++;
    y[1] = access("/tmp/left", F_OK) == 0;
    int fd = open("/tmp/left", O_CREAT | O_WRONLY, 0600);
    if (fd >= 0) close(fd);
    y[2] = getenv("LEFT") != nullptr;
    setenv("LEFT", "1", 1);
    return 0;
}
static int64_t area() { // its inode, by a descriptor: results and inputs are the only files of this size
    struct stat about;
    for (int fd = 3; fd < 64; fd++)
        if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_size == 2 << 20) return about.st_ino;
    return -1;
}
FUNCTION(looks) { // for what a former run has left in the memory of results
    const int64_t two = 2;
    double found[2] = {0, static_cast<double>(area())};
    const char *data = static_cast<char *>(out[0].data);
    for (uint64_t i = 0; i < out[0].nbytes; i++) found[0] += data[i] != 0;
    memcpy(tr_make(&out[0], TR_FLOAT64, 1, &two), found, sizeof found);
    return 0;
}
FUNCTION(fills) {
    const int64_t size = static_cast<int64_t>(out[0].nbytes / 8);
    double *y = static_cast<double *>(tr_make(&out[0], TR_FLOAT64, 1, &size));
    memset(y, 0x5e, out[0].nbytes);
    y[0] = static_cast<double>(area());
    return 0;
}
"""


def test_16_a_run_leaves_nothing_for_the_next() -> None:
    with Sandbox("native", limits=Limits(output_nbytes=1 << 20)) as box:
        fresh = box.register("leaves", library(LEAVES), "leaves")
        assert [box.run(fresh).outputs["output"].tolist() for _ in range(4)] == [[0, 0, 0]] * 4
        kept = box.register("leaves", library(LEAVES), "leaves", reuse=True)
        box.run(kept)
        found = box.run(kept).outputs["output"].tolist()  # the control
        assert found == [1, int("mount_namespace" in box.layers), 1]
        fills, looks = box.register("fills", library(LEAVES), "fills"), box.register("looks", library(LEAVES), "looks")
        filled = float(box.run(fills).outputs["output"][0])
        assert filled > 0
        found = []
        for _ in range(12):
            count, area = box.run(looks).outputs["output"].tolist()
            assert count == 0
            found.append(area)
        assert filled in found, "its memory was not used again"


def test_a_process_has_no_other_path_than_its_descriptors() -> None:
    look = """
    FUNCTION(looks) {
        std::string found;
        for (const char *path : {"/.proc/1", "/.proc/self", "/proc/1", "/dev/fd/../mem", "/dev/fd/..", "/etc"})
            if (access(path, F_OK) == 0) found += std::string(path) + " ";
        return tr_fail(error, error_nbytes, (found + "and no more").c_str());
    }
    """
    with Sandbox("native") as box:
        if "mount_namespace" not in box.layers:
            pytest.skip("NOT TESTED: what a file system of its own hides (namespaces are forbidden here)")
        with pytest.raises(AlgorithmError, match=r"^/dev/fd/\.\. and no more$"):
            box.run(box.register("looks", library(look), "looks"))
