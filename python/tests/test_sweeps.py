"""Sweeps of every kind of model but PyTorch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import inductive_counting as ic

from conftest import TASK, exact_counter
from program import pipeline


def test_the_table_is_the_one_that_the_program_writes(run: ic.Run, onnx_path: Path, tmp_path: Path) -> None:
    pipeline("eval", "--model", onnx_path, "--lengths", "1..60", "--samples", "20", "-o", tmp_path / "sweep.parquet")
    written = pq.read_table(tmp_path / "sweep.parquet")
    table = ic.sweep(onnx_path, lengths=range(1, 61), samples=20)
    assert table.equals(written) and table.schema.equals(written.schema, check_metadata=True)
    assert run.sweep(lengths="1..60", samples=20).equals(table)
    assert ic.sweep(str(onnx_path), task=TASK, lengths=np.arange(1, 61), samples=20).equals(table)


def test_models_in_memory_give_the_same_scores(onnx_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    own = ic.sweep(onnx_path, lengths=[1, 5, 50], samples=5)
    model = onnx.load(onnx_path)
    for other in [onnx_path.read_bytes(), bytearray(onnx_path.read_bytes()), model]:
        table = ic.sweep(other, lengths=[1, 5, 50], samples=5)
        for column in ["length", "accuracy", "last_accuracy", "loss", "task", "arch", "in_distribution"]:
            assert table[column].to_pylist() == pytest.approx(own[column].to_pylist(), abs=1e-6), column


def test_a_function_is_a_model() -> None:
    shapes = set()

    def count(ids: np.ndarray) -> np.ndarray:
        assert ids.dtype == np.int64
        shapes.add(ids.shape)
        return exact_counter(ids)

    table = ic.sweep(count, task=TASK, lengths=range(1, 201), samples=3, train_max_length=40)
    assert table["last_accuracy"].to_pylist() == [1.0] * 200 and set(table["status"].to_pylist()) == {"ok"}
    assert table["in_distribution"].to_pylist() == [length <= 40 for length in range(1, 201)]
    assert len(shapes) > 1

    def forgets(ids: np.ndarray) -> np.ndarray:  # right up to 20 tokens
        logits = exact_counter(ids)
        logits[:, 20:] = 0
        return logits

    found = ic.sweep(forgets, task=TASK, lengths=range(1, 41), samples=3)["last_accuracy"].to_pylist()
    assert found[:15] == [1.0] * 15 and found[30:] != [1.0] * 10
    one_by_one = ic.sweep(forgets, task=TASK, lengths=range(1, 41), samples=3, exhaustive=True)
    assert one_by_one["last_accuracy"].to_pylist() == found


def test_only_a_looped_model_has_a_number_of_iterations() -> None:
    with pytest.raises(ic.ArgumentError, match="it is not looped"):
        ic.sweep(exact_counter, task=TASK, lengths=[1, 2], iterations=2)
    with pytest.raises(ic.ArgumentError, match="iterations"):
        ic.sweep(exact_counter, task=TASK, lengths=[1, 2], iterations=-1)


def test_a_function_that_is_not_causal_is_found_out() -> None:
    def peeks(ids: np.ndarray) -> np.ndarray:
        return exact_counter(ids)[:, ::-1]  # the last answer comes first

    table = ic.sweep(peeks, task=TASK, lengths=range(1, 9), samples=2)
    assert set(table["plan"].to_pylist()) != {"single_pass"}


def test_predictions_and_progress(onnx_path: Path) -> None:
    told: list[tuple[int, int, str]] = []

    def slow(ids: np.ndarray) -> np.ndarray:
        import time

        time.sleep(0.01)
        return exact_counter(ids)

    ic.sweep(slow, task=TASK, lengths=range(1, 25), samples=2, exhaustive=True, max_tokens=64,
             progress=lambda done, total, text: told.append((done, total, text)))  # fmt: skip
    assert told and all(done <= total for done, total, _ in told) and told[-1][2].endswith("of 24 lengths")
    table, rows = ic.sweep(onnx_path, lengths=[3, 4], samples=2, predictions=True)
    assert table.num_rows == 2 and rows.column_names == ["length", "index", "input_ids", "gold", "predicted"]
    assert set(rows["length"].to_pylist()) == {3, 4}


def test_splits_are_scored(run: ic.Run, onnx_path: Path) -> None:
    scores = run.score("val", predictions=True)
    assert scores.total.num_rows == 1 and scores.total["split"].to_pylist() == ["val"]
    assert scores.by_length.num_rows > 10 and scores.predictions is not None
    assert run.outcome is not None
    wanted = run.outcome["splits"]["val"]["accuracy"]
    assert scores.total["accuracy"].to_pylist() == [pytest.approx(wanted, abs=1e-9)]
    perfect = ic.score(exact_counter, "ood_test", task=TASK)
    assert perfect.total["accuracy"].to_pylist() == [1.0]


def test_intervals_narrow_where_they_are_asked_to() -> None:
    task = "chomsky/parity_check"
    def guess(ids: np.ndarray) -> np.ndarray:
        vocab = len(ic.task(task).vocabulary)
        return ((ids[..., None] * 7919 + np.arange(vocab) * 104729) % 13).astype(np.float32)

    few = ic.sweep(guess, task=task, lengths=[20], samples=10).to_pylist()[0]
    many = ic.sweep(guess, task=task, lengths=[20], samples=10, until_width=0.15).to_pylist()[0]
    width = many["last_accuracy_high"] - many["last_accuracy_low"]
    assert width <= 0.15 < few["last_accuracy_high"] - few["last_accuracy_low"]
    assert many["n_sequences"] > few["n_sequences"]
