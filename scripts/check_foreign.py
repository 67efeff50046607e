"""Exports PyTorch models the usual ways, sweeps them with the program, and compares every score with PyTorch's own:

    pip install torch onnx onnxscript onnxruntime numpy
    cargo build --release -p pipeline --no-default-features --features eval
    python scripts/check_foreign.py target/release/pipeline

An LSTM, a GPT with a table of 64 positions and an `nn.TransformerEncoder` (which sees what comes later) go through both of
`torch.onnx`'s exporters, with dynamic and with fixed sizes. A file must be swept at every length at which ONNX Runtime runs
it on a single row, and have a status at every other.
"""

import argparse
import csv
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

TASK = "counting_samesymbol_mod10bos"
VOCAB, BOS, SYMBOL = 13, 0, 12
LONGEST = 80  # of the sweep; the table has 64 positions
TRACED = 21  # tokens of the example that the exporters see


class Lstm(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(width, VOCAB)

    def forward(self, input_ids):
        return self.decoder(self.lstm(self.embedding(input_ids))[0])


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, seq, width = x.shape
        split = lambda part: part.view(batch, seq, self.heads, width // self.heads).transpose(1, 2)
        q, k, v = map(split, self.qkv(self.norms[0](x)).chunk(3, dim=-1))
        weights = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        future = torch.ones(seq, seq, dtype=torch.bool, device=x.device).triu(1)
        weights = weights.masked_fill(future, float("-inf")).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, seq, width))
        return x + self.mlp(self.norms[1](x))


class Gpt(nn.Module):
    def __init__(self, width=32, heads=2, positions=64):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(2)])
        self.decoder = nn.Linear(width, VOCAB)

    def forward(self, input_ids):
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.decoder(x)


class Encoder(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, width)
        layer = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.decoder = nn.Linear(width, VOCAB)

    def forward(self, input_ids):
        return self.decoder(self.encoder(self.tokens(input_ids)))


def export(model, path, dynamo, dynamic):
    example = torch.randint(0, VOCAB, (2 if dynamic else 1, TRACED))
    names = dict(input_names=["input_ids"], output_names=["logits"], dynamo=dynamo)
    if dynamo:
        if dynamic:
            batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq", max=64 if isinstance(model, Gpt) else 4096)
            names["dynamic_shapes"] = {"input_ids": {0: batch, 1: seq}}
        names |= {"verbose": False, "external_data": False}
    elif dynamic:
        sizes = {0: "batch", 1: "seq"}
        names["dynamic_axes"] = {"input_ids": sizes, "logits": sizes}
    torch.onnx.export(model, (example,), str(path), **names)


def test(length):
    """The sequence and the labels of its symbols."""
    return [BOS] + [SYMBOL] * length, [i % 10 + 1 for i in range(length)]


def torch_scores(model, length):
    """(all tokens right, last token right, loss), or None where PyTorch itself fails."""
    ids, labels = test(length)
    try:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, 1:].double()
    except (IndexError, RuntimeError):
        return None
    labels = torch.tensor(labels)
    right = (logits.argmax(-1) == labels).double()
    return right.mean().item(), right[-1].item(), nn.functional.cross_entropy(logits, labels).item()


def runs(session, length):
    ids, _ = test(length)
    try:
        (logits,) = session.run(["logits"], {"input_ids": np.array([ids], np.int64)})
    except Exception:  # onnxruntime has a class for each code
        return False
    return logits.shape == (1, len(ids), VOCAB)


def table(program, model, *arguments):
    out = model.with_name("out.csv")
    command = [program, "eval", "--model", model, "--task", TASK, "--format", "csv", "-o", out, "-q", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=model.parent)
    assert done.returncode == 0, done.stderr
    found = out if "--split" not in arguments else model.with_name("out-val.csv")
    with open(found, newline="") as file:
        return {int(row["length"]): row for row in csv.DictReader(file)}


def compare(model, path, rows, lengths, session):
    ran = []
    for length in lengths:
        row, expected = rows[length], torch_scores(model, length)
        if not runs(session, length):
            assert row["status"] not in ("ok", "") and row["loss"] == "", (path.name, length, row)
            continue
        assert row["status"] == "ok", (path.name, length, row["status"])
        ran.append(length)
        found = [float(row[column]) for column in ("accuracy", "last_accuracy", "loss")]
        assert expected is not None and np.allclose(found, expected, rtol=1e-4, atol=1e-4), (path.name, length, found, expected)
    return ran


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=lambda text: Path(text).absolute())
    program = parser.parse_args().program
    warnings.filterwarnings("ignore")
    torch.backends.mha.set_fastpath_enabled(False)
    onnxruntime.set_default_logger_severity(4)
    with tempfile.TemporaryDirectory() as folder:
        for kind in (Lstm, Gpt, Encoder):
            torch.manual_seed(1)
            model = kind().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)  # fresh logits are nearly equal
            for dynamo in (False, True):
                for dynamic in (True, False):
                    name = f"{kind.__name__.lower()}-{'dynamo' if dynamo else 'script'}-{'dynamic' if dynamic else 'fixed'}"
                    path = Path(folder) / f"{name}.onnx"
                    export(model, path, dynamo, dynamic)
                    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
                    sweep, plans = f"1..{LONGEST}", set()
                    for more in ([], ["--exhaustive"], ["--max-tokens", "1", "--workers", "2"]):
                        rows = table(program, path, "--lengths", sweep, *more)
                        ran = compare(model, path, rows, range(1, LONGEST + 1), session)
                        plans.add(next(iter(rows.values()))["plan"])
                    compare(model, path, table(program, path, "--split", "val"), range(1, 51), session)
                    print(f"{name}: {len(ran)} of {LONGEST} lengths run, from {ran[0]} to {ran[-1]}; {', '.join(sorted(plans))}")


if __name__ == "__main__":
    main()
