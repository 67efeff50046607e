#!/usr/bin/env python3
"""Times the Python module against loops in PyTorch, and prints Markdown.

    python/build
    pip install target/wheels/*.whl torch
    python3 scripts/bench_python.py

- Sweeps of two untrained modules of PyTorch (an LSTM of width 128, a Transformer of width 64 with two layers; speed does not
  depend on what a model has learned) over lengths 1..1000, 8 sequences each: `ic.sweep` as a whole, with the export to
  ONNX, the comparison and the probe, beside two loops over the lengths in PyTorch: a plain one that scores one sequence after
  the other, and one that scores the 8 sequences of a length as one batch, which is as fast as such a loop gets. All must
  agree. The first sweep of a process also imports PyTorch's exporter; it is made before, on a few lengths, and reported.
- A million examples as a `pyarrow.Table`, and what pyarrow allocates for it.
- The import of the module.

Medians of `--repeat` runs in turn. Run it on an idle machine.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import inductive_counting as ic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python/tests"))
from torch_models import Gpt, Lstm  # noqa: E402


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="counting_diffsymbol_mod10", help="must have different sequences of all lengths")
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--examples", default="chomsky/parity_check", help="the task of the million examples")
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


def loop(module, tests, rows):
    """The accuracy of the last label at every length, so many sequences at a time."""
    found = []
    with torch.no_grad():
        for ids, labels in tests:
            right = 0
            for row in range(0, len(ids), rows):
                logits = module(torch.from_numpy(ids[row : row + rows]))  # [rows, tokens, vocab]
                asked = torch.from_numpy(labels[row : row + rows, -1])
                right += (logits[:, -1].argmax(-1) == asked).sum().item()
            found.append(right / len(ids))
    return found


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main():
    args = options()
    task = ic.task(args.task)
    vocab, lengths = len(task.vocabulary), range(1, args.longest + 1)
    tests = []
    for length in lengths:  # made beforehand: the loop's time is the model's
        rows = [task.test(length, index) for index in range(args.samples)]
        tests.append(tuple(np.array(part, np.int64) for part in zip(*rows)))
    torch.manual_seed(0)
    modules = {"LSTM": Lstm(vocab, 128).eval(), "Transformer": Gpt(vocab, 64, positions=args.longest + 100).eval()}
    print(f"{args.task}, lengths 1..{args.longest}, {args.samples} sequences each; torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads\n")  # fmt: skip
    first = timed(lambda: ic.sweep(modules["LSTM"], task=task, lengths=[1, 2], samples=1))[0]
    print(f"first sweep of the process: {first:.2f} s\n")
    print("| model | plain loop | | a length as a batch | | `ic.sweep` |\n|---|--:|--:|--:|--:|--:|")
    for name, module in modules.items():
        times = {"plain": [], "batched": [], "sweep": []}
        for _ in range(args.repeat):
            seconds, wanted = timed(lambda: loop(module, tests, 1))
            times["plain"].append(seconds)
            seconds, batched = timed(lambda: loop(module, tests, args.samples))
            times["batched"].append(seconds)
            seconds, table = timed(lambda: ic.sweep(module, task=task, lengths=lengths, samples=args.samples))
            times["sweep"].append(seconds)
            found = table["last_accuracy"].to_pylist()
            assert found == wanted == batched, "the tables differ"
        plain, batched, sweep = (statistics.median(times[way]) for way in ("plain", "batched", "sweep"))
        print(f"| {name} | {plain:.2f} s | {plain / sweep:.0f}× | {batched:.2f} s | {batched / sweep:.0f}× | {sweep:.2f} s |", flush=True)

    seconds, allocated = [], 0
    for _ in range(args.repeat):
        before = pa.total_allocated_bytes()
        took, table = timed(lambda: ic.dataset(args.examples, "train", 1_000_000))
        seconds.append(took)
        allocated = pa.total_allocated_bytes() - before
    print(f"\n1 M examples of {args.examples}: {statistics.median(seconds):.2f} s, {table.nbytes / 1e6:.0f} MB, of which pyarrow "
          f"allocated {allocated} bytes")  # fmt: skip
    imports = [timed(lambda: subprocess.run([sys.executable, "-c", "import inductive_counting"], check=True))[0]
               for _ in range(args.repeat)]  # fmt: skip
    print(f"`import inductive_counting` in a new process: {statistics.median(imports):.2f} s")


if __name__ == "__main__":
    main()
