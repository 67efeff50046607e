#!/usr/bin/env python3
"""Times training against PyTorch and prints four Markdown tables.

    cargo build --release
    python3 scripts/bench_train.py --baseline torch_baseline.py --python /path/to/python/with/torch

1. Whole optimisation steps on random tokens (`pipeline bench train`, so that no example is a copy of another) beside the
   baseline's, `--repeat` times in turn, so that a busy moment hits both; medians. `share` is the rate of the products that
   the model's matrices need, 6·tokens·(parameters − embedding) and 12·batch·seq²·hidden per layer of attention, without the
   input product of the first recurrent layer (which is looked up), over the machine's rate for a product of two
   2048 × 2048 matrices, the best that PyTorch reaches after any row so far, or given with `--gflops`. (Scans, Fourier
   transforms and everything else that is no product of matrices count as nothing, so it says little of S4 and Mamba.)
2. Seconds for 1000 steps of the paper's recipes (`configs/paper/`), without evaluation: as they are, which folds
   examples that others begin with; with train.fold=false; and PyTorch's time for as many steps of the same size on examples
   padded to 128 tokens, as the original pads them. Each is the time of as many steps as fit into `--budget` seconds
   (at least 5, at most 1000), scaled to 1000. Recipes with dropout (S4, RWKV) do not fold.
3. Steps of random sequences of 128 to 4096 tokens: microseconds per token, which stay the same where time is linear
   in length; and the largest memory that the process held, beside what the formula of docs/memory.md predicts.

4. The newer recurrent models beside what there is of them for a CPU in PyTorch (`scripts/torch_recurrent.py`): the best step of
   all, in turn; and microseconds per token at 128 to 4096 tokens. Only with `--only recurrent`.

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

# Recipe, and the baseline's name of its architecture.
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
    parser.add_argument("--only", default="steps,training,scaling", help="which of the tables; also recurrent")
    parser.add_argument("--archs", help="only these, of any table: lstm,transformer-rope")
    parser.add_argument("--tasks", default="counting_samesymbol_mod10,counting_samesymbol_shiftedstart3")
    parser.add_argument("--budget", type=float, default=15, help="seconds for each time in the second table")
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
    rate = 0
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
        if arch == "rwkv5":
            command += ["--heads", 8]  # as the baseline has
        ours, theirs = [], []
        for _ in range(o.repeat):
            report = run(command, folder)
            ours.append(report["step_ms_median"])
            if o.baseline:
                theirs.append(baseline(o, name, hidden, layers, steps, folder))
        rate = max(rate, product_rate(o, folder) or 0)
        ms = statistics.median(ours)
        cells = [name, hidden, layers, f"{ms:.1f}", f"{4096e3 / ms:.0f}"]
        looked_up = {"rnn": 1, "lstm": 4, "gru": 3}.get(arch, 0) * hidden**2
        flops = 6 * 4096 * (report["parameters"] - report["vocab"] * hidden - looked_up)
        flops += 12 * 32 * 128**2 * hidden * layers if arch == "transformer" else 0
        cells.append(f"{flops / ms / 1e6 / rate:.0%}" if rate else "–")
        if theirs:
            other = statistics.median(theirs)
            cells += [f"{other:.1f}", f"{4096e3 / other:.0f}", f"{other / ms:.2f}×"]
        else:
            cells += ["–"] * 3
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if rate:
        print(f"\nProducts run at {rate:.0f} GFLOP/s.")


def key(config, name):
    """The value of a key in a TOML file (`tomllib` is as new as Python 3.11)."""
    return re.search(rf"^{name} = (\S+)", config.read_text(), re.MULTILINE)[1]


def milliseconds(o, steps_in):
    """Milliseconds per step; `steps_in(n)` are the seconds of n steps."""
    few = steps_in(5)
    steps = max(5, min(1000, int(5 * o.budget / few)))
    return 1e3 * (few if steps == 5 else steps_in(steps)) / steps


def training_table(o, folder):
    print("| model | task | 1000 steps, folded | rows per step | unfolded | PyTorch | |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for recipe, other in RECIPES.items():
        if not wanted(o, recipe, other):
            continue
        config = ROOT / f"configs/paper/{recipe}.toml"
        pytorch = None
        if o.baseline:
            hidden, layers = (int(key(config, name)) for name in ("hidden_size", "num_layers"))
            pytorch = milliseconds(o, lambda n: baseline(o, other, hidden, layers, n, folder) * n / 1e3)
        for task in o.tasks.split(","):
            rows = {}

            def seconds(fold, steps):
                train = [o.pipeline, "train", "--config", config, "--task", task, "--device", o.device, "--json", "--quiet"]
                for setting in (f"train.max_steps={steps}", "task.train_examples=32000", "train.epochs=1000", f"train.fold={fold}"):
                    train += ["--set", setting]
                report = run(train, folder)
                rows[fold] = report["rows_per_step"]
                return report["seconds"] - report["evaluation_seconds"]

            folded = milliseconds(o, lambda n: seconds("true", n))
            unfolded = milliseconds(o, lambda n: seconds("false", n)) if rows["true"] < 32 else folded
            cells = [recipe, task, f"{folded:.1f} s", f"{rows['true']:.1f} of 32", f"{unfolded:.1f} s"]
            cells += [f"{pytorch:.1f} s", f"{pytorch / folded:.1f}×"] if pytorch else ["–", "–"]
            print("| " + " | ".join(cells) + " |", flush=True)


# Numbers that a step holds for every token and unit of width, for the first layer and for every further one: see
# docs/memory.md.
HELD = {"rnn": (6, 3.5), "lstm": (10, 14), "gru": (12, 11), "mamba": (25, 18), "rwkv5": (40, 29), "s4": (14, 6.5)}
# Bytes that the program itself takes.
BASE = 25e6
# Width, layers and sequences of the third table, not those that the numbers above come from.
SCALING = (192, 2, 2)


def scaling_table(o, folder):
    lengths = [128 << i for i in range(6)]
    width, layers, batch = SCALING
    print("| model | " + " | ".join(f"{length}" for length in lengths) + " | memory at 4096 | predicted |")
    print("|---|" + "--:|" * (len(lengths) + 2))
    for arch in HELD:
        if not wanted(o, arch):
            continue
        cells = [arch]
        for length in lengths:
            command = [o.pipeline, "bench", "train", "--arch", arch, "--hidden", width, "--layers", layers]
            command += ["--batch", batch, "--seq", length, "--steps", 5, "--device", o.device, "--json", "--quiet"]
            process = subprocess.Popen([str(part) for part in command], cwd=folder, stdout=subprocess.PIPE)
            report = json.loads(process.stdout.read())
            _, status, usage = os.wait4(process.pid, 0)
            if status != 0:
                sys.exit(f"{' '.join(map(str, command))} failed")
            cells.append(f"{1e3 * report['step_ms_median'] / (batch * length):.1f} µs")
        predicted = memory(report["parameters"], batch * lengths[-1], HELD[arch], width, layers)
        cells += [f"{usage.ru_maxrss / 1024:.0f} MiB", f"{predicted / 2**20:.0f} MiB"]
        print("| " + " | ".join(cells) + " |", flush=True)


# Settings of the newer models, as `scripts/torch_recurrent.py` has them: width 128, two layers.
NEWER = {
    "mamba2": [],
    "gla": ["num_heads=4"],
    "hgrn2": ["expand_ratio=32"],
    "gated_deltanet": ["num_heads=2", "head_size=48", "expand_v=2.0"],
    "rwkv7": ["head_size=64", "dropout=0.0"],
    "mlstm": ["slstm_at=[]", "num_heads=4"],
    "slstm": ["slstm_at=[0, 1]", "num_heads=4"],
}


def recurrent_table(o, folder):
    lengths = [128 << i for i in range(6)]
    print("| model | ms per step | median | PyTorch, ms | median | | " + " | ".join(f"{length}" for length in lengths) + " |")
    print("|---|" + "--:|" * (5 + len(lengths)))
    for name, settings in NEWER.items():
        if not wanted(o, name):
            continue

        def ours(batch, seq, steps):
            arch = "xlstm" if name in ("mlstm", "slstm") else name
            command = [o.pipeline, "bench", "train", "--arch", arch, "--hidden", 128, "--layers", 2, "--batch", batch]
            command += ["--seq", seq, "--steps", steps, "--device", o.device, "--json", "--quiet"]
            for setting in settings:
                command += ["--set", f"model.{setting}"]
            return run(command, folder)

        theirs = [o.python, ROOT / "scripts/torch_recurrent.py", "train", "--arch", name, "--threads", o.threads, "--steps", 5]
        pairs = [(ours(32, 128, 10), run(theirs, folder)) for _ in range(o.repeat)]
        cells, best = [name], []
        for side in zip(*pairs):
            best.append(min(report["step_ms_min"] for report in side))
            median = statistics.median(report.get("step_ms", report.get("step_ms_median")) for report in side)
            cells += [f"{best[-1]:.1f}", f"{median:.1f}"]
        cells.append(f"{best[1] / best[0]:.1f}×")
        for length in lengths:
            cells.append(f"{1e3 * ours(4096 // length or 1, length, 5)['step_ms_min'] / (4096 // length * length):.1f} µs")
        print("| " + " | ".join(cells) + " |", flush=True)


def memory(parameters, tokens, held, width, layers):
    """Bytes that a training process holds, by docs/memory.md."""
    first, further = held
    return BASE + 16 * parameters + 4 * tokens * width * (first + further * (layers - 1))


def main():
    o = options()
    with tempfile.TemporaryDirectory() as folder:
        if "steps" in o.only.split(","):
            steps_table(o, folder)
            print()
        if "training" in o.only.split(","):
            training_table(o, folder)
            print()
        if "scaling" in o.only.split(","):
            scaling_table(o, folder)
        if "recurrent" in o.only.split(","):
            recurrent_table(o, folder)


main()
