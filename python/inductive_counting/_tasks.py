"""Tasks, their examples as Arrow tables, and batches of them as NumPy arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Union, overload

import numpy as np
import pyarrow as pa

from . import _native
from ._errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A task, or its name: a preset of :func:`tasks`, or a family with settings, ``"modular,modulus=7"``.
TaskLike = Union[str, "Task"]


class Task:
    """A task: its vocabulary, its settings and its label rule. Made by :func:`task`; pickles as its name."""

    def __init__(self, name: str) -> None:
        self._native = _native.Task(name)

    @property
    def name(self) -> str:
        """The name, with settings that differ from the preset's."""
        return self._native.name

    @property
    def family(self) -> str:
        """The family of tasks that it is of."""
        return self._native.family

    @property
    def paper(self) -> str | None:
        """The paper that it is from."""
        return self._native.paper

    @property
    def vocabulary(self) -> list[str]:
        """The tokens in the order of their ids; models have as many logits."""
        return self._native.vocabulary

    @property
    def units(self) -> list[str]:
        """The tokens that a label is a set of (bit i is unit i); none where a label is a token."""
        return self._native.units

    @property
    def pad_id(self) -> int:
        """The id that pads batches."""
        return self._native.pad_id

    @property
    def settings(self) -> dict[str, str]:
        """Every setting with its value, as text."""
        return self._native.settings

    @property
    def splits(self) -> list[str]:
        """The splits that its datasets have."""
        return self._native.splits

    @property
    def train_max_length(self) -> int:
        """The longest length in training, in main tokens, which sweeps call in-distribution."""
        return self._native.train_max_length

    @property
    def train_examples(self) -> int:
        """The size of the training split in the paper."""
        return self._native.train_examples

    @property
    def max_seq_len(self) -> int:
        """The longest training sequence, in tokens."""
        return self._native.max_seq_len

    @property
    def max_position_embeddings(self) -> int:
        """The size of a table of learned positions."""
        return self._native.max_position_embeddings

    def chance(self, length: int | None = None) -> float | None:
        """The accuracy of guessing the last label at a length (the longest of training), where that is known."""
        return self._native.chance(length)

    def encode(self, tokens: str | Sequence[str]) -> list[int]:
        """The ids of tokens: a list of them, or a text with spaces between."""
        return self._native.encode(_words(tokens))

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The tokens of ids."""
        return self._native.decode([int(i) for i in ids])

    @overload
    def labels(self, tokens: str | Sequence[str]) -> list[str | None]: ...
    @overload
    def labels(self, tokens: Sequence[int]) -> list[int]: ...
    def labels(self, tokens: Any) -> Any:
        """The label after every token of a sequence, by the task's rule.

        Tokens give tokens, with None where no label is asked; ids give ids, with -1.

        >>> task("counting_samesymbol_mod10bos").labels("0 a a a")
        [None, '1', '2', '3']

        Raises:
            ArgumentError: it is no sequence of the task, and why; or the task's labels follow no rule.
        """
        if isinstance(tokens, str):
            tokens = tokens.split()
        words = len(tokens) > 0 and isinstance(tokens[0], str)
        labels = self._native.labels(list(tokens) if words else [int(i) for i in tokens])
        return [self._native.label(label) if label >= 0 else None for label in labels] if words else labels

    def test(self, length: int, index: int = 0, seed: int = 0) -> tuple[list[int], list[int]]:
        """Test number ``index`` of a length, as sweeps have it: ids and labels, with -1 where no label is asked."""
        return self._native.test(length, index, seed)

    def __repr__(self) -> str:
        return repr(self._native)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self._native == other._native

    def __hash__(self) -> int:
        return hash(self._native)

    def __reduce__(self) -> tuple[type[Task], tuple[str]]:
        return Task, (self.name,)


def _words(tokens: str | Sequence[str]) -> list[str]:
    return tokens.split() if isinstance(tokens, str) else list(tokens)


def tasks(contains: str = "") -> list[str]:
    """The names of all presets, or of those that contain a text, in the order of their papers."""
    return [name for name in _native.task_names() if contains in name]


def task(name: TaskLike) -> Task:
    """A task by its name: a preset, or a family with settings.

    >>> task("chomsky/parity_check").vocabulary
    >>> task("modular,modulus=7,train_max=35")

    Raises:
        ArgumentError: there is none of this name, and which is the nearest; or a setting is wrong.
    """
    return name if isinstance(name, Task) else Task(name)


def dataset(task: TaskLike, split: str = "train", n: int | None = None, seed: int = 0) -> pa.Table:
    """The first ``n`` examples of a split, or all of it, as a table, without copies.

    The columns are ``input_ids`` and ``labels`` (lists of int32 of the same length; -1 where no label is asked) and ``length``
    (the main tokens). The schema's metadata describes them, as in the files of ``pipeline data generate``: task, vocabulary,
    seed. An example is a function of (task, split, seed, index) alone.

    The training split has no end; others have a size. ``pandas`` takes the table with ``to_pandas()``, Polars with
    ``polars.from_arrow``.

    Raises:
        ArgumentError: there is no such task or split, or the split is smaller.
    """
    one = globals()["task"](task)
    if n is not None and n < 0:
        raise ArgumentError(f"n is {n}\n  hint: it is at least 0, or None for the whole split")
    return pa.table(_native.examples(one._native, split, n, seed))


def batches(
    task: TaskLike,
    split: str = "train",
    *,
    batch_size: int = 32,
    n: int | None = None,
    epochs: int | None = 1,
    shuffle: bool = False,
    seed: int = 0,
    start: int = 0,
    step: int = 1,
    pad_to: int | None = None,
    augmentation: str = "none",
) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of examples as NumPy arrays, for a training loop of your own.

    Each batch is a dictionary of arrays ``[batch, seq]``, padded on the right to the longest example or to ``pad_to``:
    ``input_ids`` and ``labels`` (int64; -1 where no label is asked, PyTorch's ``ignore_index``), ``position_ids`` (int64;
    float32 for ``scaler+shift`` and ``zooming``) and ``attention_mask`` (int64, 1 for tokens). ``torch.from_numpy`` takes them
    without a copy.

    Without ``n``, the training split never ends and every batch is new; with it, the first ``n`` examples are gone through
    ``epochs`` times (None: without end), in order or with ``shuffle``, as ``pipeline train`` does.

    ``start`` and ``step`` divide the batches among workers: worker i of k takes ``start=i, step=k``, and together they yield the
    batches of one.

    Raises:
        ArgumentError: there is no such task or split; an example is longer than ``pad_to``.
    """
    one = globals()["task"](task)
    for name, value, least in [("batch_size", batch_size, 1), ("step", step, 1), ("start", start, 0), ("pad_to", pad_to, 1)]:
        if value is not None and not least <= value <= 2**24:
            raise ArgumentError(f"{name} is {value}\n  hint: it is a whole number from {least} to {2**24}")
    if n is None and split != "train":
        n = _native.split_rows(one._native, split)
    if n is None and shuffle:
        raise ArgumentError("a split without an end cannot be shuffled\n  hint: say how many examples there are with n=")
    if n is not None and n < 1:
        raise ArgumentError(f"n is {n}\n  hint: it is at least 1")
    options = {"seed": seed, "pad_to": pad_to, "augmentation": augmentation, "position_seed": seed}
    return _batches(one, split, batch_size, n, epochs, shuffle, start, step, options)


def _batches(
    task: Task,
    split: str,
    batch_size: int,
    n: int | None,
    epochs: int | None,
    shuffle: bool,
    start: int,
    step: int,
    options: dict[str, Any],
) -> Iterator[dict[str, NDArray[Any]]]:
    order: Sequence[int] = range(n or 0)
    ordered = -1  # the epoch that `order` is of
    per_epoch = -(-n // batch_size) if n else 0
    for number in itertools.count(start, step):
        if n is None:
            indices: Sequence[int] = range(number * batch_size, (number + 1) * batch_size)
        else:
            epoch, at = divmod(number, per_epoch)
            if epochs is not None and epoch >= epochs:
                return
            if shuffle and epoch != ordered:
                order, ordered = _native.epoch_order(options["seed"], epoch, n), epoch
            indices = order[at * batch_size : (at + 1) * batch_size]
        batch, seq, memory = _native.batch(task._native, split, list(indices), draw=number, **options)
        kinds: dict[str, Any] = {name: np.int64 for name in memory}
        if options["augmentation"] in ("scaler+shift", "zooming"):
            kinds["position_ids"] = np.float32
        yield {name: np.frombuffer(memory[name], kinds[name]).reshape(batch, seq) for name in memory}
