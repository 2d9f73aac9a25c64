"""Runs torch models, and Python source on torch tensors. A model's content is opened here, in the contained process.

Inputs are torch tensors in private mappings: a store changes a copy of the page, which no other process sees.
"""

from __future__ import annotations

import gc
import importlib
import io
import math
import mmap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import torch
import torch.export

from ...tsr import dtypes
from ...tsr.tensors import from_buffer
from ..faults import TORCH_MEMORY
from ..messages import Answer, Fault, Job, Work
from ..native_messages import NativeOptions
from ..runner import code_of, finish, open_bundle
from . import python_code
from .compiled import Refused

__all__ = ["answer"]

for _name_of_module in ("torch.export.pt2_archive._package", "torch._export.serde.serialize"):
    try:  # torch imports these when it loads its first program: import them once, in the zygote, not in each process
        importlib.import_module(_name_of_module)
    except ImportError:  # another release of torch
        pass

_ZIP: Final = b"PK\x03\x04"
_EXPORTED, _SCRIPT, _SOURCE = "torch.export program", "TorchScript model", "Python source"
_FORWARD: Final = "forward"

_kept: dict[str, Any] = {}  # what stays between the runs of a process: its "model", and how many "runs" there were


def answer(job: Job, work: Work, memory: mmap.mmap, fds: list[int]) -> Answer:
    """Do a job; results go into the outputs' area. ``fds`` are of the inputs' area, the outputs' area and the loans."""
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
    """Free the inputs of the run before, which count for the limit on memory until they are unmapped."""
    runs = _kept["runs"] = _kept.get("runs", 0) + 1
    if runs == 1:
        return
    gc.collect()
    if runs == 2:  # what the first run has made stays: exclude it from later collections, as a model has many objects
        gc.freeze()


def _kind_of(code: bytes) -> str:
    """The kind of code, by its first bytes and the names in its archive; nothing in the archive is opened.

    Raises:
        Refused: it is neither source nor a model that can be run.
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
        ends[spec.area] = max(1, end, ends.get(spec.area, 0))  # map no more than needed: it counts as memory
    for bundle in work.bundles.values():
        ends[bundle.area] = 0  # 0 maps all of it
    # New mappings for each run, because stores of former runs are in the former mappings.
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
            parameters = _parameters_of(kind, model, function)
            positional, named = _arrange(work.name, inputs, parameters)
            try:
                result = function(*positional, **named)
            except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if TORCH_MEMORY in str(error):
                    raise
                given = {**dict(zip(parameters.names, positional, strict=False)), **named}
                raise Refused(type(error).__name__, _explained(work.name, error, given, parameters)) from error
    return _name(result, options.outputs)


def _open(kind: str, code: bytes) -> Any:
    buffer = io.BytesIO(code)
    try:
        if kind == _EXPORTED:
            return torch.export.load(buffer).module()
        load: Callable[..., Any] = torch.jit.load  # torch has no types for it
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


@dataclass(frozen=True, slots=True)
class _TensorKind:
    """What a tensor is, or has to be.

    Attributes:
        dtype: its dtype.
        sizes: of its dimensions; None for any.
    """

    dtype: torch.dtype
    sizes: tuple[int | None, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _TensorKind:
        """That of a tensor, perhaps one with sizes that are not known."""
        return cls(tensor.dtype, tuple(each if isinstance(each, int) else None for each in tensor.shape))

    def takes(self, other: _TensorKind) -> bool:
        """Whether another one is as this one has to be."""
        same = self.dtype == other.dtype and len(self.sizes) == len(other.sizes)
        return same and all(own in (None, its) for own, its in zip(self.sizes, other.sizes, strict=True))

    def __str__(self) -> str:
        sizes = ", ".join("any" if each is None else str(each) for each in self.sizes)
        return f"{str(self.dtype).removeprefix('torch.')} of shape [{sizes}]"


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What a model takes.

    Attributes:
        names: names of all parameters.
        count: how many of the first ones are positional: an exported program takes those that it was exported with.
        required: names of those without a default.
        tensors: those that must be tensors, by name, and what they have to be; None where that is not known.
    """

    names: list[str]
    count: int
    required: list[str]
    tensors: dict[str, _TensorKind | None]


