"""Tasks, tables of their examples, and batches."""

from __future__ import annotations

import pickle
import time

import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import inductive_counting as ic

from conftest import PARITY, TASK


def test_tasks_say_what_they_are() -> None:
    assert len(ic.tasks()) > 100 and PARITY in ic.tasks("chomsky/")
    parity = ic.task(PARITY)
    assert parity.vocabulary and parity.settings and parity.splits[:2] == ["train", "val"]
    assert parity.train_max_length >= 1 and parity.paper and parity.family == "automaton"
    assert ic.task(parity) is parity and parity == ic.task(PARITY) and parity != ic.task(TASK)
    assert pickle.loads(pickle.dumps(parity)) == parity and hash(parity) == hash(ic.task(PARITY))
    assert "parity_check" in repr(parity)
    seven = ic.task("modular,modulus=7,train_max=35")
    assert seven.settings["modulus"] == "7" and seven.train_max_length == 35


def test_labels_follow_the_rule_in_words_and_in_ids() -> None:
    task = ic.task(TASK)
    words = task.decode(task.test(12)[0])
    labels = task.labels(words)
    assert [label for label in labels if label is not None][-1] == "2"
    assert task.labels(" ".join(words)) == labels
    ids = task.encode(words)
    assert task.labels(ids) == task.test(12)[1] == task.labels(np.array(ids))
    assert task.decode(ids) == words


@pytest.mark.parametrize("split", ["train", "val", "ood_test"])
def test_a_dataset_has_the_examples_that_the_program_writes(split: str, run: ic.Run) -> None:
    written = next(run.datasets.rglob(f"{split}.parquet"))
    table = ic.dataset(TASK, split, n=600 if split == "train" else None, seed=0)
    file = pq.read_table(written)
    assert table.schema.remove_metadata() == file.schema.remove_metadata()
    assert table.equals(file)
    same = {key: value for key, value in table.schema.metadata.items()}
    assert same[b"task"] == TASK.encode() and same[b"split"] == split.encode()


def test_tables_share_the_memory_of_their_buffers_and_others_take_them() -> None:
    before = pa.total_allocated_bytes()
    table = ic.dataset(PARITY, "train", 20_000)
    assert pa.total_allocated_bytes() == before, "pyarrow has allocated nothing: the buffers are those of the native part"
    assert table.num_rows == 20_000 and table.nbytes > 1_000_000
    frame = polars.from_arrow(table)
    assert isinstance(frame, polars.DataFrame) and frame["length"].max() == max(table["length"].to_pylist())
    assert isinstance(table.to_pandas(), pandas.DataFrame)
    # Arrow's own interface, which needs no pyarrow.
    native = ic._native.examples(ic.task(PARITY)._native, "train", 10)
    assert polars.DataFrame(native).height == 10
    assert len(table.slice(5, 1)["labels"][0]) == len(table["input_ids"][5])


def test_a_table_outlives_everything_else() -> None:
    column = ic.dataset(TASK, "val")["input_ids"]
    import gc

    gc.collect()
    assert column[0].as_py() == ic.dataset(TASK, "val")["input_ids"][0].as_py()


def test_empty_and_large_tables() -> None:
    empty = ic.dataset(TASK, "train", 0)
    assert empty.num_rows == 0 and empty.column_names == ["input_ids", "labels", "length"]
    large = ic.dataset(TASK, "train", 300_000)
    assert large.num_rows == 300_000
    assert large.slice(299_999)["input_ids"].equals(ic.dataset(TASK, "train", 300_000).slice(299_999)["input_ids"])


def test_batches_are_the_examples_padded() -> None:
    table = ic.dataset(PARITY, "train", 100, seed=3).to_pylist()
    batches = list(ic.batches(PARITY, n=100, batch_size=32, seed=3))
    assert [len(batch["input_ids"]) for batch in batches] == [32, 32, 32, 4]
    for number, batch in enumerate(batches):
        assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
        assert len({array.shape for array in batch.values()}) == 1
        for row, ids in enumerate(batch["input_ids"]):
            example = table[32 * number + row]
            tokens = len(example["input_ids"])
            assert ids[:tokens].tolist() == example["input_ids"]
            assert batch["labels"][row, :tokens].tolist() == example["labels"]
            assert batch["attention_mask"][row, tokens:].sum() == 0 and (batch["labels"][row, tokens:] == -1).all()
    batches[0]["input_ids"][0, 0] = 1  # they may be written to


def test_workers_share_the_batches_of_one() -> None:
    one = [batch["input_ids"].tolist() for batch in ic.batches(PARITY, n=70, batch_size=8, epochs=2, shuffle=True)]
    parts = [[b["input_ids"].tolist() for b in ic.batches(PARITY, n=70, batch_size=8, epochs=2, shuffle=True, start=i, step=3)]
             for i in range(3)]  # fmt: skip
    assert len(one) == 18 and sorted(map(str, one)) == sorted(str(b) for part in parts for b in part)
    assert parts[1][0] == one[1] and parts[0][1] == one[3]
    assert one[:9] != one[9:], "another order in the second epoch"
    endless = ic.batches(PARITY, batch_size=4)
    assert len([next(endless) for _ in range(50)]) == 50


def test_positions_are_drawn() -> None:
    scaled = next(ic.batches(TASK, augmentation="scaler+shift", batch_size=4))
    assert scaled["position_ids"].dtype == np.float32 and scaled["position_ids"].max() <= 1
    shifted = [batch["position_ids"] for batch in ic.batches(TASK, augmentation="shift", n=4, batch_size=4, epochs=2)]
    assert (shifted[0] != shifted[1]).any()


def test_a_million_examples_take_seconds() -> None:
    start = time.perf_counter()
    table = ic.dataset(PARITY, "train", 1_000_000)
    seconds = time.perf_counter() - start
    assert table.num_rows == 1_000_000
    assert seconds < 10, f"{seconds:.1f} s; BENCHMARKS.md has the figure of a quiet machine"
