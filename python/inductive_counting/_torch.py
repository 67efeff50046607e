"""Modules of PyTorch: exported to ONNX in memory, and compared with the file before it is trusted."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import _native
from ._errors import ArgumentError, Error, ModelError
from ._models import of_function
from ._tasks import Task

log = logging.getLogger("inductive_counting")

#: The names of ``exporter=``, and in which order they are tried.
EXPORTERS = ("torchscript", "dynamo")
#: Sequences of up to this many tokens are compared.
MOST_TOKENS = 4096
#: Longer ones are compared alone.
MANY_TOKENS = 1024
#: Logits may differ by this much, or by this part of the largest one.
TOLERANCE = 1e-3
#: Exporters change state of the whole process, as the filters of warnings are; a failing one prints its graph.
_EXPORTING = threading.Lock()


class _Logits(torch.nn.Module):
    """The module with nothing but its logits, float32 ``[batch, seq, vocab]``."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return _logits(self.module(input_ids)).float()


def _logits(found: Any) -> torch.Tensor:
    """The logits in what a module returns: a tensor, a tuple that begins with them, or what has ``logits``: an object, a
    dictionary."""
    if isinstance(found, Mapping):
        found = found.get("logits", found)
    found = getattr(found, "logits", found)
    found = found[0] if isinstance(found, (tuple, list)) else found
    if not isinstance(found, torch.Tensor):
        raise ModelError(
            f"the module returned a {type(found).__name__}\n  hint: logits are a tensor [batch, seq, vocab], the first of a "
            "tuple, or called `logits`"
        )
    return found


class _Differs(ModelError):
    """The exported file computes something else."""


