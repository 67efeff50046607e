#!/usr/bin/env python3
"""Times length sweeps against the way the original tester walks over lengths, and prints a Markdown table.

    cargo build --release
    python3 scripts/bench_eval.py --baseline torch_baseline.py --python /path/to/python/with/torch

Per architecture (width 128, one layer, untrained: speed does not depend on what a model has learned) it trains one step,
exports, and then times, `--repeat` times in turn, so that a busy moment hits all of them:

- the baseline (if `--baseline` names its script): every length on its own, scored sequence by sequence in Python;
- `pipeline eval --exhaustive`: every length on its own;
- `pipeline eval`: one pass over the longest sequences, as a whole process and the sweep alone.

Reported are medians. `overhead` is the time of the exhaustive sweep over the time its sessions spent in ONNX Runtime.
On a GPU (`--provider cuda` or `tensorrt`, where the baseline runs on CUDA) it also prints how busy `nvidia-smi` saw the
GPU during the exhaustive sweeps. Run it on an idle machine. Needs nothing but Python 3 for itself.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=str(ROOT / "target/release/pipeline"))
    parser.add_argument("--baseline", help="a script with `eval --arch A --lengths 1..N --per-length K`")
    parser.add_argument("--python", default=sys.executable, help="the Python that the baseline runs in")
    parser.add_argument("--archs", default="rnn,lstm,transformer,rope,s4,mamba,rwkv5", help="as the baseline names them")
    parser.add_argument("--task", default="counting_diffsymbol_mod10", help="must have different sequences of all lengths")
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--provider", default="cpu", choices=["cpu", "cuda", "tensorrt"])
    parser.add_argument("--target", default="portable", help="what `pipeline export` writes for: portable or ort")
    return parser.parse_args()


def run(command, folder):
    """The last line that a command prints, as JSON, and the seconds that it took."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1]), time.perf_counter() - start


class Utilisation:
    """Samples of how busy the GPU is, in percent, while a block runs; none without a GPU."""

    def __init__(self, o):
        self.samples, self.wanted = [], o.provider != "cpu"

    def __enter__(self):
        if self.wanted:
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
            self.process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        if self.wanted:
            self.process.terminate()
            lines = self.process.communicate()[0].split()
            self.samples += [int(line) for line in lines if line.isdigit()]


def exported(o, arch, folder):
    positions = {"transformer": "none", "rope": "rope"}.get(arch)  # the baseline's `transformer` has none
    config = ROOT / f"configs/{'transformer' if positions else arch}.toml"
    sets = [f"model.hidden_size={o.width}", "model.num_layers=1", "train.max_steps=1", "task.train_examples=1000"]
    sets += [f"model.positional_embedding={positions}"] if positions else []
    sets += [f"model.head_size={o.width // 8}"] if arch == "rwkv5" else []  # the baseline has 8 heads
    sets = [argument for key in sets for argument in ("--set", key)]
    train = [o.pipeline, "train", "--config", config, "--task", o.task, *sets, "--json", "--quiet"]
    handle = run(train, folder)[0]["handle"]
    run([o.pipeline, "export", "--handle", handle, "--target", o.target, "--no-verify", "--json", "--quiet"], folder)
    return handle


def main():
    o = options()
    print("| model | original's way | exhaustive | | single pass, process | | sweep alone | | overhead |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for arch in o.archs.split(","):
            row(o, arch, folder)


def row(o, arch, folder):
    handle = exported(o, arch, folder)
    sweep = [o.pipeline, "eval", "--handle", handle, "--lengths", f"1..{o.longest}", "--samples", str(o.samples)]
    sweep += ["--provider", o.provider, "--threads", str(o.threads), "--json", "--quiet"]
    seconds = {key: [] for key in ("baseline", "exhaustive", "process", "alone", "overhead")}
    busy = Utilisation(o)
    for _ in range(o.repeat):
        if o.baseline:
            baseline = [o.python, Path(o.baseline).resolve(), "eval", "--arch", arch, "--hidden", str(o.width)]
            baseline += ["--lengths", f"1..{o.longest}", "--per-length", str(o.samples), "--threads", str(o.threads)]
            baseline += ["--device", "cpu" if o.provider == "cpu" else "cuda"]
            # time per sequence, so that a task with fewer different sequences is compared fairly
            report, _ = run(baseline, folder)
            seconds["baseline"].append(report["seconds"] / report["sequences"])
        with busy:
            report, _ = run([*sweep, "--exhaustive"], folder)
        sequences = sum(length["n_sequences"] for length in report["lengths"])
        seconds["exhaustive"].append(report["seconds"] / sequences)
        seconds["overhead"].append(report["seconds"] / report["session_seconds"])
        report, whole = run(sweep, folder)
        seconds["process"].append(whole / sequences)
        seconds["alone"].append(report["seconds"] / sequences)
    median = {key: statistics.median(values) for key, values in seconds.items() if values}
    total = lambda key: f"{median[key] * sequences:.2f} s"
    ratio = lambda key: f"{median['baseline'] / median[key]:.1f}×" if "baseline" in median else ""
    cells = [arch, total("baseline") if "baseline" in median else "–"]
    for key in ("exhaustive", "process", "alone"):
        cells += [total(key), ratio(key)]
    print("| " + " | ".join([*cells, f"{median['overhead']:.3f}"]) + " |", flush=True)
    if busy.samples:
        print(f"{arch}: the GPU was {statistics.mean(busy.samples):.0f} % busy on average", file=sys.stderr)


main()
