#!/usr/bin/env python3
"""Times training against PyTorch and prints two Markdown tables.

    cargo build --release
    python3 scripts/bench_train.py --baseline torch_baseline.py --python /path/to/python/with/torch

1. Whole optimisation steps on random tokens (`pipeline bench train`, so that no example is a copy of another) beside the
   baseline's, `--repeat` times in turn, so that a busy moment hits both; medians. `share` is the rate of the products that
   the model's matrices need, 6·tokens·(parameters − embedding) and 12·batch·seq²·hidden per layer of attention, over the
   machine's rate for a product of two 2048 × 2048 matrices, measured with PyTorch or given with `--gflops`. (Scans, Fourier
   transforms and everything else that is no product of matrices count as nothing, so it says little of S4 and Mamba.)
2. Seconds for `--steps` steps of the paper's recipes (`configs/paper/`), without evaluation: as they are, which folds
   examples that others begin with; with train.fold=false; and PyTorch's time for as many steps of the same size on examples
   padded to 128 tokens, as the original pads them (`--timed` steps are timed, in turn with the others). Recipes with dropout
   (S4, RWKV) do not fold.

Run it on an idle machine. Needs nothing but Python 3 for itself.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Architecture, positional embedding, width, layers, timed steps.
SIZES = [
    ("rnn", None, 128, 1, 20),
    ("lstm", None, 128, 1, 20),
    ("s4", None, 128, 1, 20),
    ("mamba", None, 128, 1, 20),
    ("rwkv5", None, 128, 1, 20),
    ("transformer", "none", 128, 1, 20),
    ("transformer", "rope", 128, 1, 20),
    ("transformer", "none", 128, 2, 20),
    ("lstm", None, 1024, 1, 3),
    ("transformer", "none", 1024, 2, 3),
]

# Recipe, and what the baseline calls its architecture.
RECIPES = {
    "rnn": "rnn",
    "lstm": "lstm",
    "s4": "s4",
    "mamba": "mamba",
    "rwkv5": "rwkv5",
    "transformer-nope": "transformer",
    "transformer-rope": "rope",
}

PRODUCT = """
import time, torch
torch.set_num_threads({threads})
a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
def seconds():
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start
print(2 * 2048**3 / min(seconds() for _ in range(8)) / 1e9)
"""


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=str(ROOT / "target/release/pipeline"))
    parser.add_argument("--baseline", help="a script with `train --arch A --hidden H --layers L --batch B --seq T --steps N`")
    parser.add_argument("--python", default=sys.executable, help="the Python that the baseline runs in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the baseline")
    parser.add_argument("--gflops", type=float, help="the machine's rate for products, instead of measuring it")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default="steps,training", help="which of the two tables")
    parser.add_argument("--archs", help="only these, of either table: lstm,transformer-rope")
    parser.add_argument("--tasks", default="counting_samesymbol_mod10,counting_samesymbol_shiftedstart3")
    parser.add_argument("--steps", type=int, default=1000, help="of the second table")
    parser.add_argument("--timed", type=int, default=10, help="steps of the baseline that are timed for it")
    return parser.parse_args()


def run(command, folder):
    """The last line that a command prints, as JSON."""
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def baseline(o, arch, hidden, layers, steps, folder):
    """Milliseconds per step."""
    command = [o.python, Path(o.baseline).resolve(), "train", "--arch", arch, "--hidden", hidden, "--layers", layers]
    command += ["--batch", 32, "--seq", 128, "--steps", steps, "--device", o.device, "--threads", o.threads]
    return run(command, folder)["step_ms_median"]


def product_rate(o, folder):
    if o.gflops or not o.baseline:
        return o.gflops
    return run([o.python, "-c", PRODUCT.format(threads=o.threads)], folder)


def wanted(o, *names):
    return o.archs is None or any(name in o.archs.split(",") for name in names)


def steps_table(o, folder):
    rate = product_rate(o, folder)
    if rate:
        print(f"Products run at {rate:.0f} GFLOP/s.\n")
    print("| model | width | layers | ms per step | tokens/s | share | PyTorch, ms | tokens/s | |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for arch, positions, hidden, layers, steps in SIZES:
        name = "rope" if positions == "rope" else arch
        if not wanted(o, arch, name):
            continue
        command = [o.pipeline, "bench", "train", "--arch", arch, "--hidden", hidden, "--layers", layers]
        command += ["--batch", 32, "--seq", 128, "--steps", steps, "--device", o.device, "--json", "--quiet"]
        if positions:
            command += ["--positional-embedding", positions]
        ours, theirs = [], []
        for _ in range(o.repeat):
            report = run(command, folder)
            ours.append(report["step_ms_median"])
            if o.baseline:
                theirs.append(baseline(o, name, hidden, layers, steps, folder))
        ms = statistics.median(ours)
        cells = [name, hidden, layers, f"{ms:.1f}", f"{4096e3 / ms:.0f}"]
        flops = 6 * 4096 * (report["parameters"] - report["vocab"] * hidden)
        flops += 12 * 32 * 128**2 * hidden * layers if arch == "transformer" else 0
        cells.append(f"{flops / ms / 1e6 / rate:.0%}" if rate else "–")
        if theirs:
            other = statistics.median(theirs)
            cells += [f"{other:.1f}", f"{4096e3 / other:.0f}", f"{other / ms:.2f}×"]
        else:
            cells += ["–"] * 3
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def key(config, name):
    """The value of a key in a TOML file (`tomllib` is as new as Python 3.11)."""
    return re.search(rf"^{name} = (\S+)", config.read_text(), re.MULTILINE)[1]


def training_table(o, folder):
    print(f"| model | task | {o.steps} steps, folded | rows per step | unfolded | PyTorch | |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for recipe, other in RECIPES.items():
        if not wanted(o, recipe, other):
            continue
        config = ROOT / f"configs/paper/{recipe}.toml"
        for task in o.tasks.split(","):
            train = [o.pipeline, "train", "--config", config, "--task", task, "--device", o.device]
            sets = [f"train.max_steps={o.steps}", f"task.train_examples={32 * o.steps}", "train.epochs=1000"]
            sets = [argument for key in sets for argument in ("--set", key)]
            train += ["--json", "--quiet", *sets]
            seconds = {}
            for fold in ("true", "false"):
                report = run([*train, "--set", f"train.fold={fold}"], folder)
                seconds[fold] = report["seconds"] - report["evaluation_seconds"]
                if fold == "true":
                    rows = report["rows_per_step"]
            cells = [recipe, task, f"{seconds['true']:.1f} s", f"{rows:.1f} of 32", f"{seconds['false']:.1f} s"]
            if o.baseline:
                hidden, layers = (int(key(config, name)) for name in ("hidden_size", "num_layers"))
                ms = statistics.median(baseline(o, other, hidden, layers, o.timed, folder) for _ in range(3))
                pytorch = ms * o.steps / 1e3
                cells += [f"{pytorch:.1f} s", f"{pytorch / seconds['true']:.1f}×"]
            else:
                cells += ["–", "–"]
            print("| " + " | ".join(cells) + " |", flush=True)


def main():
    o = options()
    with tempfile.TemporaryDirectory() as folder:
        if "steps" in o.only.split(","):
            steps_table(o, folder)
            print()
        if "training" in o.only.split(","):
            training_table(o, folder)


main()
