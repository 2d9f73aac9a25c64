"""Every dtype is in every place that must know it. ``CONTRIBUTING.md`` lists the places, under *A new dtype*."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import make_vectors
import numpy as np
import pytest
from hypothesis import find
from hypothesis.errors import NoSuchExample
from strategies import bits, dtypes
from support import ROOT

from tr_mmap.store.options import _NO_NUMBERS
from tr_mmap.tsr import safetensors, tensors
from tr_mmap.tsr.dtypes import TABLE, DType, by_code, from_numpy, from_torch

sys.path.insert(0, str(ROOT / "tools"))

from generate_wire import label_of

CPP: Final = ROOT / "tr_mmap" / "cpp" / "include" / "tr_mmap"
TESTS: Final = ROOT / "tests"
# Its format names them not, or only its later releases do.
WITHOUT_SAFETENSORS: Final = {"complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"}
SPECIFICATION: Final = sys.modules["tr_mmap.tsr"].__doc__ or ""


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def is_small_float(dtype: DType) -> bool:
    return "float" in dtype.name and dtype.itemsize <= 2


def in_table(dtype: DType) -> bool:
    return TABLE[dtype.code - 1] is dtype


def in_generated_table(dtype: DType) -> bool:
    label = label_of(dtype.name)
    row = f'{{DType::{label}, "{label}", "{dtype.name}", {dtype.itemsize}}}'
    text = read(CPP / "dtype_table.hpp")
    return row in text and f"    {label} = {dtype.code},\n" in text


def in_specification(dtype: DType) -> bool:
    is_last = dtype.code == len(TABLE)
    if is_last and f"dtype code, 1 to {dtype.code}\n" not in SPECIFICATION:
        return False
    return bool(re.search(rf"(?<!\d){dtype.code} {dtype.name}\b", SPECIFICATION))


def in_frameworks(dtype: DType) -> bool:
    theirs = dtype.numpy.itemsize == dtype.torch.itemsize == dtype.itemsize
    return theirs and from_numpy(dtype.numpy) is from_torch(dtype.torch) is by_code(dtype.code)


def in_tensors(dtype: DType) -> bool:
    array = (np.arange(6 * dtype.itemsize, dtype=np.uint8) & 1).view(dtype.numpy).reshape(2, 3)
    back, elements = tensors.to_array(tensors.as_torch(array, dtype))
    return back is dtype and elements.shape == array.shape and bits(elements) == bits(array)


def in_safetensors(dtype: DType) -> bool:
    return (dtype.name in safetensors.NAMES) != (dtype.name in WITHOUT_SAFETENSORS)


def in_store(dtype: DType) -> bool:
    return (dtype.name in _NO_NUMBERS) == (dtype.name == "bool" or "complex" in dtype.name)


def in_cpp_types(dtype: DType) -> bool:
    of_code, _, of_type = read(CPP / "dtype.hpp").partition(
        "namespace detail {\n\ntemplate <class T>\nconstexpr DType int"
    )
    label = label_of(dtype.name)
    return f"case DType::{label}: " in of_code and bool(re.search(rf"DType::{label}\b", of_type))


def in_macros(dtype: DType) -> bool:
    label = label_of(dtype.name)
    off, on = read(CPP / "macros_off.hpp"), read(CPP / "macros_on.hpp")
    return f'push_macro("{label}")' in off and f"#undef {label}\n" in off and f'pop_macro("{label}")' in on


def in_vector_script(dtype: DType) -> bool:
    return make_vectors.DTYPES.get(dtype.name) == (dtype.code, dtype.itemsize)


def in_vectors(dtype: DType) -> bool:
    index = {each["file"] for each in json.loads(read(TESTS / "vectors" / "index.json"))["good"]}
    wanted = {f"good/v2-{dtype.name}-{rank}.tsr" for rank in make_vectors.SHAPES}
    return wanted <= index and all((TESTS / "vectors" / each).is_file() for each in wanted)


def in_fixed_codes(dtype: DType) -> bool:
    return f'({dtype.code}, "{dtype.name}", {dtype.itemsize}),' in read(TESTS / "tsr" / "test_dtypes.py")


def in_strategies(dtype: DType) -> bool:
    try:
        return find(dtypes(), lambda each: each is dtype) is dtype
    except NoSuchExample:
        return False


def in_cpp_tests(dtype: DType) -> bool:
    shown = re.search(rf'show_low_float<(\w+)>\("{dtype.name}"', read(TESTS / "cpp" / "tools.cpp"))
    if not is_small_float(dtype):
        return shown is None
    return shown is not None and f"every({shown[1]}(), " in read(TESTS / "cpp" / "formats.cpp")


def in_documents(dtype: DType) -> bool:
    listed = re.search(r"^- dtypes: .*?\.$", read(ROOT / "docs" / "files.md"), re.MULTILINE | re.DOTALL)
    return listed is not None and f"`{dtype.name}`" in listed[0]


def in_reference(dtype: DType) -> bool:
    section = read(ROOT / "docs" / "reference" / "cpp.md").partition("## Dtypes\n")[2].partition("\n## ")[0]
    listed = re.search(r"^\| `DType` \|.*$", section, re.MULTILINE)
    return listed is not None and f"`{label_of(dtype.name)}`" in listed[0]


def in_changelog(dtype: DType) -> bool:
    return not re.search(r"\b\d+ dtypes", read(ROOT / "CHANGELOG.md"))  # a number of them would be wrong soon


PLACES: Final[dict[str, Callable[[DType], bool]]] = {
    "tr_mmap/wire/header.py": in_table,
    "tr_mmap/cpp/include/tr_mmap/dtype_table.hpp": in_generated_table,
    "tr_mmap/tsr/__init__.py": in_specification,
    "tr_mmap/tsr/dtypes.py": in_frameworks,
    "tr_mmap/tsr/tensors.py": in_tensors,
    "tr_mmap/tsr/safetensors.py": in_safetensors,
    "tr_mmap/store/options.py": in_store,
    "tr_mmap/cpp/include/tr_mmap/dtype.hpp": in_cpp_types,
    "tr_mmap/cpp/include/tr_mmap/macros_off.hpp": in_macros,
    "tests/make_vectors.py": in_vector_script,
    "tests/vectors/": in_vectors,
    "tests/tsr/test_dtypes.py": in_fixed_codes,
    "tests/strategies.py": in_strategies,
    "tests/cpp/tools.cpp": in_cpp_tests,
    "docs/files.md": in_documents,
    "docs/reference/cpp.md": in_reference,
    "CHANGELOG.md": in_changelog,
}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(each, id=each + (" with torch" if PLACES[each] in (in_frameworks, in_tensors) else ""))
        for each in PLACES
    ],
)
def test_every_dtype_is_in_this_place(place: str) -> None:
    failures = {}
    for dtype in TABLE:
        try:
            if not PLACES[place](dtype):
                failures[dtype.name] = "it is not there, or is not the same there"
        except Exception as error:  # whatever a half added type makes its place raise
            failures[dtype.name] = f"{type(error).__name__}: {error}"
    assert not failures, f"{place}: {failures}; see 'A new dtype' in CONTRIBUTING.md"


def test_the_checklist_names_these_places() -> None:
    recipe = read(ROOT / "CONTRIBUTING.md").partition("## A new dtype\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\d+\. `([\w./]+)`", recipe, re.MULTILINE) == list(PLACES)
