"""Training, runs, exports and reports."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import inductive_counting as ic

from conftest import TASK
from program import pipeline


def test_a_run_says_what_it_is(run: ic.Run) -> None:
    assert (run.status, run.task) == ("finished", TASK) and run.step == run.total_steps == 38
    assert run.config["model"]["hidden_size"] == 16 and run.config["train"]["seed"] == 7
    assert run.outcome is not None and run.outcome["loss"] > 0 and set(run.outcome["splits"]) >= {"val", "ood_test"}
    assert TASK in repr(run) and Path(run) == run.path
    metrics = run.metrics()
    assert {"train", "val"} <= set(metrics["split"].to_pylist()) and max(metrics["step"].to_pylist()) == 38
    assert [other.handle for other in ic.runs(run.runs)][-1:] == [ic.run(runs=run.runs).handle]


def test_all_kinds_of_configs_train_the_same_weights_as_the_program(run: ic.Run, tmp_path: Path) -> None:
    toml = f"[task]\nname = '{TASK}'\ntrain_examples = 600\n[model]\narch = 'lstm'\nhidden_size = 16\n[train]\nepochs = 2\nlog_every = 5\n"
    file = tmp_path / "lstm.toml"
    file.write_text(toml)
    folders = {"runs": tmp_path / "runs", "datasets": run.datasets}
    seven = {"train.seed": 7}
    weights = [model(ic.train(config, overrides=seven, **folders)) for config in [toml, file, str(file)]]
    options = ["--runs-dir", folders["runs"], "--data-dir", run.datasets]
    handle = pipeline("train", "--config", file, "--seed", 7, *options).stdout.split()[-1]
    weights.append(model(ic.run(handle, **folders)))
    assert all(other == model(run) for other in weights)


def test_a_run_that_was_trained_further_is_exported_again(run: ic.Run, tmp_path: Path) -> None:
    folders = {"runs": tmp_path, "datasets": run.datasets}
    short = ic.train(run.config, overrides={"train.epochs": 1}, **folders)
    before = short.sweep(lengths=range(1, 20))
    longer = short.resume(overrides={"train.epochs": 2})
    after = longer.sweep(lengths=range(1, 20))
    assert before["checkpoint"][0] != after["checkpoint"][0]
    longer.export()
    assert longer.sweep(lengths=range(1, 20)).equals(after)
    assert longer.sweep(lengths=range(1, 20), predictions=True)[0].equals(after)


def model(run: ic.Run) -> bytes:
    last = max((run.path / "checkpoints").iterdir(), key=lambda path: path.name)
    return (last / "model.safetensors").read_bytes()


def test_progress_and_notes_are_told(run: ic.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.INFO, "inductive_counting"):
        new = ic.train(run.config, overrides={"train.epochs": 1}, runs=tmp_path, datasets=run.datasets,
                       progress=lambda *now: told.append(now))  # fmt: skip
        new.export()
    assert told[-1][:2] == (19, 19) and "loss" in told[-1][2]
    text = caplog.text
    assert f"run {new.handle}" in text and "agrees with burn" in text
    longer = new.resume(overrides={"train.epochs": 2})
    assert longer.step == 38 and longer.handle == new.handle


def test_an_exception_of_the_callback_saves_the_run(run: ic.Run, tmp_path: Path) -> None:
    def stop(done: int, total: int, text: str) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        ic.train(run.config, overrides={"train.epochs": 500}, runs=tmp_path, datasets=run.datasets, progress=stop)
    broken = ic.run(caught.value.run, runs=tmp_path)  # type: ignore[attr-defined]
    assert broken.status == "interrupted" and broken.step is not None and 0 < broken.step < 9500


def test_a_report_shows_sweeps(run: ic.Run, tmp_path: Path) -> None:
    table = run.sweep(lengths=range(1, 61), samples=5)
    (run.path / "eval").mkdir(exist_ok=True)
    pq.write_table(table, run.path / "eval" / "sweep.parquet")
    page = ic.report(run.runs, tmp_path / "report.html")
    assert TASK.removeprefix("counting_") in page.read_text()


def test_a_run_that_was_not_exported_is_exported_by_its_sweep(run: ic.Run, tmp_path: Path) -> None:
    new = ic.train(run.config, overrides={"train.epochs": 1}, runs=tmp_path, datasets=run.datasets)
    assert new.model is None
    assert ic.sweep(new, lengths=[1, 2], samples=2)["handle"].to_pylist() == [new.handle] * 2
    assert new.model is not None
