"""Models of every kind, on their way to the evaluator."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from . import _native, _runtime
from ._errors import ArgumentError, ModelError

if TYPE_CHECKING:
    from ._tasks import Task

#: A path, a ``Run``, an ONNX ``ModelProto`` or its bytes, a ``torch.nn.Module``, or a function ``ids -> logits``.
ModelLike = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, Callable[..., Any], Any]

log = logging.getLogger("inductive_counting")


def is_torch(model: object) -> bool:
    """Whether it is a module of PyTorch, which is not imported for this."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def load(model: ModelLike, task: Task | None, *, iterations: int | None = None, **options: Any) -> _native.Model:
    """The model as the evaluator knows it.

    Raises:
        ArgumentError: it is none of those that can be swept, or needs a task.
    """
    loaded = _load(model, task, **options)
    if iterations is not None:
        loaded.set_iterations(iterations)
    return loaded


def _load(
    model: ModelLike,
    task: Task | None,
    *,
    provider: str = "auto",
    threads: int | None = None,
    logits: str | None = None,
    train_max_length: int | None = None,
    exporter: str = "auto",
    longest: int = 1000,
) -> _native.Model:
    _runtime.find()
    if getattr(type(model), "_is_run", False):
        model = model._onnx()  # type: ignore[union-attr]
    options: dict[str, Any] = {"provider": provider, "threads": threads, "logits": logits}
    if isinstance(model, (str, os.PathLike)):
        loaded = _native.Model.load(Path(model), **options)
    elif isinstance(model, (bytes, bytearray, memoryview)):
        loaded = _native.Model.from_bytes("the model in memory", bytes(model), **options)
    elif hasattr(model, "SerializeToString"):
        loaded = _native.Model.from_bytes(_name(model, "the ModelProto"), model.SerializeToString(), **options)
    elif is_torch(model):
        from . import _torch

        module: Any = model
        return _torch.load(module, _needed(task, model), exporter, longest, train_max_length, options)
    elif callable(model):
        return of_function(model, _needed(task, model), train_max_length)
    else:
        raise ArgumentError(
            f"a {type(model).__name__} is no model\n  hint: a path, an ONNX ModelProto or its bytes, a torch.nn.Module, or a "
            "function of ids [batch, seq] that returns logits [batch, seq, vocab]"
        )
    for note in loaded.notes:
        log.info(note)
    if loaded.fallback:
        log.info("running on the CPU: %s", loaded.fallback)
    return loaded


def _name(model: Any, otherwise: str) -> str:
    graph = getattr(model, "graph", None)
    return getattr(graph, "name", None) or otherwise


def _needed(task: Task | None, model: object) -> Task:
    if task is None:
        raise ArgumentError(
            f"a {type(model).__name__} does not say which task it is for\n  hint: name it with task=; ic.tasks() lists them"
        )
    return task


def of_function(
    model: Callable[..., Any], task: Task, train_max_length: int | None = None, *, lenient: bool = False, name: str | None = None
) -> _native.Model:
    """A function of ids ``[batch, seq]`` (int64) that returns logits ``[batch, seq, vocab]``, as a model.

    An exception of it ends the sweep, unless it is ``lenient``: then the lengths that fail get a status, as of an ONNX file.
    """
    name = name or getattr(model, "__name__", None) or type(model).__name__
    width = len(task.vocabulary)

    def run(memory: bytearray, batch: int, seq: int) -> bytes:
        ids = np.frombuffer(memory, np.int64).reshape(batch, seq)
        return as_logits(model(ids), ids, width, name).tobytes()

    return _native.Model.from_function(name, run, task._native, train_max_length, lenient)


def as_logits(found: Any, ids: np.ndarray[Any, Any], width: int, name: str) -> np.ndarray[Any, Any]:
    """Logits as float32 ``[batch, seq, vocab]``, of an array or of a tensor."""
    if found is None:
        raise ModelError(f"{name} returned None\n  hint: logits are [batch, seq, vocab], here {(*ids.shape, width)}")
    if hasattr(found, "detach"):
        found = found.detach().float().cpu().numpy()
    try:
        logits = np.ascontiguousarray(found, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} returned a {type(found).__name__}, which is no array of logits: {error}") from error
    wanted = (*ids.shape, width)
    if logits.shape != wanted:
        raise ModelError(
            f"{name} returned an array of the shape {logits.shape} for ids of the shape {ids.shape}\n  hint: logits are "
            f"[batch, seq, vocab], here {wanted}; the task has {width} tokens"
        )
    return logits
