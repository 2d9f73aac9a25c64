"""What pyproject.toml cannot say: where numpy's headers are."""

from __future__ import annotations

from glob import glob

import numpy
from setuptools import Extension, setup

# The hot path's few operations; where there is no compiler, tr_mmap.native does them in plain Python.
setup(
    ext_modules=[
        Extension(
            "tr_mmap.native._native",
            sorted(glob("tr_mmap/native/*.c")),
            include_dirs=[numpy.get_include()],
            depends=sorted(glob("tr_mmap/native/*.h")),
            define_macros=[("_GNU_SOURCE", "1")],
            extra_compile_args=["-std=c11", "-O2", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        ),
        Extension(
            "tr_mmap.sandbox._kernel",
            ["tr_mmap/sandbox/_kernel.c"],
            depends=["tr_mmap/sandbox/_syscalls.h", "tr_mmap/native/compat.h"],
            define_macros=[("_GNU_SOURCE", "1")],
            extra_compile_args=["-std=c11", "-O2"],
            optional=True,
        ),
        Extension(
            "tr_mmap.sandbox._arena",
            ["tr_mmap/sandbox/_arena.c"],
            depends=["tr_mmap/native/compat.h"],
            include_dirs=[numpy.get_include()],
            define_macros=[("_GNU_SOURCE", "1")],
            extra_compile_args=["-std=c11", "-O2", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        ),
    ]
)
