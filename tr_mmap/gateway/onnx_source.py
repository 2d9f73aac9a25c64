"""The algorithm that runs a model of ONNX. A contained process runs it; the gateway never imports onnxruntime."""

from __future__ import annotations

from typing import Final

__all__ = ["ONNX_SOURCE"]

ONNX_SOURCE: Final = """
import os

import numpy as np
import onnxruntime

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
           "tensor(bool)": "bool"} | {
    f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_kept = {}


def _open(model):
    if "session" not in _kept:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        (data,) = model.values()
        _kept["session"] = onnxruntime.InferenceSession(
            data.tobytes(), options, providers=["CPUExecutionProvider"]
        )
    return _kept["session"]


def check(model):
    _open(model)


def _check(wanted, given):  # of the input's shape, only numbers are fixed; one without a shape may have any
    dtype, shape = _DTYPES.get(wanted.type, str(given.dtype)), wanted.shape or given.shape
    fits = dtype == str(given.dtype) and len(shape) == given.ndim
    if not fits or any(isinstance(size, int) and size != own for size, own in zip(shape, given.shape)):
        sizes = ", ".join(str(size) if isinstance(size, int) else "any" for size in shape)
        raise TypeError(
            f"the input {wanted.name!r} is {given.dtype} of shape {list(given.shape)}, and the model takes {dtype} of "
            f"shape [{sizes}]; nothing is converted"
        )


def forward(inputs):
    session = _open(inputs["model"])
    given = {name: value for name, value in inputs.items() if name != "model"}
    wanted = {each.name: each.type for each in session.get_inputs()}
    if given and not given.keys() & wanted.keys() and len(given) == len(wanted):
        given = dict(zip(wanted, given.values()))  # in their order
    if given.keys() != wanted.keys():
        raise TypeError(f"the model takes {', '.join(wanted)}, and was given {', '.join(given) or 'nothing'}")
    fed = {
        name: value if isinstance(value, np.ndarray) else np.asarray(value, _DTYPES.get(wanted[name]))
        for name, value in given.items()
    }
    for each in session.get_inputs():
        _check(each, fed[each.name])
    names = [each.name for each in session.get_outputs()]
    results = dict(zip(names, session.run(names, fed)))
    return results[names[0]] if len(names) == 1 else results
"""
