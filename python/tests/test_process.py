"""Threads, Ctrl-C, memory, and the other copies of ONNX Runtime in a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import inductive_counting as ic

from conftest import TASK, exact_counter
from program import path, pipeline


def python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    there = {**os.environ, **environment}
    folder = Path(__file__).parent
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=there, cwd=folder)


def said(process: subprocess.Popen[str], within: float = 120) -> str:
    out, err = process.communicate(timeout=within)
    assert process.returncode == 0, err
    return out


def test_other_threads_go_on_while_the_native_part_works(onnx_path: Path) -> None:
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    ic.dataset("chomsky/stack_manipulation", "train", 200_000)
    ic.sweep(onnx_path, lengths=range(1, 2001), samples=200)
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    assert ticks > 50 * seconds, f"{ticks} ticks in {seconds:.2f} s"


def test_threads_sweep_side_by_side(onnx_path: Path) -> None:
    wanted = ic.sweep(onnx_path, lengths=range(1, 101), samples=10)

    def sweep(index: int) -> bool:
        if index % 2:
            return ic.sweep(exact_counter, task=TASK, lengths=[5, 9])["last_accuracy"].to_pylist() == [1.0, 1.0]
        return ic.sweep(onnx_path, lengths=range(1, 101), samples=10).equals(wanted)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(sweep, range(12)))


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent in another way there")
@pytest.mark.parametrize("model", ["file", "function"])
def test_ctrl_c_ends_a_long_sweep_at_once(model: str, onnx_path: Path) -> None:
    code = """
        import sys, time
        import inductive_counting as ic
        from conftest import TASK, exact_counter
        def slow(ids):
            time.sleep(0.02)
            return exact_counter(ids)
        model = sys.argv[1] if sys.argv[2] == "file" else slow
        print("now", flush=True)
        try:
            ic.sweep(model, task=TASK, lengths=range(1, 20_001), samples=2000, exhaustive=True)
        except KeyboardInterrupt:
            print("interrupted", ic.sweep(exact_counter, task=TASK, lengths=[3])["last_accuracy"][0])
    """
    process = python(code, onnx_path, model)
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    time.sleep(3)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out = said(process, within=60)
    seconds = time.perf_counter() - start
    assert out == "interrupted 1.0\n"
    assert seconds < 5, f"it took {seconds:.1f} s"


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent in another way there")
def test_ctrl_c_ends_a_sweep_that_still_plans() -> None:
    code = """
        import threading, time
        import numpy as np, inductive_counting as ic
        from conftest import PARITY
        task, calls = ic.task(PARITY), 0
        def zeros(ids):
            global calls
            calls += 1
            return np.zeros((*ids.shape, len(task.vocabulary)), np.float32)
        def watch():
            before = -1
            while calls == 0 or calls != before:  # until the probe is over
                before = calls
                time.sleep(1)
            print("plans", flush=True)
        threading.Thread(target=watch, daemon=True).start()
        try:
            ic.sweep(zeros, task=task, lengths=range(1, 5000), samples=2000)
        except KeyboardInterrupt:
            print("interrupted")
    """
    process = python(code)
    assert process.stdout is not None and process.stdout.readline() == "plans\n"
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out = said(process, within=60)
    seconds = time.perf_counter() - start
    assert out == "interrupted\n"
    assert seconds < 2, f"it took {seconds:.1f} s"


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent in another way there")
def test_ctrl_c_ends_the_making_of_a_test() -> None:
    code = """
        import inductive_counting as ic
        task = ic.task("abacus/multiplication")
        print("now", flush=True)
        try:
            task.test(2**22)  # a minute and more
        except KeyboardInterrupt:
            print("interrupted")
    """
    process = python(code)
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    time.sleep(1)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out = said(process, within=60)
    seconds = time.perf_counter() - start
    assert out == "interrupted\n"
    assert seconds < 2, f"it took {seconds:.1f} s"


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent in another way there")
def test_ctrl_c_saves_a_run_which_goes_on_to_the_same_end(tmp_path: Path) -> None:
    code = """
        import sys, inductive_counting as ic
        config = {"task": {"name": "counting_samesymbol_mod10bos", "train_examples": 3200},
                  "model": {"arch": "gru", "hidden_size": 24}, "train": {"epochs": 4, "device": "cpu"}}
        folders = {"runs": sys.argv[1] + "/runs", "datasets": sys.argv[1] + "/datasets"}
        whole = ic.train(config, **folders) if sys.argv[2] == "whole" else None
        if whole is None:
            told = lambda done, total, text: print(done, flush=True) if done < total else None
            try:
                ic.train(config, progress=told, **folders)
                print("finished")
            except KeyboardInterrupt as stop:
                broken = ic.run(stop.run, **folders)
                print("saved", broken.status, 0 < broken.step < broken.total_steps, flush=True)
                whole = ic.resume(broken)
        print(whole.status, whole.outcome["loss"])
    """
    process = python(code, tmp_path / "a", "broken")
    assert process.stdout is not None and process.stdout.readline().strip().isdigit()
    process.send_signal(signal.SIGINT)
    lines = [line for line in said(process).splitlines() if not line.isdigit()]
    whole = said(python(code, tmp_path / "b", "whole")).splitlines()
    assert lines == ["saved interrupted True", *whole] and whole[0].startswith("finished ")


@pytest.mark.parametrize("first", ["import onnxruntime", "import inductive_counting"])
def test_onnxruntime_may_be_imported_before_or_after(first: str, onnx_path: Path) -> None:
    code = f"""
        import sys
        {first}
        import numpy as np, inductive_counting as ic
        if "onnxruntime" not in sys.modules:
            assert ic.sweep(sys.argv[1], lengths=[5]).num_rows == 1
        import onnxruntime
        session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        ids = np.array([ic.task("{TASK}").test(9)[0]])
        names = [i.name for i in session.get_inputs()]
        values = {{"input_ids": ids, "position_ids": np.arange(ids.shape[1])[None], "attention_mask": np.ones_like(ids)}}
        theirs = session.run(["logits"], {{name: values[name] for name in names}})[0]
        model = ic._native.Model.load(__import__("pathlib").Path(sys.argv[1]))
        memory, vocab = model.logits(ids.ravel().tolist(), *ids.shape)
        ours = np.frombuffer(memory, np.float32).reshape(theirs.shape)
        print(np.abs(ours - theirs).max() < 1e-5, ic.sweep(sys.argv[1], lengths=[5]).num_rows)
    """
    assert said(python(code, onnx_path)) == "True 1\n"


def test_onnxruntime_is_the_installed_package(tmp_path: Path) -> None:
    found = ic._native.onnxruntime()
    assert found is not None and "site-packages" in str(found[0]) and "Python package" in found[2]
    doctor = pipeline("doctor", "--json", env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}).stdout
    assert str(found[0]) in doctor and "environment that this program is installed in" in doctor
    assert not list(tmp_path.iterdir()), "nothing was fetched"


def test_without_onnxruntime_the_error_says_what_to_install(onnx_path: Path, tmp_path: Path) -> None:
    code = """
        import sys
        import importlib.util as util
        find = util.find_spec
        util.find_spec = lambda name, *a: None if name == "onnxruntime" else find(name, *a)
        import inductive_counting as ic
        try:
            ic.sweep(sys.argv[1], lengths=[1])
        except ic.Error as error:
            print(error)
    """
    out = said(python(code, onnx_path, ORT_DYLIB_PATH="", XDG_CACHE_HOME=str(tmp_path)))
    assert "this Python: not installed" in out and "hint: `pip install onnxruntime`" in out and "fetch" not in out
    broken = said(python(code, onnx_path, ORT_DYLIB_PATH=str(tmp_path / "no.so")))
    assert "named by ORT_DYLIB_PATH" in broken


def test_telemetry_is_off() -> None:
    out = said(python("import os, inductive_counting; print(os.environ['ORT_DISABLE_TELEMETRY'])"))
    assert out == "1\n"


def rss() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_thousand_sweeps_leave_nothing_behind(onnx_path: Path) -> None:
    code = """
        import gc, sys
        import inductive_counting as ic
        from conftest import TASK, exact_counter
        from test_process import rss
        held = lambda ids, weight=bytearray(1 << 16): exact_counter(ids)  # a leaked function would show
        def sweeps(count):
            for _ in range(count):
                ic.sweep(sys.argv[1], lengths=range(1, 9), samples=4, threads=1)
                ic.sweep(exact_counter, task=TASK, lengths=range(1, 9), samples=4)
                ic.dataset(TASK, "train", 500)
            gc.collect()
            return rss()
        before = sweeps(100)
        after = sweeps(500)  # 1000 sweeps
        print(before, after)
    """
    before, after = map(int, said(python(code, onnx_path), within=900).split())
    grown = (after - before) / 1e6
    assert grown < 16, f"{grown:.1f} MB more after 1000 sweeps; {before / 1e6:.0f} MB before"


def test_the_program_is_the_whole_one(tmp_path: Path) -> None:
    assert "quickstart" in pipeline("--help").stdout
    grid = tmp_path / "grid.toml"
    (tmp_path / "rnn.toml").write_text(f"[task]\nname = '{TASK}'\n[model]\narch = 'rnn'\nhidden_size = 8\n")
    grid.write_text(
        f"tasks = ['{TASK}']\nseeds = [1, 2]\n[set.task]\ntrain_examples = 64\n[set.train]\nepochs = 1\n"
        "[eval]\nlengths = '1..10'\n[[architecture]]\nconfig = 'rnn.toml'\n"
    )
    done = subprocess.run([path(), "grid", str(grid), "--workers", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("*/eval/sweep.parquet"))) == 2


def test_nothing_is_written_to_the_streams(onnx_path: Path) -> None:
    code = "import sys, inductive_counting as ic; ic.sweep(sys.argv[1], lengths=[1, 2]); ic.dataset(ic.tasks()[0], 'val')"
    process = python(code, onnx_path)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("", ""), (out, err)


def test_numpy_arrays_of_a_function_are_its_own() -> None:
    kept: list[np.ndarray] = []

    def keeps(ids: np.ndarray) -> np.ndarray:
        kept.append(ids)
        ids[:] = ids  # they may be written to
        return exact_counter(ids)

    ic.sweep(keeps, task=TASK, lengths=[4, 5], samples=2)
    assert all(ids.min() >= 0 and ids.max() < 100 for ids in kept)
