#!/usr/bin/env python3
"""Sweeps exported models on a provider plugin of ONNX Runtime and on the CPU: do the tables agree, and how fast is each?

    pip install pyarrow
    python3 scripts/check_plugins.py --provider openvino runs/*/model.onnx
    python3 scripts/check_plugins.py --every --provider openvino    # models of every architecture and scheme, made now
    python3 scripts/check_plugins.py --every --provider-library libonnxruntime_providers_webgpu.so

For every model it prints the largest difference of the losses (allowed: --tolerance, a thousandth of a nat), the share of
predictions that differ (allowed: one in a thousand; untrained models have near ties), and the seconds of both sweeps. Exits
with 1 where a table differs or a model is refused. `--every` trains each architecture for three steps: what is tested is the
graph, not the model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = ["none", "absolute", "sinusoidal", "rope", "scalar+scaler+shift", "alibi"]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--provider", default="openvino")
    parser.add_argument("--provider-library")
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--pipeline", default=str(ROOT / "target/release/pipeline"))
    parser.add_argument("--lengths", default="1..300")
    parser.add_argument("--samples", default="8")
    parser.add_argument("--task", default="counting_samesymbol_mod10bos")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    return parser.parse_args()


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def make(o, folder):
    """Models of every architecture, and of Transformers with every scheme."""
    folders = ["--runs-dir", folder / "runs", "--data-dir", folder / "datasets"]
    models = {}
    for config in sorted((ROOT / "configs").glob("*.toml")):
        arch = config.stem
        if arch.startswith("quickstart"):
            continue
        for scheme in SCHEMES if arch == "transformer" else [None]:
            settings = ["model.hidden_size=64", "task.train_examples=320", "train.max_steps=3", "optimizer.warmup_steps=0"]
            if scheme:
                positions, _, augmentation = scheme.partition("+")
                settings += ["model.num_heads=4", f"model.positional_embedding={positions}"]
                settings += [f"model.augmentation={augmentation}"] if augmentation else []
            train = [o.pipeline, *folders, "train", "--config", config, "--task", o.task, "--json"]
            handle = run(*train, *[part for setting in settings for part in ("--set", setting)])["handle"]
            run(o.pipeline, *folders, "export", "--handle", handle, "--json")
            models["-".join(filter(None, [arch, scheme]))] = folder / "runs" / handle / "model.onnx"
    return models


def sweep(o, model, table, *provider):
    command = [o.pipeline, "eval", "--model", model, "--task", o.task, "--lengths", o.lengths, "--samples", o.samples]
    document = run(*command, "--predictions", *provider, "-o", table, "--json")
    predictions = table.with_name(table.stem + "-predictions.parquet")
    return pq.read_table(table).to_pydict(), pq.read_table(predictions).to_pydict(), document


def seconds(document):
    found = document[0] if isinstance(document, list) else document
    return found.get("seconds") or found["results"][0]["seconds"]


def check(o, name, model, folder):
    plugin = ["--provider-library", o.provider_library] if o.provider_library else ["--provider", o.provider]
    try:
        ours, said, first = sweep(o, model, folder / "cpu.parquet", "--provider", "cpu")
        theirs, answered, second = sweep(o, model, folder / "plugin.parquet", *plugin)
    except RuntimeError as error:
        print(f"{name}: REFUSED: {error}")
        return False
    losses = [abs(a - b) for a, b in zip(ours["loss"], theirs["loss"]) if a is not None and b is not None]
    pairs = [(a, b) for x, y in zip(said["predicted"], answered["predicted"]) for a, b in zip(x, y)]
    differ = sum(a != b for a, b in pairs) / max(len(pairs), 1)
    fine = ours["status"] == theirs["status"] and max(losses, default=0) <= o.tolerance and differ <= 1e-3
    print(
        f"{name}: on {theirs['provider'][0]}: losses differ by {max(losses, default=0):.1e}, predictions by {differ:.2%}; "
        f"{seconds(first):.2f} s on the CPU provider, {seconds(second):.2f} s{'' if fine else '  DIFFERENT'}",
        flush=True,
    )
    return fine


def main():
    o = options()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        models = {str(model): model for model in o.models}
        if o.every:
            models |= make(o, folder)
        if not models:
            sys.exit("name models, or give --every")
        results = [check(o, name, model, folder) for name, model in models.items()]
    print(f"{sum(results)} of {len(results)} models agree")
    sys.exit(not all(results))


main()
