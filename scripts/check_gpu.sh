#!/usr/bin/env bash
# Checks the CUDA paths on a machine with an NVIDIA GPU: training on CUDA against training on the CPU from the same seed,
# the models' parity tests on CUDA, and ONNX Runtime's CUDA and TensorRT providers against its CPU provider.
#
#   scripts/check_gpu.sh [PIPELINE_BINARY]
#
# Needs the NVIDIA driver, CUDA's NVRTC and headers (CUDA_PATH), Python 3, and for the providers `pip install
# onnxruntime-gpu` or ORT_DYLIB_PATH. Without a binary as argument it builds one and also runs the tests (Rust).
# How fast it is, is measured by scripts/bench_eval.py --provider cuda and scripts/bench_train.py --device cuda.
# A provider that this machine's ONNX Runtime was built without is reported as absent, and so is a TensorRT provider that
# cannot be loaded (its libraries come separately), each with the reason; a CUDA provider that is there must run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
if [ $# -ge 1 ]; then
  pipeline=$(realpath "$1")
else
  cargo build --release
  pipeline=$root/target/release/pipeline
  cargo test --release --workspace --test parity_cuda
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"$pipeline" doctor
"$pipeline" doctor --json >doctor.json

failed=0
for config in rnn lstm transformer; do
  for device in cpu cuda; do
    "$pipeline" train --config "$root/configs/$config.toml" --device $device --json --quiet \
      --set task.train_examples=2000 --set train.max_steps=30 --set model.hidden_size=64 --set optimizer.warmup_steps=0 \
      >"$config-$device.json"
  done
  handle=$(python3 -c "import json; print(json.load(open('$config-cuda.json'))['handle'])")
  "$pipeline" export --handle "$handle" --quiet
  for provider in cpu cuda tensorrt; do
    "$pipeline" eval --handle "$handle" --lengths 1..1000 --provider $provider --json --quiet \
      >"$config-eval-$provider.json" 2>"$config-eval-$provider.err" || rm -f "$config-eval-$provider.json"
  done
  python3 - "$config" <<'PY' || failed=1
import json, os, sys
config, bad = sys.argv[1], False
cpu, cuda = (json.load(open(f"{config}-{d}.json"))["loss"] for d in ("cpu", "cuda"))
agrees = abs(cpu - cuda) <= 1e-3 * abs(cpu)
bad |= not agrees
print(f"{config}: loss after 30 steps: cpu {cpu:.6f}, cuda {cuda:.6f}: {'ok' if agrees else 'DIFFERS'}")
rows = lambda p: [(r["length"], r["accuracy"]) for r in json.load(open(f"{config}-eval-{p}.json"))["lengths"]]
reference = rows("cpu")
for provider in ("cuda", "tensorrt"):
    if not os.path.exists(f"{config}-eval-{provider}.json"):
        reason = open(f"{config}-eval-{provider}.err").read().strip().replace("\n", " ")
        offered = json.load(open("doctor.json"))["providers"] or []
        broken = provider == "cuda" and "CUDAExecutionProvider" in offered
        bad |= broken
        print(f"{config}: provider {provider}: {'FAILED' if broken else 'absent'}: {reason}")
        continue
    differing = [a[0] for a, b in zip(reference, rows(provider)) if abs(a[1] - b[1]) > 0.01]
    bad |= bool(differing)
    print(f"{config}: provider {provider} against cpu: {'ok' if not differing else f'DIFFERS at lengths {differing[:10]}'}")
sys.exit(bad)
PY
done
# Every other architecture, untrained: logits on each provider against the CPU's, and which nodes fell back to the CPU.
for config in gru mingru deltanet s4 mamba rwkv5 rwkv6; do
  "$pipeline" train --config "$root/configs/$config.toml" --device cpu --json --quiet \
    --set task.train_examples=500 --set train.max_steps=1 --set model.hidden_size=64 >"$config.json"
done
"$pipeline" export --all --quiet
for provider in cuda tensorrt; do
  if ! python3 -c "import onnxruntime as o, sys; sys.exit(not any(p.lower().startswith('$provider') for p in o.get_available_providers()))"; then
    echo "nodes on $provider: not checked: Python has no onnxruntime-gpu (pip install onnxruntime-gpu numpy)"
  elif [ $provider = tensorrt ] && ! python3 -c "import tensorrt" 2>/dev/null; then
    echo "nodes on tensorrt: absent: Python has no TensorRT (pip install tensorrt)"
  else
    python3 "$root/scripts/check_providers.py" --provider $provider runs/*/model.onnx || failed=1
  fi
done
if [ $failed -ne 0 ]; then
  echo "GPU check failed" >&2
  exit 1
fi
echo "GPU check passed"
