#!/usr/bin/env python3
"""Checks `pipeline import` against checkpoints that PyTorch and its tools write, as people write them.

    scripts/check_import.py PIPELINE_BINARY [--keep FOLDER]

Models of several architectures are saved by torch.save (both formats), safetensors' save_file and save_model, accelerate,
torch.compile, DataParallel, and in the layouts of Lightning, DeepSpeed and Hugging Face. Each checkpoint is imported and
exported, and its logits in ONNX Runtime must equal those of the usual import bit for bit. Files that must be refused
are tried as well, with the message that it must give. Needs torch, safetensors, accelerate and onnxruntime; an ONNX
Runtime for the program's own check is found or fetched as always.
"""

import argparse
import copy
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file, save_model

warnings.filterwarnings("ignore")
FIXTURES = Path(__file__).resolve().parent.parent / "models/tests/fixtures"


class Holder(torch.nn.Module):
    """A module with the parameters of a state dict under their names, and those that are tied as one."""

    def __init__(self, state, tied=()):
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            if tensor.is_floating_point():
                setattr(module, last, torch.nn.Parameter(tensor.clone()))
            else:
                module.register_buffer(last, tensor.clone())
        for second, first in tied:
            self.get_submodule(second).weight = self.get_submodule(first).weight

    def forward(self, x):
        return x


