"""Runs models of torch and Python source on torch tensors. What a model has in it is opened here, contained.

Inputs are torch tensors in private mappings: a store changes a copy of the page, which no one else sees.
"""

from __future__ import annotations

import gc
import importlib
import io
import math
import mmap
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import torch
import torch.export

from ...tsr import dtypes
from ...tsr.tensors import from_buffer
from ..messages import Answer, Fault, Job, Work
from ..native_messages import NativeOptions
from ..runner import code_of, finish, open_bundle
from . import python_code
from .compiled import Refused

__all__ = ["answer"]

for _name_of_module in ("torch.export.pt2_archive._package", "torch._export.serde.serialize"):
    try:  # what torch imports as it loads a program first: in the zygote, once, and not in each process
        importlib.import_module(_name_of_module)
    except ImportError:  # another release
        pass

_ZIP: Final = b"PK\x03\x04"
_EXPORTED, _SCRIPT, _SOURCE = "torch.export program", "TorchScript model", "Python source"
_FORWARD: Final = "forward"

_kept: dict[str, Any] = {}  # between runs of the algorithm whose process this is: its model, how many there were


def answer(job: Job, work: Work, memory: mmap.mmap, fds: list[int]) -> Answer:
    """Do a job; results go into the outputs' area. The descriptors are of the inputs, the outputs, and of loans."""
    inputs_fd, outputs_fd, *loans = fds
    code = code_of(work, memory, loans)
    options = msgspec.convert(work.options, NativeOptions) if work.options else NativeOptions([])
    try:
        kind = _kind_of(code)
        if job.is_check:
            function = python_code.check(work.name, code, work.function) if kind == _SOURCE else work.function
            if options.is_opened and kind != _SOURCE:
                _open(kind, code)
            return Answer(function=function or (None if kind == _SOURCE else _FORWARD))
        if options.is_reused:
            _end_inputs()
        inputs = _open_inputs(work, [inputs_fd, *loans])
        return finish(job, work, outputs_fd, lambda: _run(kind, work, code, options, inputs))
    except Refused as error:
        return Answer(fault=Fault("algorithm", error.kind, str(error)))


def _end_inputs() -> None:
    """Let go of the inputs of the run before, which count for the limit on memory until they are gone."""
    runs = _kept["runs"] = _kept.get("runs", 0) + 1
    if runs == 1:
        return
    gc.collect()
    if runs == 2:  # what the first run has made stays, and a model may be of many objects: look at them no more
        gc.freeze()


def _kind_of(code: bytes) -> str:
    """What the code is, by the names in its archive; nothing of it is opened.

    Raises:
        Refused: it is something else.
    """
    if not code.startswith(_ZIP):
        if code.startswith(b"\x80"):
            raise _refused("a pickle")
        return _SOURCE
    try:
        with zipfile.ZipFile(io.BytesIO(code)) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()} | set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise Refused("NotAModel", f"the code is a damaged archive: {error}") from None
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return _EXPORTED
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return _SCRIPT
    raise _refused("what torch.save writes" if "data.pkl" in names else "an archive of something else")


def _refused(what: str) -> Refused:
    return Refused(
        "NotAModel",
        f"the code is {what}; give Python source, or a model that torch.export.save or torch.jit.save has written",
    )


def _open_inputs(work: Work, fds: list[int]) -> dict[str, Any]:
    inputs: dict[str, Any] = dict(work.values)
    ends: dict[int, int] = {}
    for spec in work.tensors:
        end = spec.offset + dtypes.by_name(spec.dtype).itemsize * math.prod(spec.shape)
        ends[spec.area] = max(1, end, ends.get(spec.area, 0))  # no more of it, for all of it counts as memory
    for bundle in work.bundles.values():
        ends[bundle.area] = 0  # all of it
    # New mappings for each run: the former ones keep what was stored into them.
    areas = {area: mmap.mmap(fds[area], end, flags=mmap.MAP_PRIVATE) for area, end in ends.items()}
    for spec in work.tensors:
        dtype = dtypes.by_name(spec.dtype)
        inputs[spec.name] = from_buffer(areas[spec.area], dtype, spec.shape, spec.offset, "torch")
    for name, bundle in work.bundles.items():
        inputs[name] = open_bundle(bundle, areas[bundle.area], "torch")
    return inputs


