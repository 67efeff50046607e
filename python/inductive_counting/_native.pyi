"""The native part. Call the package instead: its functions check arguments and return pyarrow's tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

__version__: str
cuda: bool
longest: int

class Table:
    def __arrow_c_schema__(self) -> object: ...
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

class Task:
    def __init__(self, name: str) -> None: ...
    name: str
    family: str
    paper: str | None
    vocabulary: list[str]
    units: list[str]
    pad_id: int
    settings: dict[str, str]
    splits: list[str]
    train_max_length: int
    train_examples: int
    max_seq_len: int
    max_position_embeddings: int
    def chance(self, length: int | None = None) -> float | None: ...
    def encode(self, tokens: list[str] | list[int]) -> list[int]: ...
    def decode(self, ids: list[int]) -> list[str]: ...
    def label(self, label: int) -> str: ...
    def labels(self, tokens: list[str] | list[int]) -> list[int]: ...
    def test(self, length: int, index: int = 0, seed: int = 0) -> tuple[list[int], list[int]]: ...

class Model:
    notes: list[str]
    fallback: str | None
    task: str | None
    @staticmethod
    def load(path: Path, provider: str = "auto", threads: int | None = None, logits: str | None = None) -> Model: ...
    @staticmethod
    def from_bytes(
        name: str, model: bytes, provider: str = "auto", threads: int | None = None, logits: str | None = None
    ) -> Model: ...
    @staticmethod
    def from_function(
        name: str,
        function: Callable[[bytearray, int, int], bytes],
        task: Task,
        train_max_length: int | None = None,
        lenient: bool = False,
    ) -> Model: ...
    def set_iterations(self, iterations: int) -> None: ...
    def logits(self, ids: list[int], batch: int, seq: int) -> tuple[bytearray, int]: ...

Told = Callable[[int, int, int, int], object] | None
Trained = Callable[[int, int, float | None, float | None], object] | None
Note = Callable[[str], object] | None

def task_names() -> list[str]: ...
def allow_commands() -> None: ...
def use_onnxruntime(folder: str | None) -> None: ...
def onnxruntime() -> tuple[Path, str | None, str] | None: ...
def split_rows(task: Task, split: str, rows: int | None = None) -> int: ...
def examples(task: Task, split: str, rows: int | None = None, seed: int = 0) -> Table: ...
def batch(
    task: Task,
    split: str,
    indices: list[int],
    seed: int = 0,
    pad_to: int | None = None,
    augmentation: str = "none",
    position_seed: int = 0,
    draw: int = 0,
) -> tuple[int, int, dict[str, bytearray]]: ...
def epoch_order(seed: int, epoch: int, examples: int) -> list[int]: ...
def sweep(
    model: Model, task: Task, lengths: str | list[int], options: dict[str, Any], callback: Told = None
) -> tuple[Table, Table | None]: ...
def score(
    model: Model, task: Task, split: str, options: dict[str, Any], datasets: str, callback: Told = None
) -> tuple[Table, Table, Table | None]: ...
def read_config(source: dict[str, Any], overrides: str) -> str: ...
def train(
    source: dict[str, Any], overrides: str, runs: Path, datasets: Path, callback: Trained = None, notes: Note = None
) -> str: ...
def resume(
    handle: str, overrides: str, runs: Path, datasets: Path, callback: Trained = None, notes: Note = None
) -> str: ...
def runs(runs: Path) -> tuple[str, list[str]]: ...
def run(runs: Path, handle: str) -> tuple[str, str]: ...
def export(
    runs: Path,
    handle: str,
    checkpoint: str | None = None,
    precision: str | None = None,
    opset: int | None = None,
    verify: bool = True,
    notes: Note = None,
) -> Path: ...
def report(
    runs: Path, output: Path, reference: Path | None = None, figures: Path | None = None, notes: Note = None
) -> tuple[list[Path], str]: ...