def prefixed(prefix, state):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def optimizer_of(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return optimizer


def views(state):
    """The same tensors as transposed parts of one storage, with an offset."""
    floats = {n: t for n, t in state.items() if t.is_floating_point()}
    flat = torch.cat([torch.zeros(5)] + [t.permute(*reversed(range(t.dim()))).flatten() for t in floats.values()])
    made, at = OrderedDict(state), 5
    for name, t in floats.items():
        shape = tuple(reversed(t.shape))
        made[name] = flat[at : at + t.numel()].view(shape).permute(*reversed(range(t.dim())))
        assert torch.equal(made[name], t)
        at += t.numel()
    return made


def shards(state, folder, stem, ending, save, count=3):
    names = sorted(state)
    held = [names[i::count] for i in range(count)]
    where = {}
    for i, part in enumerate(held):
        shard = f"{stem}-{i + 1:05}-of-{count:05}.{ending}"
        save({n: state[n].contiguous() for n in part}, folder / shard)
        where |= {n: shard for n in part}
    return where


def trained(model, state, /, **more):
    return {"epoch": 2, "global_step": 77, "optimizer": optimizer_of(model).state_dict(), "loss": 0.5, "best": np.float64(1), **more}


def forms(state, model, other, tied):
    """Name of the form → a function that writes it into a folder. Every one must give the same model."""
    save = lambda name, thing, **o: lambda folder: torch.save(thing, folder / name, **o)
    compiled = torch.compile(copy.deepcopy(model))
    yield "torch.save", save("model.pt", state)
    yield "torch.save, old format", save("model.pt", state, _use_new_zipfile_serialization=False)
    yield "torch.save, protocol 5", save("model.pt", state, pickle_protocol=5)
    yield "torch.save, old format, protocol 4", save("model.pt", state, _use_new_zipfile_serialization=False, pickle_protocol=4)
    yield "parameters", save("model.pth", model.state_dict(keep_vars=True))
    marked = copy.deepcopy(model)
    for p in marked.parameters():
        p._no_weight_decay = True
    yield "parameters with attributes", save("model.pt", marked.state_dict(keep_vars=True))
    yield "views", save("model.pt", views(state))
    yield "views, old format", save("model.pt", views(state), _use_new_zipfile_serialization=False)
    yield "float64", save("model.pt", {n: t.double() if t.is_floating_point() else t for n, t in state.items()})
    yield "DataParallel", save("model.pt", torch.nn.DataParallel(model).state_dict())
    yield "torch.compile", save("model.pt", compiled.state_dict())
    yield "torch.compile in DataParallel", save("model.pt", torch.nn.DataParallel(compiled).state_dict())
    yield "DataParallel in torch.compile", save("model.pt", torch.compile(torch.nn.DataParallel(model)).state_dict())
    yield "save_model of torch.compile", lambda folder: save_model(compiled, str(folder / "model.safetensors"))
    yield "state_dict and optimiser", save("pytorch_model.bin", trained(model, state, state_dict=state))
    yield "model_state_dict, old format", save("model.pt", trained(model, state, model_state_dict=state), _use_new_zipfile_serialization=False)
    yield "model and ema", save("model.pt", trained(model, state, model=state, model_ema=other))
    yield "Lightning", save("last.ckpt", trained(model, state, state_dict=prefixed("model.", state) | {"loss.weight": torch.ones(3)}, callbacks={}, hyper_parameters={"lr": 0.1}))
    yield "DeepSpeed", lambda folder: ((folder / "pytorch_model").mkdir(), torch.save({"module": state, "ds_version": "0.16", "global_steps": 9}, folder / "pytorch_model/mp_rank_00_model_states.pt"))
    yield "safetensors save_file", lambda folder: save_file({n: t.clone() for n, t in state.items()}, folder / "model.safetensors")
    yield "safetensors save_model", lambda folder: save_model(model, str(folder / "model.safetensors"))

    def accelerate_save_model(folder, **options):
        Accelerator(cpu=True).save_model(model, str(folder), **options)

    def accelerate_save_state(folder, **options):
        accelerator = Accelerator(cpu=True)
        prepared, optimizer = accelerator.prepare(copy.deepcopy(model), optimizer_of(copy.deepcopy(model)))
        accelerator.save_state(str(folder), **options)

    yield "accelerate save_model", accelerate_save_model
    yield "accelerate save_model, shards", lambda folder: accelerate_save_model(folder, max_shard_size="4KB")
    yield "accelerate save_model, pickled", lambda folder: accelerate_save_model(folder, safe_serialization=False)
    yield "accelerate save_model, pickled shards", lambda folder: accelerate_save_model(folder, safe_serialization=False, max_shard_size="4KB")
    yield "accelerate save_state", accelerate_save_state
    yield "accelerate save_state, pickled", lambda folder: accelerate_save_state(folder, safe_serialization=False)

    def checkpoint_folders(folder):
        for step in (60, 500, 70):
            inside = folder / f"checkpoint-{step}"
            inside.mkdir()
            save_file({n: t.clone() for n, t in (state if step == 500 else other).items()}, inside / "model.safetensors")
            torch.save(optimizer_of(model).state_dict(), inside / "optimizer.pt")
            (inside / "trainer_state.json").write_text(json.dumps({"epoch": 1.5, "global_step": step}))
        (folder / "checkpoint-600").mkdir()

    yield "folders of Hugging Face", checkpoint_folders

    def bin_shards(folder):
        where = shards(state, folder, "pytorch_model", "bin", torch.save)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))

    yield "shards of torch.save", bin_shards
    yield "shards without a list", lambda folder: shards(state, folder, "model", "safetensors", save_file)
    yield "Lightning's folders", lambda folder: [
        (folder / "lightning_logs/version_3/checkpoints").mkdir(parents=True),
        torch.save({"state_dict": prefixed("net.", state)}, folder / "lightning_logs/version_3/checkpoints/epoch=1-step=9.ckpt"),
    ]

    def compressed(folder):
        torch.save(state, folder / "stored.pt")
        with zipfile.ZipFile(folder / "stored.pt") as old, zipfile.ZipFile(folder / "model.pt", "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.namelist():
                new.writestr(member, old.read(member))
        (folder / "stored.pt").unlink()

    yield "compressed", compressed
    if not tied:
        yield "modules by themselves", save("model.pt", {n: c.state_dict() for n, c in model.named_children()})


def refusals(state, model, other):
    """Name → a function that writes it, and what the message must contain."""
    save = lambda name, thing, **o: lambda folder: torch.save(thing, folder / name, **o)
    yield "a whole model", save("model.pt", model), ["Holder", "was not run", ".state_dict()"]
    yield "a whole model, old format", save("model.pt", model, _use_new_zipfile_serialization=False), ["was not run", ".state_dict()"]
    yield "a Namespace", save("model.pt", {"model": state, "args": argparse.Namespace(a=1)}), ["argparse.Namespace", "['model']"]
    yield "two models", save("model.pt", {"a": state, "b": other}), ["`a.`, `b.`", "['a']"]
    yield "TorchScript", lambda folder: torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "model.pt"), ["TorchScript"]
    yield "a sparse table", save("model.pt", {n: t.to_sparse() if t.dim() == 2 else t for n, t in state.items()}), ["sparse"]
    yield "float8", save("model.pt", {n: t.to(torch.float8_e4m3fn) for n, t in state.items()}), ["numbers of a type"]


