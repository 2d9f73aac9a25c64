"""Shared libraries that the tests use, built by the compiler of this machine, each once a run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from support import once_a_run

from tr_mmap.cpp import include_dir

EXAMPLE = Path(__file__).parents[1] / "examples" / "native" / "normalize.cpp"

HEAD = """
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <unistd.h>
#include <fcntl.h>
#include "tr_algorithm.h"
#define FUNCTION(name) extern "C" __attribute__((visibility("default"))) \\
    int name(const tr_tensor *in, size_t n, tr_tensor *out, size_t m, char *error, size_t error_nbytes)
"""


@once_a_run
def library(source: str | Path, *flags: str) -> bytes:
    """A library of C++: the text is put behind :data:`HEAD`; a file is built as it stands."""
    if shutil.which("g++") is None:
        pytest.skip("NOT TESTED: shared libraries in the sandbox (there is no g++)")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "library.cpp"
        path.write_text(source.read_text() if isinstance(source, Path) else HEAD + source)
        made = Path(directory) / "library.so"
        usual = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", f"-I{include_dir()}"]
        subprocess.run(["g++", *usual, "-o", made, path, *flags], check=True)
        return made.read_bytes()


DOUBLE = """
TR_EXPORT int tr_run(const tr_tensor *in, size_t n, tr_tensor *out, size_t m, char *error, size_t error_nbytes) {
    if (n != 1 || in[0].dtype != TR_FLOAT32) return tr_fail(error, error_nbytes, "one float32 tensor, please");
    float *y = static_cast<float *>(tr_make(&out[0], TR_FLOAT32, in[0].ndim, in[0].shape));
    if (!y) return tr_fail(error, error_nbytes, "no room for the result");
    for (uint64_t i = 0; i < in[0].nbytes / 4; i++) y[i] = 2 * static_cast<const float *>(in[0].data)[i];
    return 0;
}
"""

MANY = (
    DOUBLE
    + """
static int deep(int n) { volatile char page[4096]; page[0] = n; return n < 0 ? 0 : deep(n + 1) + page[0]; }
static int count;
FUNCTION(touch_nothing) { printf("before the fault\\n"); return *reinterpret_cast<volatile int *>(8); }
FUNCTION(abort_) { abort(); }
FUNCTION(throws) { throw std::runtime_error("thrown and not caught"); }
FUNCTION(throws_in_thread) { std::thread([] { throw std::runtime_error("thrown in a thread"); }).join(); return 0; }
FUNCTION(exits) { exit(3); }
FUNCTION(exits_well) { _exit(0); }
FUNCTION(divides) { volatile int zero = 0; return 7 / zero; }
FUNCTION(illegal) { __builtin_trap(); }
FUNCTION(recurses) { return deep(0); }
FUNCTION(large_frame) {
    volatile char frame[24 << 20];
    int sum = 0;
    for (size_t i = sizeof frame; i >= 4096; i -= 4096) sum += frame[i - 1] = 1;
    return sum;
}
FUNCTION(prints) { printf("printed\\n"); fprintf(stderr, "and told\\n"); return 0; }
FUNCTION(counts) {
    const int64_t one = 1;
    *static_cast<int32_t *>(tr_make(&out[0], TR_INT32, 1, &one)) = ++count;
    return 0;
}
FUNCTION(nothing) { return 0; }
FUNCTION(fails_by_number) { return 7; }
FUNCTION(long_error) { return tr_fail(error, error_nbytes, std::string(5000, 'x').c_str()); }
FUNCTION(no_memory) { return tr_fail_system(error, error_nbytes, "malloc", ENOMEM); }
FUNCTION(wants_file) {
    int fd = open("/etc/passwd", O_RDONLY);
    return fd >= 0 ? 0 : tr_fail_system(error, error_nbytes, "open /etc/passwd", errno);
}
FUNCTION(forks) {
    int pid = fork();
    return pid >= 0 ? 0 : tr_fail_system(error, error_nbytes, "fork", errno);
}
FUNCTION(names) {
    std::string text;
    for (size_t i = 0; i < n; i++) text += std::string(in[i].name) + ":" + std::to_string(in[i].dtype) + " ";
    for (size_t i = 0; i < m; i++) text += std::string(out[i].name) + " ";
    return tr_fail(error, error_nbytes, text.c_str());
}
FUNCTION(triangle) { // outputs 0 to m - 1 have as many elements as their number, each of another type
    const int32_t types[] = {TR_UINT8, TR_INT16, TR_INT32, TR_FLOAT64};
    for (size_t i = 0; i < m; i++) {
        const int64_t shape[] = {1, static_cast<int64_t>(i)};
        void *data = tr_make(&out[i], types[i % 4], 2, shape);
        if (!data) return tr_fail(error, error_nbytes, "no room");
        memset(data, 0, out[i].nbytes);
    }
    return 0;
}
FUNCTION(large) { // outputs of as many bytes as the inputs say
    for (size_t i = 0; i < m; i++) {
        const int64_t size = static_cast<const int64_t *>(in[0].data)[i];
        void *data = tr_make(&out[i], TR_UINT8, 1, &size);
        if (!data) return tr_fail(error, error_nbytes, "no room");
        memset(data, 7, out[i].nbytes);
    }
    return 0;
}
FUNCTION(lies) { // of its output, as the input says
    const int64_t *lie = static_cast<const int64_t *>(in[0].data);
    const int64_t two = 2;
    tr_make(&out[0], TR_FLOAT32, 1, &two);
    if (lie[0] == 0) out[0].ndim = lie[1];
    if (lie[0] == 1) out[0].shape[0] = lie[1];
    if (lie[0] == 2) out[0].nbytes = lie[1];
    if (lie[0] == 3) out[0].data = reinterpret_cast<void *>(lie[1]);
    if (lie[0] == 4) out[0].dtype = lie[1];
    return 0;
}
"""
)

AT_LOAD = "#define AT_LOAD __attribute__((constructor)) static void begin()\n"
