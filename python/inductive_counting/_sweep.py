"""Length sweeps, and scores of splits."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Union, overload

import pyarrow as pa

from . import _models, _native
from ._errors import ArgumentError
from ._models import ModelLike
from ._progress import Progress, shown
from ._tasks import Task, TaskLike
from ._tasks import task as _task

#: ``range(1, 1001)``, ``[10, 50, 100]``, or a text as on the command line: ``"1..1000"`` (both ends count), ``"10..500:10"``.
Lengths = Union[str, Iterable[int]]


class Scores(NamedTuple):
    """What :func:`score` finds."""

    #: One row: the metrics over all examples.
    total: pa.Table
    #: The same by length, in the columns of a sweep.
    by_length: pa.Table
    #: One row per example, where they were asked for.
    predictions: pa.Table | None


@overload
def sweep(model: ModelLike, *, predictions: Literal[True], **options: Any) -> tuple[pa.Table, pa.Table]: ...
@overload
def sweep(model: ModelLike, *, predictions: bool, **options: Any) -> pa.Table | tuple[pa.Table, pa.Table]: ...
@overload
def sweep(
    model: ModelLike,
    *,
    task: TaskLike | None = None,
    lengths: Lengths = range(1, 1001),
    samples: int = 100,
    until_width: float | None = None,
    seed: int = 0,
    exhaustive: bool = False,
    predictions: Literal[False] = False,
    train_max_length: int | None = None,
    augmentation: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    max_tokens: int | None = None,
    logits: str | None = None,
    iterations: int | None = None,
    exporter: str = "auto",
    progress: Progress = None,
) -> pa.Table: ...
def sweep(  # type: ignore[misc]  # the first signature leaves its options to the second
    model: ModelLike,
    *,
    task: TaskLike | None = None,
    lengths: Lengths = range(1, 1001),
    samples: int = 100,
    until_width: float | None = None,
    seed: int = 0,
    exhaustive: bool = False,
    predictions: bool = False,
    train_max_length: int | None = None,
    augmentation: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    max_tokens: int | None = None,
    logits: str | None = None,
    iterations: int | None = None,
    exporter: str = "auto",
    progress: Progress = None,
) -> pa.Table | tuple[pa.Table, pa.Table]:
    """Scores a model at every length: one row each, with 95 % intervals, in the columns of ``docs/results.md``.

    The model is run on up to ``samples`` test sequences, once on the longest length where it is causal and independent of
    padding, which is probed; then every shorter length is scored from that pass. The table is the one that ``pipeline eval``
    writes as Parquet.

    Args:
        model: A path of an ONNX file; an ONNX ``ModelProto`` or its bytes; a :class:`Run`; a ``torch.nn.Module``, which is
            called with int64 ids ``[batch, seq]`` and returns logits ``[batch, seq, vocab]`` (or a tuple that begins with them,
            or an object that has ``logits``): it is exported to ONNX in memory and compared with that at some lengths; or any
            function of such ids (NumPy) that returns such logits.
        task: The task. Models that name theirs need none.
        lengths: The lengths, in main tokens.
        samples: Test sequences for each length; tasks that have fewer different ones are scored on all of them.
        until_width: Takes more sequences for a length until its 95 % interval of ``last_accuracy`` is this narrow.
        seed: Test sequences are functions of (seed, number).
        exhaustive: Runs every length on its own, even where one pass would do.
        predictions: Returns a second table as well, with the predictions on every sequence.
        train_max_length: The longest length in training, for the column ``in_distribution``; by default what the model says, or
            else the task.
        augmentation: How positions are drawn, for models that take them: none, shift, randomized, scaler+shift or zooming.
        provider: auto, cpu, cuda, tensorrt, tensorrt-rtx or openvino.
        threads: CPU threads; by default as many as this process may use.
        workers: Sessions side by side.
        max_tokens: The most tokens of a batch, which bounds memory.
        logits: The output with the logits, of an ONNX model that has several.
        iterations: How often a looped model applies its blocks; by default as often as in training.
        exporter: How a module of PyTorch is exported: auto, torchscript, dynamo, or none, which has PyTorch run it.
        progress: None shows a bar in notebooks and on terminals, where tqdm is installed; True always, False never; a function
            is called with the tokens done, those to do, and a text.

    Raises:
        ArgumentError: there is no such task, length or option; or model and task do not belong together.
        ModelError: the model does not run, has no logits, or differs from its ONNX export.
        FileError: the file cannot be read.
        KeyboardInterrupt: Ctrl-C was pressed; an exception of a function of yours comes out as it is.
    """
    named = None if task is None else _task(task)
    options = _options(
        samples, until_width, seed, exhaustive, predictions, augmentation, None, max_tokens, workers, train_max_length
    )
    given: str | list[int] = lengths if isinstance(lengths, str) else _numbers(lengths)
    longest = max(given) if isinstance(given, list) and given else _last(given)
    loaded = _models.load(
        model,
        named,
        provider=provider,
        threads=threads,
        logits=logits,
        train_max_length=train_max_length,
        exporter=exporter,
        iterations=whole("iterations", iterations, MOST, optional=True),
        longest=longest,
    )
    one = _of(loaded, named, model)
    with shown(progress, "sweep", " tokens") as show:
        callback = None if show is None else lambda done, total, n, all: show(done, total, f"{n} of {all} lengths")
        table, rows = _native.sweep(loaded, one._native, given, options, callback)
    return (pa.table(table), pa.table(rows)) if rows is not None else pa.table(table)


def score(
    model: ModelLike,
    split: str | os.PathLike[str] = "val",
    *,
    task: TaskLike | None = None,
    datasets: str | os.PathLike[str] = "datasets",
    seed: int = 0,
    loops: int | None = None,
    predictions: bool = False,
    train_max_length: int | None = None,
    augmentation: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    max_tokens: int | None = None,
    logits: str | None = None,
    iterations: int | None = None,
    exporter: str = "auto",
    progress: Progress = None,
) -> Scores:
    """Scores a model on the examples of a split: ``val``, ``ood_test``, or a file of examples (Parquet, Arrow, JSON, CSV, text).

    ``loops`` is how often it is gone through, by default 10 times where positions are drawn at random and otherwise once. The
    other arguments, and the errors, are those of :func:`sweep`.
    """
    named = None if task is None else _task(task)
    options = _options(100, None, seed, False, predictions, augmentation, loops, max_tokens, workers, train_max_length)
    loaded = _models.load(
        model,
        named,
        provider=provider,
        threads=threads,
        logits=logits,
        train_max_length=train_max_length,
        exporter=exporter,
        iterations=whole("iterations", iterations, MOST, optional=True),
        longest=named.train_max_length if named else 100,
    )
    one = _of(loaded, named, model)
    with shown(progress, str(split), " tokens") as show:
        callback = None if show is None else lambda done, total, n, all: show(done, total, f"{n} of {all} lengths")
        total, by_length, rows = _native.score(loaded, one._native, str(split), options, str(datasets), callback)
    return Scores(pa.table(total), pa.table(by_length), None if rows is None else pa.table(rows))


def _options(
    samples: int,
    until_width: float | None,
    seed: int,
    exhaustive: bool,
    predictions: bool,
    augmentation: str | None,
    loops: int | None,
    max_tokens: int | None,
    workers: int | None,
    train_max_length: int | None,
) -> dict[str, Any]:
    counts: dict[str, int | None] = {
        "samples": whole("samples", samples, MOST),
        "seed": whole("seed", seed, 2**64 - 1),
        "loops": whole("loops", loops, MOST, optional=True),
        "max_tokens": whole("max_tokens", max_tokens, MOST, optional=True),
        "workers": whole("workers", workers, 1024, optional=True),
        "train_max_length": whole("train_max_length", train_max_length, LONGEST, optional=True),
    }
    try:
        width = None if until_width is None else float(until_width)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"until_width is {until_width!r}\n  hint: it is a number between 0 and 1") from error
    other = {"until_width": width, "exhaustive": bool(exhaustive), "predictions": bool(predictions), "augmentation": augmentation}
    return counts | other


#: The largest counts that make sense, far beyond what fits into memory.
MOST = 2**31 - 1
#: The longest length.
LONGEST = _native.longest


def whole(name: str, value: Any, most: int, *, optional: bool = False) -> int | None:
    """A whole number from 0 to ``most``.

    Raises:
        ArgumentError: it is none.
    """
    if value is None and optional:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise ArgumentError(f"{name} is {value!r}\n  hint: it is a whole number from 0 to {most}")
    return number


def _numbers(lengths: Iterable[int]) -> list[int]:
    hint = 'range(1, 1001) is 1 to 1000, [10, 50, 100] these three, "1..1000" both ends included'
    try:
        if isinstance(lengths, (bytes, bytearray)):
            raise TypeError("bytes are no lengths")
        numbers = [operator.index(length) for length in lengths]
    except TypeError as error:
        raise ArgumentError(f"cannot read the lengths {lengths!r}: {error}\n  hint: {hint}") from error
    if numbers and not -(2**31) < min(numbers) <= max(numbers) <= LONGEST:
        raise ArgumentError(f"cannot read the lengths {lengths!r}: they go up to {LONGEST}\n  hint: {hint}")
    return numbers


def _last(lengths: str | list[int]) -> int:
    """The end of lengths in text, as far as that can be told here; the native part reads them, and finds what is wrong."""
    numbers = [part for piece in str(lengths).split(",") for part in piece.split(":")[0].replace("=", "").split("..")]
    return max((int(number) for number in numbers if number.strip().isdigit()), default=1)


def _of(loaded: _native.Model, named: Task | None, model: object) -> Task:
    if named is not None:
        return named
    task = loaded.task
    if task is None:
        name = model if isinstance(model, (str, os.PathLike)) else "the model"
        raise ArgumentError(f"{name} does not say which task it is for\n  hint: name it with task=; ic.tasks() lists them")
    return _task(task)
