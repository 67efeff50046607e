"""Training, runs, exports and reports."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import pyarrow as pa
import pyarrow.parquet as pq

from . import _native, _runtime
from ._errors import ArgumentError, MissingFileError
from ._progress import Progress, shown
from ._sweep import Scores, score, sweep

log = logging.getLogger("inductive_counting")

#: A TOML file, TOML, or a dictionary of the same keys.
ConfigLike = Union[str, "os.PathLike[str]", Mapping[str, Any]]
PathLike = Union[str, "os.PathLike[str]"]


class Run:
    """A run: a folder with a config, checkpoints, a training curve and, once exported, ``model.onnx``."""

    _is_run = True  # so that sweeps know one without importing this

    def __init__(self, handle: str, runs: PathLike = "runs", datasets: PathLike = "datasets") -> None:
        self.runs, self.datasets = Path(runs), Path(datasets)
        self.handle = handle
        #: What training found: the last loss, seconds, and the scores of every split. None of a run that was opened.
        self.outcome: dict[str, Any] | None = None
        self._facts()

    def _facts(self) -> dict[str, Any]:
        return json.loads(_native.run(self.runs, self.handle)[0])

    @property
    def path(self) -> Path:
        """The folder."""
        return self.runs / self.handle

    @property
    def config(self) -> dict[str, Any]:
        """The whole config, with everything that was left to defaults."""
        return json.loads(_native.run(self.runs, self.handle)[1])

    @property
    def status(self) -> str:
        """running, finished, interrupted, killed, diverged, failed, or imported."""
        return self._facts()["status"]

    @property
    def step(self) -> int | None:
        """Optimisation steps that are done."""
        return self._facts()["step"]

    @property
    def total_steps(self) -> int | None:
        """Optimisation steps that the config asks for."""
        return self._facts()["total_steps"]

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._facts()["task"]

    @property
    def model(self) -> Path | None:
        """The exported model, where there is one."""
        model = self._facts()["model"]
        return Path(model) if model else None

    def _onnx(self) -> Path:
        """The exported model; made now where there is none, or where training went on after it was made."""
        model = self.model
        if model is None:
            return self.export()
        saved = [file.stat().st_mtime_ns for file in self.path.glob("checkpoints/*/model.safetensors")]
        if max(saved, default=0) > model.stat().st_mtime_ns:
            log.info("run %s was trained further since it was exported, so it is exported again", self.handle)
            return self.export()
        return model

    def metrics(self) -> pa.Table:
        """The training curve, as in ``metrics.parquet``: a row per logged step, and per split and evaluation."""
        path = self.path / "metrics.parquet"
        if not path.is_file():
            raise MissingFileError(f"run {self.handle} has no curve: {path} does not exist\n  hint: imported runs have none")
        return pq.read_table(path)

    def export(self, **options: Any) -> Path:
        """See :func:`export`."""
        return export(self, **options)

    def sweep(self, **options: Any) -> Any:
        """See :func:`sweep`; a run that was not exported since it was trained is exported first."""
        return sweep(self, **options)

    def score(self, split: PathLike = "val", **options: Any) -> Scores:
        """See :func:`score`; a run that was not exported is exported first."""
        return score(self, split, **{"datasets": self.datasets, **options})

    def resume(self, **options: Any) -> Run:
        """See :func:`resume`."""
        return resume(self, **options)

    def __repr__(self) -> str:
        facts = self._facts()
        steps = f"{facts['step']} of {facts['total_steps']} steps"
        return f"<Run {self.handle}: {facts['arch']} on {facts['task']}, {facts['status']}, {steps}>"

    def __fspath__(self) -> str:
        return str(self.path)


def train(
    config: ConfigLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    runs: PathLike = "runs",
    datasets: PathLike = "datasets",
    progress: Progress = None,
) -> Run:
    """Trains a new run, in the folder ``runs``; the dataset is generated in ``datasets`` where it is not there yet.

    The same config gives the same weights, on a CPU to the last bit.

    >>> run = train("configs/lstm.toml", overrides={"task.name": "chomsky/parity_check", "train.max_steps": 2000})
    >>> run.sweep(lengths=range(1, 501))

    Args:
        config: The path of a TOML file, TOML itself, or a dictionary of the same keys.
        overrides: Keys and their values that replace the config's, as ``--set`` does: ``{"optimizer.lr": 3e-4}``.
        progress: As in :func:`sweep`; a function is called with the steps done, those to do, and a text.

    Raises:
        ArgumentError: the config is wrong, and where.
        FileError: a file cannot be read or written.
        Error: the loss is no longer finite, or the device failed.
        KeyboardInterrupt: Ctrl-C was pressed: the step was finished, a checkpoint saved, and :func:`resume` continues from
            there. Whatever ends training, the attribute ``run`` of the exception is the handle.
    """
    return _watched(
        lambda callback: _native.train(_source(config), _json(overrides), Path(runs), Path(datasets), callback, _note),
        runs,
        datasets,
        progress,
    )


def resume(
    run: Run | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    runs: PathLike = "runs",
    datasets: PathLike = "datasets",
    progress: Progress = None,
) -> Run:
    """Continues a run from its last checkpoint; the result is that of a run that was never interrupted.

    ``run`` is a run or its handle, by default the newest. The other arguments, and the errors, are those of :func:`train`.
    """
    found = _found(run, runs, datasets)
    return _watched(
        lambda callback: _native.resume(found.handle, _json(overrides), found.runs, found.datasets, callback, _note),
        found.runs,
        found.datasets,
        progress,
    )


def _watched(work: Any, runs: PathLike, datasets: PathLike, progress: Progress) -> Run:
    _runtime.find()
    with shown(progress, "training", " steps") as show:

        def tell(done: int, total: int, loss: float | None, accuracy: float | None) -> None:
            parts = [f"loss {loss:.4f}" if loss is not None else "", f"val {accuracy:.1%}" if accuracy is not None else ""]
            show(done, total, ", ".join(part for part in parts if part))  # type: ignore[misc]

        facts = json.loads(work(None if show is None else tell))
    trained = Run(facts["handle"], runs, datasets)
    trained.outcome = facts["outcome"]
    return trained


def runs(runs: PathLike = "runs", datasets: PathLike = "datasets") -> list[Run]:
    """All runs in a folder, oldest first; those that cannot be read are left out, with a warning in the log."""
    found, unreadable = _native.runs(Path(runs))
    for line in unreadable:
        log.warning(line)
    return [Run(facts["handle"], runs, datasets) for facts in json.loads(found)]


def run(handle: str | None = None, runs: PathLike = "runs", datasets: PathLike = "datasets") -> Run:
    """A run by its handle; the newest by default.

    Raises:
        ArgumentError: there is none, and which is the nearest.
    """
    return _found(handle, runs, datasets)


def _found(one: Run | str | None, folder: PathLike, datasets: PathLike) -> Run:
    if isinstance(one, Run):
        return one
    if one is not None:
        return Run(one, folder, datasets)
    all = runs(folder, datasets)
    if not all:
        raise ArgumentError(f"there are no runs under {folder}\n  hint: ic.train(config) makes one")
    return all[-1]


def export(
    run: Run | str | None = None,
    *,
    runs: PathLike = "runs",
    checkpoint: str | None = None,
    precision: str | None = None,
    opset: int | None = None,
    verify: bool = True,
) -> Path:
    """Writes ``model.onnx`` into a run, by default the newest, once ONNX Runtime agrees with the trained model.

    Args:
        checkpoint: last, best, epoch-N, or the name of its folder.
        precision: fp32, fp16 or bf16.
        opset: The version of ONNX's operators.
        verify: Whether to compare the file with the trained model.
    """
    _runtime.find()
    found = _found(run, runs, "datasets")
    return Path(_native.export(found.runs, found.handle, checkpoint, precision, opset, verify, _note))


def report(
    runs: PathLike = "runs",
    output: PathLike = "report.html",
    *,
    reference: PathLike | None = None,
    figures: PathLike | None = None,
) -> Path:
    """Puts the results under ``runs`` (``eval/*.parquet`` of every run) on one page: HTML that needs no network, or Markdown.

    Sweeps of this package are returned, not written; ``pipeline eval`` writes them, and so does
    ``pyarrow.parquet.write_table(table, run.path / "eval" / "sweep.parquet")``, once there is a folder ``eval``.

    Args:
        output: A name that ends in ``.html`` or ``.md``.
        reference: A CSV file of published values to compare with.
        figures: A folder for the figures as files.
    """
    published, folder = (None if path is None else Path(path) for path in (reference, figures))
    files, summary = _native.report(Path(runs), Path(output), published, folder, _note)
    log.info("%s: %s", output, summary)
    return Path(files[0])


def _note(line: str) -> None:
    if line.startswith("warning: "):
        log.warning(line.removeprefix("warning: "))
    else:
        log.info(line)


def _source(config: ConfigLike) -> dict[str, Any]:
    source: dict[str, Any] = {"file": None, "toml": None, "json": None}
    if isinstance(config, Mapping):
        source["json"] = _json(config)
    elif isinstance(config, os.PathLike):
        source["file"] = os.fspath(config)
    elif isinstance(config, str):
        source["toml" if "\n" in config or "=" in config else "file"] = config
    else:
        raise ArgumentError(
            f"a {type(config).__name__} is no config\n  hint: the path of a TOML file, TOML itself, or a dictionary of its keys"
        )
    return source


def _json(table: Mapping[str, Any] | None) -> str:
    def plain(value: Any) -> Any:
        if hasattr(value, "item"):  # NumPy's numbers
            return value.item()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise ArgumentError(f"a config holds no {type(value).__name__}\n  hint: numbers, texts, booleans, lists and tables")

    def check(value: Any, key: str) -> None:
        if value is None:
            raise ArgumentError(f"{key} is None, which a config cannot hold\n  hint: leave the key out")
        if isinstance(value, Mapping):
            for name, inner in value.items():
                check(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(value, (list, tuple)):
            for inner in value:
                check(inner, f"an entry of {key}")

    check(table or {}, "")
    try:
        return json.dumps(table or {}, default=plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"cannot read the config: {error}\n  hint: numbers are finite, and keys are texts") from error
