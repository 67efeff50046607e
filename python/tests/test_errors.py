"""Every kind of bad input is an exception of its kind, with the text of the program; none is a panic."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import inductive_counting as ic

from conftest import PARITY, TASK, exact_counter
from program import path

Argument, Model, File, Missing = ic.ArgumentError, ic.ModelError, ic.FileError, ic.MissingFileError
BARE = f"[task]\nname = '{TASK}'\n[model]\narch = 'lstm'\n"
SWEEP: dict[str, Any] = {"task": TASK, "lengths": [1, 2], "samples": 2}


def wrong_shape(ids: np.ndarray) -> np.ndarray:
    return np.zeros(ids.shape, np.float32)


CASES: list[tuple[type[Exception], str, Callable[[Path], object]]] = [
    (Argument, "did you mean `chomsky/parity_check`", lambda _: ic.task("chomsky/parity_chek")),
    (Argument, "no setting `modulos`", lambda _: ic.task("modular,modulos=3")),
    (Argument, "`modulus` is set twice, to 7 and to 8", lambda _: ic.task("modular,modulus=7,modulus=8")),
    (Argument, "no test of length 536870912: sequences go up to length 16777216", lambda _: ic.task(PARITY).test(2**29)),
    (Argument, "20000000 is longer than 16777216", lambda _: ic.sweep(exact_counter, **{**SWEEP, "lengths": "1..20000000:100"})),
    (Argument, "has no token `zebra`", lambda _: ic.task(TASK).encode("zebra")),
    (Argument, "has no token 99", lambda _: ic.task(TASK).decode([99])),
    (Argument, "has no token -1", lambda _: ic.task(TASK).labels([-1])),
    (Argument, "no sequence of the task", lambda _: ic.task(TASK).labels("9 9")),
    (Argument, "no split `trian`", lambda _: ic.dataset(TASK, "trian")),
    (Argument, "were asked for", lambda _: ic.dataset(TASK, "val", 10**9)),
    (Argument, "n is -1", lambda _: ic.dataset(TASK, "train", -1)),
    (Argument, "batch_size is 0", lambda _: ic.batches(TASK, batch_size=0)),
    (Argument, "cannot be shuffled", lambda _: ic.batches(TASK, shuffle=True)),
    (Argument, "padded to 2", lambda _: next(ic.batches("chomsky/reverse_string", pad_to=2))),
    (Argument, "augmentation `shfit`", lambda _: next(ic.batches(TASK, augmentation="shfit"))),
    (Argument, "is no model", lambda _: ic.sweep(3, task=TASK)),
    (Argument, "does not say which task", lambda _: ic.sweep(exact_counter)),
    (Argument, "lengths start at 1", lambda _: ic.sweep(exact_counter, **{**SWEEP, "lengths": "0..3"})),
    (Argument, "0 is no length", lambda _: ic.sweep(exact_counter, **{**SWEEP, "lengths": range(3)})),
    (Argument, "there are none", lambda _: ic.sweep(exact_counter, **{**SWEEP, "lengths": []})),
    (Argument, "cannot read the lengths", lambda _: ic.sweep(exact_counter, **{**SWEEP, "lengths": ["x"]})),
    (Argument, "samples is 0", lambda _: ic.sweep(exact_counter, **{**SWEEP, "samples": 0})),
    (Argument, "seed is -1", lambda _: ic.sweep(exact_counter, seed=-1, **SWEEP)),
    (Argument, "between 0 and 1", lambda _: ic.sweep(exact_counter, until_width=2.0, **SWEEP)),
    (Argument, "augmentation `sideways`", lambda _: ic.sweep(exact_counter, augmentation="sideways", **SWEEP)),
    (Model, "of the shape", lambda _: ic.sweep(wrong_shape, **SWEEP)),
    (Model, "no array of logits", lambda _: ic.sweep(lambda ids: "logits", **SWEEP)),
    (Missing, "there is no such file|No such file|check the path", lambda _: ic.sweep("nowhere.onnx", **SWEEP)),
    (Model, "as an ONNX model", lambda _: ic.sweep(b"not a model", **SWEEP)),
    (Model, "as an ONNX model", lambda _: ic.sweep(b"", **SWEEP)),
    (Model, "as an ONNX model", lambda folder: ic.sweep(written(folder / "x.onnx", "x"), **SWEEP)),
    (Argument, "provider `gpu`", lambda _: ic.sweep(b"", provider="gpu", **SWEEP)),
    (Missing, "nowhere.parquet", lambda _: ic.score(exact_counter, "nowhere.parquet", task=TASK)),
    (File, "x.parquet", lambda folder: ic.score(exact_counter, written(folder / "x.parquet", "x"), task=TASK)),
    (Argument, "unknown key train.epoch", lambda _: ic.train(f"{BARE}[train]\nepoch = 3")),
    (Argument, "unknown model.arch `lsmt`", lambda _: ic.train(BARE.replace("lstm", "lsmt"))),
    (Argument, "optimizer.lr is None", lambda _: ic.train("[task]\n", overrides={"optimizer.lr": None})),
    (Argument, "holds no set", lambda _: ic.train({"task": {"name": {1, 2}}})),
    (Argument, "is no config", lambda _: ic.train(3)),
    (Missing, "nowhere.toml", lambda _: ic.train("nowhere.toml")),
    (Argument, "no run `0101_000000`", lambda folder: ic.run("0101_000000", runs=folder)),
    (Argument, "no runs under", lambda folder: ic.run(runs=folder)),
    (Argument, "no results under", lambda folder: ic.report(folder, folder / "report.html")),
    (Argument, "HTML or Markdown", lambda folder: ic.report(folder, folder / "report.pdf")),
]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind, text, call", CASES, ids=[text for _, text, _ in CASES])
def test_bad_input(kind: type[Exception], text: str, call: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ic.Error, match=text) as caught:
        call(tmp_path)
    assert type(caught.value) is kind and "panic" not in str(caught.value)
    builtin = {Argument: ValueError, Model: ValueError, File: OSError, Missing: FileNotFoundError}[kind]
    assert isinstance(caught.value, builtin)


def test_the_text_is_the_one_of_the_program(onnx_path: Path) -> None:
    done = subprocess.run([path(), "eval", "--model", str(onnx_path), "--task", "copy"], capture_output=True, text=True)
    with pytest.raises(ic.Error) as caught:
        ic.sweep(onnx_path, task="copy")
    assert done.stderr.strip().endswith(f"error: {caught.value}")


def test_exceptions_of_a_function_come_out_as_they_are() -> None:
    class Mine(Exception):
        pass

    calls = []

    def fails(ids: np.ndarray) -> np.ndarray:
        calls.append(ids.shape)
        if len(calls) > 20:
            raise Mine("at call 21")
        return exact_counter(ids)

    with pytest.raises(Mine, match="at call 21") as caught:
        ic.sweep(fails, task=TASK, lengths=range(1, 500))
    assert caught.traceback[-1].name == "fails" and len(calls) == 21

    def stops(done: int, total: int, text: str) -> None:
        raise Mine("in the callback")

    def slow(ids: np.ndarray) -> np.ndarray:
        import time

        time.sleep(0.02)
        return exact_counter(ids)

    with pytest.raises(Mine, match="in the callback"):
        ic.sweep(slow, task=TASK, lengths=range(1, 500), exhaustive=True, progress=stops)


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": [1.5]},
        {"lengths": ["3"]},
        {"lengths": b"1..3"},
        {"lengths": [2**70]},
        {"samples": 1.5},
        {"samples": None},
        {"samples": 2**70},
        {"seed": "a"},
        {"workers": 1.5},
        {"until_width": "a"},
        {"train_max_length": 2**31},
    ],
)
def test_numbers_that_are_none_are_named(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ic.ArgumentError, match=f"cannot read the {name}" if name == "lengths" else f"{name} is "):
        ic.sweep(lambda ids: ids, **{"task": "word/Z2", "lengths": [1], **options})


def test_sizes_of_batches_have_limits() -> None:
    for options in [{"pad_to": 2**62}, {"pad_to": 0}, {"batch_size": 2**40}, {"start": 2**62}]:
        with pytest.raises(ic.ArgumentError, match=f"{next(iter(options))} is "):
            next(ic.batches("word/Z2", **options))
    with pytest.raises(ic.ArgumentError, match="a batch of 32 rows of 16777216 tokens is too large"):
        next(ic.batches("word/Z2", pad_to=2**24))


def test_a_function_that_returns_nothing_says_so() -> None:
    with pytest.raises(ic.ModelError, match="returned None"):
        ic.sweep(lambda ids: None, task="word/Z2", lengths=[1])
