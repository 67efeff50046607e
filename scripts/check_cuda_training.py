#!/usr/bin/env python3
"""Trains every architecture, positional scheme and precision for a few steps on the CPU and on a GPU, from the same seed, and
compares the loss and the gradient's norm of every step. A run on the GPU is also stopped half-way and resumed.

    python3 scripts/check_cuda_training.py [--pipeline target/release/pipeline] [--device cuda] [--only lstm,alibi] [--steps 20]

`--wrapper COMMAND` puts a command before every run on the device: one that provides a CUDA device, or a profiler. One line per case,
which ends in ok or FAILED. Needs pyarrow. Models are small (width 32), so that this is about being right, not about speed.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent

# Short strings, and few of them in the splits.
TASK = "chomsky/parity_check,train_lengths=1..20,test_lengths=21..24"
SMALL = ["model.hidden_size=32", "task.train_examples=640", "task.val_examples=8", "task.test_examples=8"]
SMALL += ["train.batch_size=8", "train.log_every=1", "optimizer.warmup_steps=0"]

# Name: config, settings.
CASES = {
    "rnn": ("rnn", []),
    "lstm": ("lstm", []),
    "gru": ("gru", []),
    "mingru": ("mingru", []),
    "minlstm": ("minlstm", []),
    "s4": ("s4", []),
    "mamba": ("mamba", []),
    "mamba-negative": ("mamba", ["model.negative_eigenvalues=true"]),
    "mamba2": ("mamba2", ["model.head_size=16", "model.state_size=16"]),
    "rwkv5": ("rwkv5", ["model.head_size=16"]),
    "rwkv6": ("rwkv6", ["model.head_size=16"]),
    "rwkv7": ("rwkv7", ["model.head_size=16"]),
    "deltanet": ("deltanet", ["model.head_size=16"]),
    "gated-deltanet": ("gated_deltanet", ["model.num_heads=2", "model.head_size=16"]),
    "gated-deltaproduct": ("gated_deltanet", ["model.num_heads=2", "model.head_size=16", "model.num_householder=2"]),
    "gla": ("gla", ["model.num_heads=2"]),
    "hgrn2": ("hgrn2", ["model.expand_ratio=16"]),
    "mlstm": ("xlstm", ["model.slstm_at=[]", "model.num_heads=2", "model.round_to=8"]),
    "slstm": ("xlstm", ["model.slstm_at=[0, 1]", "model.num_heads=2", "model.round_to=8"]),
    "hybrid": ("hybrid", ["model.num_heads=2"]),
}
SCHEMES = ["none", "absolute", "sinusoidal", "rope", "scalar", "alibi", "t5", "kerple_log", "fire", "cope", "ssmax", "logn", "logn_clip"]
TRANSFORMER = ["model.num_heads=2", "model.num_layers=2"]
CASES |= {name: ("transformer", [*TRANSFORMER, f"model.positional_embedding={name}"]) for name in SCHEMES}
CASES |= {
    "shift": ("transformer", [*TRANSFORMER, "model.positional_embedding=absolute", "model.augmentation=shift"]),
    "randomized": ("transformer", [*TRANSFORMER, "model.positional_embedding=rope", "model.augmentation=randomized"]),
    "windows": ("transformer", [*TRANSFORMER, "model.attention_windows=[4, 0]"]),
    "looped": ("transformer", [*TRANSFORMER, "model.iterations=3", "model.input_injection=true"]),
    "post-norm": ("transformer", [*TRANSFORMER, "model.norm_first=false", "model.scale_embeddings=true"]),
    "both-directions": ("transformer", [*TRANSFORMER, "model.causal=false", "model.positional_embedding=alibi"]),
}
# Loss and relative norm; the rounding of half precision is larger than that of its products' order.
TOLERANCES = {"fp32": (1e-4, 1e-4), "fp16": (2e-3, 2e-2), "bf16": (1e-2, 1e-1)}
HALF = ["lstm", "rope", "mamba", "gated-deltanet"]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=str(ROOT / "target/release/pipeline"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--wrapper", default="", help="a command that the runs on the device are arguments of")
    parser.add_argument("--only", help="cases, with commas")
    parser.add_argument("--precisions", default="fp32,fp16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3600, help="the longest that a run may take")
    return parser.parse_args()


def train(o, folder, device, arguments):
    """The handle of the run."""
    before = shlex.split(o.wrapper) if device != "cpu" else []
    command = [*before, o.pipeline, "train", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=o.seconds)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(" / ".join(said[-3:]) or f"exit status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])["handle"]


def steps(folder, handle):
    """Loss and gradient norm of every step."""
    rows = pq.read_table(Path(folder) / "runs" / handle / "metrics.parquet").to_pylist()
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if row["split"] == "train" and row["grad_norm"] is not None}


def check(o, folder, name, precision):
    config, settings = CASES[name]
    common = ["--config", ROOT / f"configs/{config}.toml", "--task", TASK]
    for setting in [*SMALL, *settings, f"train.precision={precision}"]:
        common += ["--set", setting]

    def run(device, count):
        return train(o, folder, device, [*map(str, common), "--device", device, "--set", f"train.max_steps={count}"])

    ours, theirs = (steps(folder, run(device, o.steps)) for device in ("cpu", o.device))
    half = run(o.device, max(1, o.steps // 2))
    resumed = steps(folder, train(o, folder, o.device, ["--resume", half, "--set", f"train.max_steps={o.steps}"]))
    if sorted(ours) != sorted(theirs) or len(ours) != o.steps or sorted(resumed) != sorted(ours):
        raise RuntimeError(f"steps {sorted(ours)} on the CPU, {sorted(theirs)} on {o.device}, {sorted(resumed)} resumed")
    worst = [0.0, 0.0, 0.0]
    for step, (loss, norm) in ours.items():
        other = theirs[step]
        distances = (abs(other[0] - loss), abs(other[1] - norm) / norm, abs(resumed[step][0] - other[0]))
        # A difference that is no number is as large as can be.
        worst = [max(a, b if b == b else float("inf")) for a, b in zip(worst, distances)]
    most_loss, most_norm = TOLERANCES[precision]
    good = worst[0] <= most_loss and worst[1] <= most_norm and worst[2] <= most_loss
    return good, f"loss {worst[0]:.1e} · norm {worst[1]:.1e} · resumed {worst[2]:.1e}"


def main():
    o = options()
    o.pipeline = str(Path(o.pipeline).resolve())
    wanted = o.only.split(",") if o.only else list(CASES)
    if unknown := [name for name in wanted if name not in CASES]:
        sys.exit(f"--only {','.join(unknown)}: not among {', '.join(CASES)}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            for precision in o.precisions.split(","):
                if precision != "fp32" and name not in HALF:
                    continue
                start = time.monotonic()
                try:
                    good, what = check(o, folder, name, precision)
                except Exception as error:  # one case that cannot be run ends no others
                    good, what = False, str(error)
                failed += not good
                seconds = time.monotonic() - start
                print(f"{name} {precision}: {what} · {seconds:.0f} s: {'ok' if good else 'FAILED'}", flush=True)
    print(f"{failed} failed" if failed else "all ok")
    sys.exit(failed > 0)


main()
