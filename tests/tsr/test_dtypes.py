"""Promises of the dtype table."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import FRAMEWORKS, ROOT, TOOLS, environment

from tr_mmap import PythonSession
from tr_mmap.errors import BadMessage, UnsupportedTensor
from tr_mmap.tsr import dtypes
from tr_mmap.tsr.dtypes import TABLE, DType, by_code, by_name, from_numpy, from_torch, resolve

ALL = pytest.mark.parametrize("dtype", TABLE, ids=lambda d: d.name)


def test_codes_never_change() -> None:
    assert [(d.code, d.name, d.itemsize) for d in TABLE] == [
        (1, "float32", 4),
        (2, "int8", 1),
        (3, "int32", 4),
        (4, "float16", 2),
        (5, "bfloat16", 2),
        (6, "float64", 8),
        (7, "int16", 2),
        (8, "uint8", 1),
        (9, "bool", 1),
        (10, "int64", 8),
        (11, "uint16", 2),
        (12, "uint32", 4),
        (13, "uint64", 8),
        (14, "complex64", 8),
        (15, "complex128", 16),
        (16, "float8_e4m3fn", 1),
        (17, "float8_e5m2", 1),
        (18, "float8_e4m3fnuz", 1),
        (19, "float8_e5m2fnuz", 1),
        (20, "float8_e8m0fnu", 1),
    ]


@ALL
def test_every_type_is_found_from_every_side(dtype: DType) -> None:
    assert by_code(dtype.code) is dtype
    assert by_name(dtype.name) is dtype
    assert from_numpy(dtype.numpy) is dtype
    assert from_numpy(dtype.numpy.newbyteorder(">")) is dtype
    assert from_torch(dtype.torch) is dtype
    assert pickle.loads(pickle.dumps(dtype)) is dtype


@ALL
def test_sizes_and_names_are_those_of_numpy_and_torch(dtype: DType) -> None:
    assert dtype.numpy.itemsize == dtype.torch.itemsize == dtype.itemsize
    assert dtype.numpy.name == dtype.name
    assert str(dtype.torch) == f"torch.{dtype.torch_name}"
    assert dtype.numpy.newbyteorder("<") == dtype.numpy


# What numpy and torch both have, and the table does not.
LEFT_OUT = {
    "complex32",  # torch warns that it is experimental
    # numpy has one in each byte; torch has them without operations, and their bytes are its own business.
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
}


def is_scalar_type(value: Any) -> bool:
    """Whether something that ``ml_dtypes`` has is the class of a dtype's scalars."""
    try:
        return isinstance(value, type) and np.dtype(value).type is value
    except TypeError:
        return False


def test_everything_numpy_and_torch_both_have_is_in_the_table() -> None:
    import ml_dtypes

    numpy_names = {np.dtype(each).name for each in np.sctypeDict.values()}
    ml_names = {np.dtype(each).name for each in vars(ml_dtypes).values() if is_scalar_type(each)}
    assert {"bool", "bfloat16", "float8_e5m2", "bcomplex32", "int4"} <= numpy_names | ml_names
    torch_names = {
        str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)
    }
    assert {d.name for d in TABLE} == ((numpy_names | ml_names) & torch_names) - LEFT_OUT


def test_types_that_only_differ_in_c_name_are_the_same() -> None:
    assert from_numpy(np.dtype(np.longlong)) is by_name("int64")
    assert from_numpy(np.dtype(np.float32, metadata={"unit": "m"})) is by_name("float32")


@pytest.mark.parametrize(
    "spelling", ["O", "U3", "S5", "V4", "M8[s]", "m8[s]", "longdouble", "clongdouble", [("a", "f4")], "(2,)f4"]
)
def test_numpy_types_without_a_tsr_form_are_refused_by_name(spelling: str) -> None:
    dtype = np.dtype(spelling)
    with pytest.raises(UnsupportedTensor, match=r"supported are float32, .*float8_e8m0fnu") as caught:
        from_numpy(dtype)
    assert str(dtype) in str(caught.value)


def test_a_foreign_dtype_with_a_known_name_is_not_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    import ml_dtypes

    monkeypatch.setitem(dtypes._BY_NAME, "int4", by_name("int8"))
    with pytest.raises(UnsupportedTensor, match="int4"):
        from_numpy(np.dtype(ml_dtypes.int4))


@pytest.mark.parametrize("dtype", [torch.qint8, torch.complex32], ids=str)
def test_torch_types_without_a_tsr_form_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedTensor, match=rf"{dtype} has no TSR form; supported are float32, "):
        from_torch(dtype)


def test_unknown_codes_and_names_are_refused() -> None:
    unknown = len(TABLE) + 1
    with pytest.raises(UnsupportedTensor, match=f"{unknown} is no TSR dtype code"):
        by_code(unknown)
    with pytest.raises(UnsupportedTensor, match="'float31' is no TSR dtype"):
        by_name("float31")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("f4", "float32"),
        ("<f4", "float32"),
        ("=f4", "float32"),
        ("|u1", "uint8"),
        ("double", "float64"),
        ("single", "float32"),
        ("half", "float16"),
        ("float", "float64"),
        ("int", "int64"),
        ("?", "bool"),
        ("c8", "complex64"),
        ("longlong", "int64"),
        (b"f4", "float32"),
        ("bfloat16", "bfloat16"),
        (float, "float64"),
        (int, "int64"),
        (bool, "bool"),
        (complex, "complex128"),
        (np.float32, "float32"),
        (np.longlong, "int64"),
        (np.dtype("i2"), "int16"),
        (torch.half, "float16"),
        (torch.float8_e5m2, "float8_e5m2"),
        (by_name("uint16"), "uint16"),
    ],
    ids=str,
)
def test_a_dtype_is_asked_for_by_every_name_that_numpy_knows(asked: Any, name: str) -> None:
    assert resolve(asked) is by_name(name)


