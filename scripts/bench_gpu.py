#!/usr/bin/env python3
"""Times training on a GPU against PyTorch and prints a Markdown table.

    cargo build --release
    python3 scripts/bench_gpu.py --baseline torch_baseline.py --python /path/to/python/with/torch

Whole optimisation steps on random tokens, 32 × 128, at the paper's sizes: `pipeline bench train` beside the baseline, both in
32-bit floats and with products in bfloat16 (autocast), `--repeat` times in turn; medians. The last column but two is the
baseline's faster time over our faster one. Of the card, as PyTorch measures it:

- `products` is the rate of the products that the model's matrices need, 6·tokens·(parameters − embedding) and
  12·batch·seq²·hidden per layer of attention, over that of a product of two 4096 × 4096 matrices of 32-bit floats (as
  PyTorch computes it by default, without TF32; `--tf32` allows it there, as ours may use it). Scans and everything else that
  is no product of matrices count as nothing.
- `bandwidth` is what a step must move at least, over what a copy of 1 GiB moves in the time: of 4 bytes for each parameter,
  eleven reads and writes (forward, backward, the gradient written and read for its norm, AdamW's four reads and three
  writes). Activations count as nothing, nor does a recurrent weight that is read again at every time step.

Needs nothing but Python 3 for itself. `--device cpu` runs it all on the processor, to try it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH, SEQ = 32, 128
ARCHITECTURES = ["rnn", "lstm", "s4", "mamba", "rwkv5", "transformer", "rope"]

CARD = """
import json, time, torch
device, large = "{device}", "{device}" != "cpu"
torch.backends.cuda.matmul.allow_tf32 = {tf32}
def sync():
    if large:
        torch.cuda.synchronize()
def seconds(work):
    times = []
    for _ in range(10):
        sync()
        start = time.perf_counter()
        work()
        sync()
        times.append(time.perf_counter() - start)
    return min(times)
n = 4096 if large else 1024
a, b = (torch.randn(n, n, device=device) for _ in range(2))
x = torch.zeros(1 << (28 if large else 24), device=device)
y = torch.empty_like(x)
name = torch.cuda.get_device_name(device) if large else "the processor"
print(json.dumps(dict(name=name, torch=torch.__version__, flops=2 * n**3 / seconds(lambda: a @ b),
                      bandwidth=2 * 4 * x.numel() / seconds(lambda: y.copy_(x)))))
"""


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=str(ROOT / "target/release/pipeline"))
    parser.add_argument("--baseline", help="a script with `train --arch A --hidden H --layers L --batch B --seq T --steps N`")
    parser.add_argument("--python", default=sys.executable, help="the Python that the baseline runs in")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in the product that is measured")
    parser.add_argument("--archs", default=",".join(ARCHITECTURES))
    parser.add_argument("--sizes", default="128x1,1024x1,1024x2,1024x4", help="width × layers")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a run")
    parser.add_argument("--repeat", type=int, default=5)
    return parser.parse_args()


def run(command, folder):
    """The last line that a command prints, as JSON; None if the command fails."""
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}", file=sys.stderr)
    return None


def ours(o, arch, hidden, layers, precision, folder):
    name, positions = {"transformer": ("transformer", "none"), "rope": ("transformer", "rope")}.get(arch, (arch, None))
    command = [o.pipeline, "bench", "train", "--arch", name, "--hidden", hidden, "--layers", layers]
    command += ["--batch", BATCH, "--seq", SEQ, "--steps", o.steps, "--device", o.device, "--json", "--quiet"]
    command += ["--set", f"train.precision={precision}"]
    return run(command + (["--positional-embedding", positions] if positions else []), folder)


def theirs(o, arch, hidden, layers, dtype, folder):
    command = [o.python, Path(o.baseline).resolve(), "train", "--arch", arch, "--hidden", hidden, "--layers", layers]
    command += ["--batch", BATCH, "--seq", SEQ, "--steps", o.steps, "--device", o.device, "--dtype", dtype]
    return run(command, folder)


def median(reports):
    """The median of the milliseconds, over the runs that succeeded."""
    times = [report["step_ms_median"] for report in reports if report]
    return statistics.median(times) if times else None


def cell(value, form):
    return "–" if value is None else format(value, form)


def row(o, arch, hidden, layers, card, folder):
    precisions = ("fp32", "bf16")
    mine, others = ({precision: [] for precision in precisions} for _ in range(2))
    for _ in range(o.repeat):
        for precision in precisions:
            mine[precision].append(ours(o, arch, hidden, layers, precision, folder))
            if o.baseline:
                others[precision].append(theirs(o, arch, hidden, layers, precision, folder))
    own = [median(mine[precision]) for precision in precisions]
    others = [median(others[precision]) for precision in precisions]
    ms = min((ms for ms in own if ms), default=None)
    cells = [arch, str(hidden), str(layers), *(cell(time, ".2f") for time in own)]
    cells += [cell(ms and BATCH * SEQ * 1e3 / ms, ".0f"), *(cell(other, ".2f") for other in others)]
    fastest = min((other for other in others if other), default=None)
    cells.append("–" if ms is None or fastest is None else f"{fastest / ms:.2f}×")
    shares = [None, None]
    if ms and card:
        report = next(report for reports in mine.values() for report in reports if report)
        flops = 6 * BATCH * SEQ * (report["parameters"] - report["vocab"] * hidden)
        flops += 12 * BATCH * SEQ**2 * hidden * layers if arch in ("transformer", "rope") else 0
        moved = 11 * 4 * report["parameters"]
        shares = [flops / ms * 1e3 / card["flops"], moved / ms * 1e3 / card["bandwidth"]]
    return cells + [cell(share, ".1%") for share in shares]


def main():
    o = options()
    with tempfile.TemporaryDirectory() as folder:
        card = run([o.python, "-c", CARD.format(device=o.device, tf32=o.tf32)], folder) if o.baseline else None
        if card:
            rates = f"products at {card['flops'] / 1e12:.2f} TFLOP/s, copies at {card['bandwidth'] / 1e9:.0f} GB/s"
            print(f"{card['name']}: {rates} (PyTorch {card['torch']}).\n")
        print("| model | width | layers | ms per step | bfloat16 | tokens/s | PyTorch, ms | autocast | | products | bandwidth |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        for size in o.sizes.split(","):
            hidden, layers = map(int, size.split("x"))
            for arch in o.archs.split(","):
                print("| " + " | ".join(row(o, arch, hidden, layers, card, folder)) + " |", flush=True)


main()