class Program:
    def __init__(self, binary, work):
        self.binary, self.work = binary, work

    def run(self, *arguments):
        return subprocess.run([self.binary, *arguments], cwd=self.work, capture_output=True, text=True)

    def weights_and_logits(self, folder):
        ran = self.run("import", str(folder), "--json")
        if ran.returncode:
            raise RuntimeError(ran.stderr.strip())
        imported = json.loads(ran.stdout)
        ran = self.run("export", "--handle", imported["handle"], "-q")
        if ran.returncode:
            raise RuntimeError(ran.stderr.strip())
        run = self.work / "runs" / imported["handle"]
        session = onnxruntime.InferenceSession(str(run / "model.onnx"), providers=["CPUExecutionProvider"])
        ids = np.random.default_rng(0).integers(0, 13, (2, 12))
        feeds = {}
        for value in session.get_inputs():
            shape = [d if isinstance(d, int) else 0 for d in value.shape]
            if value.name == "input_ids":
                feeds[value.name] = ids
            elif value.name == "position_ids":
                feeds[value.name] = np.tile(np.arange(12), (2, 1))
            elif value.name == "attention_mask":
                feeds[value.name] = np.ones((2, 12), dtype=np.int64)
            elif value.name == "iterations":
                feeds[value.name] = np.array(int(session.get_modelmeta().custom_metadata_map["iterations"]))
            else:
                shape = [2 if isinstance(d, str) else d for d in value.shape]
                feeds[value.name] = np.zeros(shape, dtype=np.float32 if "float" in value.type else np.int64)
        logits = session.run(["logits"], feeds)[0]
        (checkpoint,) = (run / "checkpoints").iterdir()
        weights = load_file(checkpoint / "model.safetensors")
        shutil.rmtree(run)
        return weights, logits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--keep", help="write the checkpoints here, and leave them")
    arguments = parser.parse_args()
    work = Path(arguments.keep or tempfile.mkdtemp()).resolve()
    work.mkdir(parents=True, exist_ok=True)
    program = Program(str(Path(arguments.binary).resolve()), work)
    done = failed = 0

    def check(what, test):
        nonlocal done, failed
        done += 1
        try:
            test()
        except Exception as error:  # every kind of failure is one line
            failed += 1
            print(f"FAILED  {what}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"ok      {what}", flush=True)

    def folder_of(config, name):
        folder = work / name.replace(" ", "_").replace(",", "").replace("'", "").replace("/", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    rnn = json.loads((FIXTURES / "rnn/config.json").read_text())
    plain = load_file(FIXTURES / "rnn/model.safetensors")
    small = OrderedDict(sorted(plain.items()))
    tied_state = OrderedDict(small)
    tied_state["decoder.weight"] = tied_state["encoder.weight"]
    transformer = json.loads((FIXTURES / "transformer_padhelper_rope/config.json").read_text())
    s4 = json.loads((FIXTURES / "s4/config.json").read_text())
    for label, config, state, tied in [
        ("rnn", rnn, small, []),
        ("rnn, tied", {**rnn, "tie_word_embeddings": True}, tied_state, [("decoder", "encoder")]),
        ("transformer", transformer, OrderedDict(load_file(FIXTURES / "transformer_padhelper_rope/model.safetensors")), []),
        ("s4", s4, OrderedDict(load_file(FIXTURES / "s4/model.safetensors")), []),
    ]:
        model = Holder(state, tied)
        state = model.state_dict()
        other = {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}
        folder = folder_of(config, f"{label} plain")
        save_file({n: t.clone() for n, t in state.items()}, folder / "model.safetensors")
        expected = program.weights_and_logits(folder)
        for name, write in forms(state, model, other, tied):

            def same():
                folder = folder_of(config, f"{label} {name}")
                write(folder)
                weights, logits = program.weights_and_logits(folder)
                assert weights.keys() == expected[0].keys(), weights.keys()
                assert all(torch.equal(t, expected[0][n]) for n, t in weights.items()), "the weights differ"
                assert np.array_equal(logits, expected[1]), "the logits differ"

            check(f"{label}: {name}", same)

    equal = {n: t.clone() for n, t in tied_state.items()}
    both = folder_of(rnn, "equal tables that are not tied")
    save_file(equal, both / "model.safetensors")

    def stay_two():
        weights, _ = program.weights_and_logits(both)
        assert all(torch.equal(t, equal[n]) for n, t in weights.items()) and weights.keys() == equal.keys()

    check("rnn: equal tables that are not tied", stay_two)
    model = Holder(small)
    other = {n: t + 1 for n, t in small.items()}
    for name, write, parts in refusals(model.state_dict(), model, other):

        def refused():
            folder = folder_of(rnn, name)
            write(folder)
            ran = program.run("import", str(folder))
            assert ran.returncode == 1, f"exit status {ran.returncode}"
            for part in [*parts, "hint:"]:
                assert part in ran.stderr, f"no {part!r} in {ran.stderr}"
            assert "damaged" not in ran.stderr and "panicked" not in ran.stderr, ran.stderr

        check(f"refused: {name}", refused)
    if not arguments.keep:
        shutil.rmtree(work)
    print(f"{done - failed} of {done} ok")
    sys.exit(failed > 0)


main()
