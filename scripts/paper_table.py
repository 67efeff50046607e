#!/usr/bin/env python3
"""Some cells of arXiv 2405.20131's picture at small size: which models count beyond the lengths they were trained on?

    cargo build --release && python3 scripts/paper_table.py [--pipeline target/release/pipeline] [--out paper_table]

Every cell is trained with three seeds, exported, and swept over the lengths 1..100. Interrupt it whenever you like: called
again, it resumes the run that was interrupted and keeps what is done. Writes OUT/cells.md (accuracy on the last token, mean
over lengths, then mean and 95 % t-interval over seeds) and OUT/cells.csv (one row per cell and seed). Needs Python alone.
"""

import argparse
import csv
import json
import statistics
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SEEDS = (1234, 12, 123)
TASKS = {"modular": "counting_samesymbol_mod10bos", "shifted start": "counting_samesymbol_shiftedstart3"}
RECURRENT = ["optimizer.lr=2e-3", "optimizer.warmup_steps=100", "model.hidden_size=64"]
TRANSFORMER = ["optimizer.lr=1e-3", "optimizer.warmup_steps=100", "model.hidden_size=64", "model.num_heads=4"]
MODELS = {
    "RNN": ("rnn", RECURRENT),
    "LSTM": ("lstm", RECURRENT),
    "Mamba": ("mamba", RECURRENT),
    "Transformer, no positions": ("transformer-nope", TRANSFORMER),
    "Transformer, rotary": ("transformer-rope", TRANSFORMER),
}
TRAINED, LONGEST = 50, 100
# 97.5 % quantiles of Student's t by degrees of freedom
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Cells:
    def __init__(self, pipeline, out, steps, seeds):
        self.pipeline, self.out, self.steps, self.seeds = Path(pipeline).resolve(), out, steps, seeds
        out.mkdir(parents=True, exist_ok=True)
        self.known = out / "handles.json"  # (model, task, seed) -> handle
        self.handles = json.loads(self.known.read_text()) if self.known.exists() else {}

    def call(self, *arguments):
        command = [self.pipeline, *arguments, "--json", "--quiet"]
        return json.loads(subprocess.run(command, cwd=self.out, check=True, stdout=subprocess.PIPE).stdout)

    def train(self, key, arguments):
        """Trains and waits. The handle is the first line that is printed; it is kept at once, to resume by."""
        process = subprocess.Popen([self.pipeline, "train", *arguments], cwd=self.out, stdout=subprocess.PIPE, text=True)
        self.handles[key] = process.stdout.readline().strip() or self.handles.get(key)
        self.known.write_text(json.dumps(self.handles, indent=1))
        process.stdout.read()
        if process.wait():
            raise SystemExit(f"{key}: training failed")

    def run(self, model, task, seed):
        """The handle of the finished run of this cell."""
        config, overrides = MODELS[model]
        key = f"{model} / {task} / {seed}"
        if handle := self.handles.get(key):
            if self.call("runs", "show", handle)["status"] != "finished":
                self.train(key, ["--resume", handle])
            return handle
        print(f"{key}", flush=True)
        arguments = ["--config", REPOSITORY / f"configs/paper/{config}.toml", "--task", TASKS[task], "--seed", str(seed)]
        for override in [*overrides, f"train.max_steps={self.steps}", "train.eval_every=1000"]:
            arguments += ["--set", override]
        arguments += ["--set", f"train.checkpoint_every={max(self.steps // 10, 1)}", "--keep", "2"]
        self.train(key, arguments)
        return self.handles[key]

    def score(self, handle):
        """Mean accuracy on the last token over the trained lengths, and over longer ones."""
        swept = self.out / f"runs/{handle}/eval/cells.json"
        if not swept.exists():
            self.call("export", "--handle", handle)
            result = self.call("eval", "--handle", handle, "--lengths", f"1..{LONGEST}")
            swept.parent.mkdir(parents=True, exist_ok=True)
            swept.write_text(json.dumps(result))
        rows = [r for r in json.loads(swept.read_text())["lengths"] if r["status"] == "ok"]
        mean = lambda wanted: statistics.mean(r["last_accuracy"] for r in rows if wanted(r["length"]))
        return mean(lambda n: n <= TRAINED), mean(lambda n: n > TRAINED)

    def table(self):
        rows = []
        for task in TASKS:
            for model in MODELS:
                for seed in self.seeds:
                    handle = self.run(model, task, seed)
                    rows.append((model, task, seed, handle, *self.score(handle)))
        with open(self.out / "cells.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "task", "seed", "handle", "trained_lengths", "longer_lengths"])
            writer.writerows(rows)
        lines = [
            f"| model | task | seeds | lengths 1–{TRAINED} | lengths {TRAINED + 1}–{LONGEST} |",
            "|---|---|---|---|---|",
        ]
        for task in TASKS:
            for model in MODELS:
                of_cell = [row[4:] for row in rows if row[:2] == (model, task)]
                trained, longer = (interval([scores[i] for scores in of_cell]) for i in (0, 1))
                lines.append(f"| {model} | {task} | {len(of_cell)} | {trained} | {longer} |")
        text = "\n".join(lines) + "\n"
        (self.out / "cells.md").write_text(text)
        return text


def interval(values):
    """Mean and 95 % t-interval, cut to [0, 1]."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:.1f} %"
    half = T[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:.1f} % [{100 * max(mean - half, 0):.1f}, {100 * min(mean + half, 1):.1f}]"


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pipeline", default=REPOSITORY / "target/release/pipeline")
parser.add_argument("--out", type=Path, default=Path("paper_table"))
parser.add_argument("--steps", type=int, default=2000, help="optimisation steps of every run")
parser.add_argument("--seeds", type=lambda s: tuple(map(int, s.split(","))), default=SEEDS)
options = parser.parse_args()
print(Cells(options.pipeline, options.out, options.steps, options.seeds).table())
