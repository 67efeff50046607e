"""How far does a model count? Tasks, exact length sweeps and training, from Python.

Three lines for a model of your own::

    import inductive_counting as ic
    table = ic.sweep(model, task="chomsky/parity_check", lengths=range(1, 1001))
    table.select(["length", "last_accuracy", "last_accuracy_low", "last_accuracy_high"]).to_pandas()

``model`` is a ``torch.nn.Module``, an ONNX file, ONNX in memory, or any function of token ids that returns logits.

The page docs/python.md of the project has the whole story.
"""

import os as _os

# ONNX Runtime 1.29 and later write a device id into the user's cache, and may send it, unless told before they are loaded.
_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from . import _runtime  # noqa: E402
from ._errors import ArgumentError, Error, FileError, MissingFileError, ModelError  # noqa: E402
from ._native import __version__, allow_commands  # noqa: E402
from ._sweep import Scores, score, sweep  # noqa: E402
from ._tasks import Task, batches, dataset, task, tasks  # noqa: E402
from ._train import Run, export, report, resume, run, runs, train  # noqa: E402

_runtime.find()

__all__ = [
    "ArgumentError",
    "Error",
    "FileError",
    "MissingFileError",
    "ModelError",
    "Run",
    "Scores",
    "Task",
    "__version__",
    "allow_commands",
    "batches",
    "dataset",
    "export",
    "report",
    "resume",
    "run",
    "runs",
    "score",
    "sweep",
    "task",
    "tasks",
    "train",
]
