#!/usr/bin/env python3
"""Runs exported models on ONNX Runtime's CUDA or TensorRT provider: do they agree with the CPU, and does every node run there?

    pip install onnxruntime-gpu numpy
    python3 scripts/check_providers.py --provider cuda runs/*/model.onnx

Per model and length it prints the largest difference of logits from the CPU provider's (allowed: --tolerance) and which
nodes ran where, as ONNX Runtime's own profile tells. Exits with 1 where logits differ, the provider cannot be opened, or a
node fell back to the CPU that is not of these kinds, which ONNX Runtime puts there on purpose:

- nodes whose outputs are integers with at most one axis: shapes and indices, which the host needs to launch kernels with;
- `Scan` and `Loop` themselves, not what is in their bodies: the host counts their steps.
"""

import argparse
import collections
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],  # to try this script without a GPU: nothing falls back then
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"})],
    "tensorrt": ["TensorrtExecutionProvider", ("CUDAExecutionProvider", {"use_tf32": "0"})],
}
HOST_OPS = ("Scan", "Loop")


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--provider", choices=PROVIDERS, default="cuda")
    parser.add_argument("--lengths", default="1,50,1000")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    return parser.parse_args()


def session(model, providers, profile=None):
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(model), settings, providers=providers)


def inputs(session, batch, length):
    """Tokens 1, 2, 3 …, positions from 0, nothing hidden; states are left to their zeros."""
    metadata = session.get_modelmeta().custom_metadata_map
    vocabulary = len(json.loads(metadata.get("vocab", "[0, 1, 2]")))
    feeds = {"input_ids": 1 + (np.arange(batch * length) % (vocabulary - 1)).reshape(batch, length)}
    for entry in session.get_inputs():
        if entry.name == "position_ids":
            positions = np.tile(np.arange(length), (batch, 1))
            scalar = "float" in entry.type
            feeds["position_ids"] = (positions / length).astype(np.float32) if scalar else positions
        if entry.name == "attention_mask":
            feeds["attention_mask"] = np.ones((batch, length), np.int64)
        if entry.name == "iterations":
            feeds["iterations"] = np.array(int(metadata.get("iterations", 1)))
    return {name: value if value.dtype == np.float32 else value.astype(np.int64) for name, value in feeds.items()}


def is_of_the_host(event):
    """Whether ONNX Runtime runs this node on the CPU on purpose."""
    outputs = [(kind, shape) for output in event["args"].get("output_type_shape", []) for kind, shape in output.items()]
    indices = all("int" in kind and len(shape) <= 1 for kind, shape in outputs)
    return event["args"]["op_name"] in HOST_OPS or (bool(outputs) and indices)


def check(model, o):
    limit = session(model, PROVIDERS["cpu"]).get_modelmeta().custom_metadata_map.get("position_limit")
    lengths = [n for n in map(int, o.lengths.split(",")) if not limit or n <= int(limit)]
    reference = session(model, PROVIDERS["cpu"])
    wanted = PROVIDERS[o.provider][0]
    wanted = wanted if isinstance(wanted, str) else wanted[0]
    with tempfile.TemporaryDirectory() as folder:
        tried = session(model, PROVIDERS[o.provider], Path(folder) / "profile")
        if wanted not in tried.get_providers():
            print(f"{model}: {wanted} could not be opened; there are {', '.join(tried.get_providers())}")
            return False
        fine = True
        for length in lengths:
            feeds = inputs(reference, o.batch, length)
            difference = np.abs(reference.run(["logits"], feeds)[0] - tried.run(["logits"], feeds)[0]).max()
            agrees = bool(difference <= o.tolerance)
            fine &= agrees
            print(f"{model}: length {length}: largest difference {difference:.1e}{'' if agrees else '  TOO LARGE'}")
        events = json.loads(Path(tried.end_profiling()).read_text())
    ran, fallen = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("cat") != "Node" or "provider" not in event.get("args", {}):
            continue
        provider = event["args"]["provider"]
        ran[provider] += 1
        if provider == "CPUExecutionProvider" and o.provider != "cpu" and not is_of_the_host(event):
            fallen[f"{event['args']['op_name']} {event['name'].removesuffix('_kernel_time')}"] += 1
    print(f"{model}: runs of nodes: " + ", ".join(f"{n} on {p.removesuffix('ExecutionProvider')}" for p, n in ran.items()))
    for node, count in fallen.most_common(20):
        print(f"{model}: FELL BACK to the CPU {count} times: {node}")
    return fine and not fallen and ran[wanted] > 0


def main():
    o = options()
    offered = [name.lower() for name in ort.get_available_providers()]
    if not any(name.startswith(o.provider) for name in offered):
        sys.exit(f"this onnxruntime ({ort.__version__}) has no {o.provider} provider: pip install onnxruntime-gpu")
    results = [check(model, o) for model in o.models]
    print(f"{sum(results)} of {len(results)} models agree and run on {o.provider}")
    sys.exit(not all(results))


main()