def load(
    module: torch.nn.Module,
    task: Task,
    exporter: str,
    longest: int,
    train_max_length: int | None,
    options: dict[str, Any],
) -> _native.Model:
    """The module as ONNX; or, with a warning, as a function, where it cannot be exported.

    Raises:
        ModelError: the module does not run, or the file of the only exporter that may be used differs from it.
    """
    if exporter not in ("auto", "none", *EXPORTERS):
        raise ArgumentError(f"there is no exporter `{exporter}`\n  hint: auto, torchscript, dynamo, or none")
    name = type(module).__name__
    facts = {"task": task.name, "arch": name}
    if train_max_length is not None:
        facts["train_max_length"] = str(train_max_length)
    with _evaluating(module) as run:
        tests, refused = _tests(run, task, longest)
        reasons: list[str] = []
        kinds = EXPORTERS if exporter == "auto" else () if exporter == "none" else (exporter,)
        if refused is not None:
            # A file would run where the module does not, and give scores that nobody could have.
            reasons, kinds = [refused], ()
        example = _example(module, [ids for ids, _ in tests if len(ids) > 1][-1])
        if kinds and (where := _decision(module, example)):
            # Both exporters forget it, and only at some lengths or in some batches does that show.
            decides = f"decides something in Python by values or sizes of tensors ({where}), which an ONNX file forgets"
            if exporter != "auto":
                hint = "exporter='none' has PyTorch run the module, which is slower"
                raise ModelError(f"{name} {decides}\n  hint: {hint}")
            reasons, kinds = [f"it {decides}"], ()
        for kind in kinds:
            try:
                model = _export(module, kind, example)
            except Exception as error:  # exporters fail with exceptions of every kind
                reasons.append(f"{kind}: {_first_line(error)}")
                continue
            try:
                loaded = _native.Model.from_bytes(name, with_metadata(model, facts), **options)
                _compare(loaded, tests, name, kind)
            except _Differs as error:
                if exporter != "auto":
                    raise
                reasons.append(f"{kind}: {_first_line(error)}")
            except Error as error:
                reasons.append(f"{kind}: {_first_line(error)}")
            else:
                for note in loaded.notes:
                    log.info(note)
                return loaded
        if exporter != "none":
            warnings.warn(
                f"{name} cannot be exported to ONNX as it is, so that PyTorch runs it, which is slower ({'; '.join(reasons)})",
                stacklevel=5,  # the line that calls sweep()
            )
        # Its sweep takes place later, outside of this context.
        return of_function(_in_evaluation(module), task, train_max_length, lenient=True, name=name)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None and not isinstance(error, Error):
        error = error.__cause__  # exporters say last what was wrong
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]]:
    """Within, every part of the module is in evaluation mode, and without gradients; afterwards each is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def run(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = _logits(module(torch.from_numpy(ids).to(device)))
        return found.float().cpu().numpy()

    try:
        with torch.no_grad():
            yield run
    finally:
        for part, training in modes:
            part.training = training


def _in_evaluation(module: torch.nn.Module) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def run(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with _evaluating(module) as logits:
            return logits(ids)

    return run


def _tests(
    run: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], task: Task, longest: int
) -> tuple[list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], str | None]:
    """Ids ``[rows, seq]`` of several lengths, ascending, alone and in threes (a test of the task, and rows at random), with the
    module's logits of them; and why the module refused the longest, if it did.

    The longest is the sweep's, but for modules that do not take as much: then the longest that runs of its halves.
    """
    draw = np.random.default_rng(0)

    def ids(length: int, rows: int) -> np.ndarray[Any, Any]:
        try:
            test = np.array(task.test(length)[0], np.int64)
        except ArgumentError:  # the task has no test of that length
            test = draw.integers(0, len(task.vocabulary), length)
        others = draw.integers(0, len(task.vocabulary), (rows - 1, len(test)))
        return np.concatenate([test[None], others])[:, :MOST_TOKENS]

    length, refused = max(1, min(longest, MOST_TOKENS)), None
    while True:
        given = ids(length, 3 if length <= MANY_TOKENS else 1)
        try:
            last = (given, run(given))
            break
        except ModelError:
            raise
        except Exception as error:
            refused = refused or f"it refuses {given.shape[1]} tokens: {_first_line(error)}"
            if length == 1:
                name = f"the module refused ids of the shape {given.shape}"
                raise ModelError(f"{name}: {_first_line(error)}\n  hint: it is called with int64 ids [batch, seq]") from error
            length //= 2
    rows = {length // 4: 1, 3 * length // 4: 1, (length + 1) // 2: 3, MANY_TOKENS: 3, 1: 3}
    shorter = [ids(one, rows[one]) for one in sorted(rows) if 1 <= one < length]
    tests = [(given, run(given)) for given in shorter] + [last]
    width = len(task.vocabulary)
    for given, logits in tests:
        if logits.shape[:2] != given.shape or logits.ndim != 3 or logits.shape[2] != width:
            raise ModelError(
                f"the module's logits have the shape {logits.shape} for ids of the shape {given.shape}\n  hint: they are [batch, "
                f"seq, vocab], and the task {task.name} has {width} tokens"
            )
    return tests, refused


def _example(module: torch.nn.Module, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    """The ids that a module is exported with: 2 rows of an even number of tokens, which is not the only one that is compared:
    what is fixed to it by mistake shows."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.from_numpy(np.ascontiguousarray(ids[:2, : max(2, min(6, ids.shape[1]))])).to(device)


@contextlib.contextmanager
def _exporting() -> Iterator[list[warnings.WarningMessage]]:
    """Alone, without what exporters print and warn of; the warnings are kept."""
    with _EXPORTING, _unfused(), warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about what is compared afterwards, and about the exporters' own future
        yield said


def _decision(module: torch.nn.Module, example: torch.Tensor) -> str | None:
    """Where the module decides something in Python by values or sizes of tensors, if it does: a trace tells. PyTorch's own
    modules know what they do; others may take another way for other ids, at other lengths, or in other batches. (That a size
    has become a number, of which PyTorch warns as well, shows in the comparison.)"""
    jit: Any = torch.jit  # its stubs lack what is used here
    own = str(Path(torch.__file__).parent)
    with _exporting() as said:
        warnings.simplefilter("always", jit.TracerWarning)
        with contextlib.suppress(Exception):  # what cannot be traced may have decided before
            jit.trace(_Logits(module).eval(), (example,), check_trace=False)
    for one in said:
        is_one = issubclass(one.category, jit.TracerWarning) and "Python boolean" in str(one.message)
        if is_one and not one.filename.startswith(own):
            return f"{Path(one.filename).name}, line {one.lineno}"
    return None