def _run(kind: str, work: Work, code: bytes, options: NativeOptions, inputs: dict[str, Any]) -> Any:
    arguments = None if work.arguments is None else [inputs[str(number)] for number in range(work.arguments)]
    if kind == _SOURCE:
        return python_code.run(work.name, code, work.function, inputs, arguments)
    if "model" not in _kept:
        _kept["model"] = _open(kind, code)
    model = _kept["model"] if options.is_reused else _kept.pop("model")
    function = _function_of(kind, model, work)
    with torch.no_grad():
        if arguments is not None:
            result = function(*arguments)
        else:
            names, count = _parameters_of(kind, model, function)
            positional, named = _arrange(work.name, inputs, names, count)
            result = function(*positional, **named)
    return _name(result, options.outputs)


def _open(kind: str, code: bytes) -> Any:
    buffer = io.BytesIO(code)
    try:
        if kind == _EXPORTED:
            return torch.export.load(buffer).module()
        load: Callable[..., Any] = torch.jit.load  # which torch has not typed
        return load(buffer, map_location="cpu")
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise Refused("NotAModel", f"torch cannot load the {kind}: {error}"[:8000]) from error


def _function_of(kind: str, model: Any, work: Work) -> Callable[..., Any]:
    name = work.function or _FORWARD
    function = getattr(model, name, None) if kind == _SCRIPT or name == _FORWARD else None
    if not callable(function):
        raise Refused("NameError", f"the {kind} {work.name!r} has no method {name!r}")
    found: Callable[..., Any] = model if name == _FORWARD else function
    return found


def _parameters_of(kind: str, model: Any, function: Any) -> tuple[list[str], int]:
    """Names of the parameters; and how many take no name: a program takes them as it was exported with them."""
    if kind == _SCRIPT:
        schema = (model.forward if function is model else function).schema
        return [each.name for each in schema.arguments if each.name != "self"], 0
    info = model.graph._codegen.pytree_info
    positional, _ = info.in_spec.unflatten(range(info.in_spec.num_leaves))
    return [each for each in info.orig_args if each != "self"], len(positional)


def _arrange(
    name: str, inputs: Mapping[str, Any], parameters: list[str], count: int
) -> tuple[list[Any], dict[str, Any]]:
    """Inputs by name where their names are those of parameters; in their order where none is.

    Args:
        name: of the algorithm.
        inputs: by name.
        parameters: names of all.
        count: how many of them take no name.

    Raises:
        Refused: some are, and some are not; or one without a name is missing.
    """
    unknown = [each for each in inputs if each not in parameters]
    if inputs and len(unknown) == len(inputs) and len(inputs) <= len(parameters):
        inputs = dict(zip(parameters, inputs.values(), strict=False))
    elif unknown:
        raise Refused(
            "TypeError", f"{name!r} has no parameter {', '.join(unknown)}; it has {', '.join(parameters) or 'none'}"
        )
    missing = [each for each in parameters[:count] if each not in inputs]
    if missing:
        raise Refused("TypeError", f"{name!r} needs {', '.join(missing)}, too; it has {', '.join(parameters)}")
    positional = [inputs[each] for each in parameters[:count]]
    return positional, {each: inputs[each] for each in inputs if each not in parameters[:count]}


def _name(result: Any, names: list[str]) -> Any:
    """Several results get the names that were registered, or numbers."""
    if not isinstance(result, tuple | list) or not any(isinstance(each, torch.Tensor) for each in result):
        return result
    if hasattr(result, "_asdict"):
        return result._asdict()
    if len(names) != len(result):
        names = [f"output_{number}" for number in range(len(result))]
    return dict(zip(names, result, strict=True))
