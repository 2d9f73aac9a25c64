"""What pyproject.toml cannot say: where numpy's headers are, what an index shows, and what could not be compiled."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# The hot path's few operations, and what contains algorithms. Where they cannot be compiled, tr_mmap.native does the
# first in plain Python.
EXTENSIONS = [
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

NOT_COMPILED = """
********************************************************************************
WARNING: tr_mmap is being installed WITHOUT compiled code. The compiler's message
is above. Not built: {names}

What this means: sessions, files and the store work, in plain Python. Small
messages take five to ten times as long. A sandbox, and a gateway's algorithms,
refuse to start. `tr-mmap doctor` shows this later.

To change it: install a C compiler and Python's headers (Debian and Ubuntu:
apt install gcc libc6-dev python3-dev), and then install again, without pip's
cache: pip install --force-reinstall --no-cache-dir --no-deps WHAT-YOU-INSTALLED
********************************************************************************
"""


class BuildExtensions(build_ext):
    """Builds the extensions; an installation without them is complete, but says so.

    With ``TR_MMAP_MUST_COMPILE=1`` in the environment it fails instead: for wheels that others will install.
    """

    def run(self) -> None:
        self.missing: list[str] = []
        super().run()
        if self.missing:
            print(NOT_COMPILED.format(names=", ".join(self.missing)), file=sys.stderr, flush=True)
            if os.environ.get("TR_MMAP_MUST_COMPILE", "") not in ("", "0"):
                raise SystemExit("TR_MMAP_MUST_COMPILE is set, so this is an error.")

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception:
            self.missing.append(ext.name)
            raise  # setuptools goes on, because the extension is optional


_FENCES = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_REFERENCE = re.compile(r"(!?)\[([^]]*)\]\((?!https?:)([^)\s]+)\)")


def index_page(text: str, links: str, images: str) -> str:
    """The README as a package index shows it, where relative links lead nowhere and relative images are not shown.

    Args:
        text: Markdown.
        links: the address of a page, in which ``{path}`` is replaced; if it is empty, a link becomes its text and the
            path of the file, which the source distribution has.
        images: the same of an image.
    """

    def absolute(found: re.Match[str]) -> str:
        is_image, said, path = found.groups()
        template = images if is_image else links
        if template:
            return f"{is_image}[{said}]({template.format(path='README.md' + path if path.startswith('#') else path)})"
        name = path.partition("#")[0]
        return f"{said} (`{name}`)" if name and said.strip("`") != name else said

    parts = _FENCES.split(text)
    parts[::2] = [_REFERENCE.sub(absolute, part) for part in parts[::2]]
    if not links:
        title, _, rest = parts[0].partition("\n")
        parts[0] = f"{title}\n\nThe files that are named in brackets are in the source distribution.\n{rest}"
    return "".join(parts)


def read_index_page() -> str:
    """The README of this folder, by the addresses in ``pyproject.toml``."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tr_mmap"]["index-page"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return index_page(text, settings["links"], settings["images"])


if __name__ == "__main__":
    setup(
        ext_modules=EXTENSIONS,
        cmdclass={"build_ext": BuildExtensions},
        long_description=read_index_page(),
        long_description_content_type="text/markdown",
    )