def _export(module: torch.nn.Module, exporter: str, example: torch.Tensor) -> bytes:
    """The module as a serialised ``ModelProto``, with symbolic batch and seq."""
    wrapped = _Logits(module).eval()
    names: dict[str, Any] = {"input_names": ["input_ids"], "output_names": ["logits"]}
    with _exporting():
        if exporter == "torchscript":
            file = io.BytesIO()
            axes = {name: {0: "batch", 1: "seq"} for name in ("input_ids", "logits")}
            to: Any = file  # PyTorch's annotations forget that it takes one
            torch.onnx.export(wrapped, (example,), to, dynamo=False, dynamic_axes=axes, **names)
            return file.getvalue()
        for needed in ("onnx", "onnxscript"):
            if importlib.util.find_spec(needed) is None:
                raise ModuleNotFoundError(f"it needs the package {needed}")
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
        with _quiet("torch.onnx"):
            program = torch.onnx.export(wrapped, (example,), dynamo=True, dynamic_shapes=(dims,), verbose=False, **names)
        assert program is not None
        model: bytes = program.model_proto.SerializeToString()
        return model


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Without the fused operator of `nn.TransformerEncoderLayer` in evaluation mode, which ONNX does not have."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without the log of a library that speaks of what nobody asked for."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _compare(
    loaded: _native.Model, tests: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], name: str, exporter: str
) -> None:
    """Sees whether the file computes what the module does.

    Raises:
        _Differs: it does not, and where.
    """
    said = []
    for ids, wanted in tests:
        batch, seq = ids.shape
        try:
            memory, vocab = loaded.logits(ids.ravel().tolist(), batch, seq)
        except ModelError as error:
            raise _Differs(
                f"the ONNX export of {name} ({exporter}) does not run on {seq} tokens, on which the module does: "
                f"{_first_line(error)}\n  hint: {_other(exporter)}"
            ) from error
        found = np.frombuffer(memory, np.float32).reshape(batch, seq, vocab)
        scale = TOLERANCE * max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
        with np.errstate(invalid="ignore"):  # of infinities, which masks are made of
            apart = np.where((found == wanted) | (np.isnan(found) & np.isnan(wanted)), 0, np.abs(found - wanted))
        same = float((found.argmax(-1) == wanted.argmax(-1)).mean())
        worst = float(apart.max(initial=0.0))
        if not worst <= scale:  # also where something is NaN
            raise _Differs(
                f"the ONNX export of {name} ({exporter}) differs from the module: on {seq} tokens by {worst:.1g} in a logit, with "
                f"the same argmax at {100 * same:.1f} % of them\n  hint: {_other(exporter)}"
            )
        said.append(f"{seq} tokens: by {worst:.0e}, {100 * same:.1f} % of argmaxes")
    log.info("%s agrees with its ONNX export (%s) on %s", name, exporter, "; ".join(said))


def _other(exporter: str) -> str:
    other = next(kind for kind in EXPORTERS if kind != exporter)
    return f"try exporter={other!r}; exporter='none' has PyTorch run the module, which is slower"


def with_metadata(model: bytes, entries: dict[str, str]) -> bytes:
    """A serialised ``ModelProto`` with these entries in its metadata. Protobuf allows further ones at the end."""

    def varint(number: int) -> bytes:
        out = bytearray()
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*out, number])

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    props = (field(1, key.encode()) + field(2, value.encode()) for key, value in entries.items())
    return model + b"".join(field(14, entry) for entry in props)  # ModelProto.metadata_props