def _parameters_of(kind: str, model: Any, function: Any) -> _Parameters:
    if kind == _SCRIPT:
        schema = (model.forward if function is model else function).schema
        arguments = schema.arguments[1:]  # the first is the module itself, whatever its name
        return _Parameters(
            [each.name for each in arguments],
            0,
            [each.name for each in arguments if not each.has_default_value()],
            {each.name: None for each in arguments if str(each.type) == "Tensor"},
        )
    info = model.graph._codegen.pytree_info
    names = [each for each in info.orig_args if each != "self"]
    leaves = [each for each in model.graph.nodes if each.op == "placeholder"]
    positional, _ = info.in_spec.unflatten(leaves)
    wanted = [getattr(each, "meta", {}).get("val") for each in positional]
    tensors: dict[str, _TensorKind | None] = {
        name: _TensorKind.of(each) for name, each in zip(names, wanted, strict=False) if isinstance(each, torch.Tensor)
    }
    return _Parameters(names, len(positional), names[: len(positional)], tensors)


def _arrange(name: str, inputs: Mapping[str, Any], parameters: _Parameters) -> tuple[list[Any], dict[str, Any]]:
    """Assign inputs to parameters: by name, or in their order if no input has a parameter's name.

    Args:
        name: of the algorithm.
        inputs: by name.
        parameters: of the model.

    Raises:
        Refused: some inputs have parameters' names and some do not; or an input is missing, or must be a tensor.
    """
    names = parameters.names
    unknown = [each for each in inputs if each not in names]
    if inputs and len(unknown) == len(inputs) and len(inputs) <= len(names):
        inputs = dict(zip(names, inputs.values(), strict=False))
    elif unknown:
        raise Refused("TypeError", f"{name!r} has no input {', '.join(unknown)}; it has {', '.join(names) or 'none'}")
    missing = [each for each in parameters.required if each not in inputs]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        text = f"the inputs of {name!r} are {', '.join(names)}; {', '.join(missing)} {verb} missing"
        raise Refused("TypeError", text)
    for each, value in inputs.items():
        if each in parameters.tensors and not isinstance(value, torch.Tensor):
            text = f"the input {each!r} of {name!r} is no tensor, and has to be one: its type is {type(value).__name__}"
            raise Refused("TypeError", text)
    positional = [inputs[each] for each in names[: parameters.count]]
    return positional, {each: inputs[each] for each in inputs if each not in names[: parameters.count]}


def _explained(name: str, error: Exception, given: dict[str, Any], parameters: _Parameters) -> str:
    """What a model raised, behind the inputs that are not what it was exported with; else with what it was given."""
    kinds = {each: _TensorKind.of(value) for each, value in given.items() if isinstance(value, torch.Tensor)}
    wrong = [
        f"the input {each!r} of {name!r} is {kind}, and the model takes {wanted}"
        for each, kind in kinds.items()
        if (wanted := parameters.tensors.get(each)) is not None and not wanted.takes(kind)
    ]
    text = f"{type(error).__name__}: {error}"
    if wrong:
        return f"{'; '.join(wrong)}; nothing is converted. {text}"
    return f"{text}. {name!r} was given {', '.join(f'{each}: {kind}' for each, kind in kinds.items()) or 'no tensor'}"


def _name(result: Any, names: list[str]) -> Any:
    """Name several results: by the registered names if their number fits, else ``output_0``, ``output_1``, …"""
    if not isinstance(result, tuple | list) or not any(isinstance(each, torch.Tensor) for each in result):
        return result
    if hasattr(result, "_asdict"):
        return result._asdict()
    if len(names) != len(result):
        names = [f"output_{number}" for number in range(len(result))]
    return dict(zip(names, result, strict=True))