@pytest.mark.parametrize("asked", [">f4", ">i8", ">c16", np.dtype(">u2"), np.dtype("f8").newbyteorder("S")], ids=str)
def test_a_big_endian_dtype_is_refused_with_the_name_to_ask_for(asked: Any) -> None:
    with pytest.raises(UnsupportedTensor, match="is big-endian") as caught:
        resolve(asked)
    assert f"ask for '{np.dtype(asked).name}'" in str(caught.value)


@pytest.mark.parametrize(
    "asked",
    [
        *("", " ", "float31", "f3", "f4,f4", "(2,)f4", ",", "(", "O", "U3", "M8[s]", ">M8[s]", "torch.float32", "f4\0"),
        *(None, 4, 4.0, object, str, np.floating, [("a", "f4")], {}, {"names": ["a"], "formats": ["f4"]}, ["f4"]),
    ],
    ids=repr,
)
def test_what_is_no_dtype_of_the_table_is_refused_by_name(asked: Any) -> None:
    with pytest.raises(UnsupportedTensor, match=r"supported are float32, .*float8_e8m0fnu"):
        resolve(asked)


@FRAMEWORKS
def test_a_loan_has_the_dtype_that_was_asked_for(mapped: PythonSession, framework: str) -> None:
    for asked in ("f4", "<f4", "single", np.float32, torch.float32):
        for _ in range(2):  # the second one on the fast path
            loan = mapped.empty((2, 3), asked, framework)
            assert from_torch(loan.dtype) if framework == "torch" else from_numpy(loan.dtype) is by_name("float32")
    for asked in (">f4", None, "float31"):
        with pytest.raises(UnsupportedTensor):
            mapped.empty((2, 3), asked, framework)


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
import numpy as np
from tr_mmap import MissingPackage, PythonSession, from_file, load, memmap, save
from tr_mmap.tsr import dtypes, encode_v2
path = sys.argv[2]
save(path, np.ones(3))
small = path + ".bf16"
open(small, "wb").write(encode_v2(dtypes.by_name("bfloat16"), (0,), created_ns=1))
actions = {
    "torch": [
        lambda: load(path, framework="torch"),
        lambda: load(path, framework="torch", mode="r"),
        lambda: load(small, framework="torch"),
        lambda: from_file(path),
        lambda: dtypes.by_name("float32").torch,
        lambda: dtypes.import_torch(),
    ],
    "ml_dtypes": [
        lambda: load(small),
        lambda: memmap(small),
        lambda: dtypes.by_name("float8_e5m2").numpy,
        lambda: dtypes.resolve("bfloat16").numpy,
    ],
}[sys.argv[1]]
for action in actions:
    try:
        action()
        print("it worked")
    except MissingPackage as error:
        assert "pip install " + sys.argv[1] in str(error)
        print(error.package)
print(load(path).tolist(), memmap(path).tolist())
"""


@pytest.mark.parametrize(("package", "count"), [("torch", 6), ("ml_dtypes", 4)])
def test_a_package_that_is_not_installed_is_named(tmp_path: Path, package: str, count: int) -> None:
    command = [sys.executable, "-c", WITHOUT, package, str(tmp_path / "x.tsr")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout == f"{package}\n" * count + "[1.0, 1.0, 1.0] [1.0, 1.0, 1.0]\n", done.stderr


def test_a_package_that_lacks_another_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import what_torch_needs")
    script = "from tr_mmap.tsr import dtypes; dtypes.import_torch()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        check=False,
    )
    assert "ModuleNotFoundError: No module named 'what_torch_needs'" in done.stderr
    assert "MissingPackage" not in done.stderr


def test_a_torch_without_the_type_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedTensor, match="has no dtype float31"):
        DType(99, "float31", 4, "float31").torch  # noqa: B018


def test_importing_and_plain_use_import_neither_torch_nor_ml_dtypes(tmp_path: Path) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from tr_mmap.tsr import dtypes; from tr_mmap import tsr\n"
        "for d in [each for each in dtypes.TABLE if each.code in dtypes._NUMPY]:\n"
        "    path = os.path.join(sys.argv[1], d.name)\n"
        "    tsr.save(path, np.zeros(3, d.numpy)); tsr.load(path)\n"
        "print(len(os.listdir(sys.argv[1])), [m for m in ('torch', 'ml_dtypes') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "14 []\n"


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("channel", ["mapped", "legacy"])
def test_a_shape_is_what_numpy_takes_for_one_and_all_else_is_refused(framework: str, channel: Any) -> None:
    session: Any = PythonSession(TOOLS, quiet_mode=True, framework=framework, channel=channel)
    with session:
        for shape in (
            3,
            (),
            (2, 3),
            [2, 3],
            np.int64(3),
            np.array(3),
            np.array([2, 3]),
            range(3),
        ):
            assert tuple(session.empty(shape).shape) == np.empty(shape).shape
        assert tuple(session.empty(torch.tensor([2, 3])).shape) == (2, 3)
        for wrong in (None, 2.5, (2.0,), "3", b"3", {2: 3}.values, np.array([[2, 3]]), np.array([2.0]), (None,), (-1,)):
            with pytest.raises(UnsupportedTensor, match="shape"):
                session.empty(wrong)
        for wrong in ("", "Numpy", 0, False, np):
            with pytest.raises(BadMessage, match="framework"):
                session.empty(3, "float32", wrong)
