"""Modules of PyTorch: their sweeps are what a plain loop in PyTorch finds."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import inductive_counting as ic  # noqa: E402

from conftest import PARITY, TASK  # noqa: E402
from torch_models import Gpt, Lstm  # noqa: E402

pytestmark = pytest.mark.torch
nn = torch.nn


def trained(module: Any, task: str, steps: int = 30) -> Any:
    """A few steps, so that scores are neither all right nor all wrong."""
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for batch, _ in zip(ic.batches(task, batch_size=32), range(steps)):
        ids, labels = (torch.from_numpy(batch[name]) for name in ("input_ids", "labels"))
        loss = nn.functional.cross_entropy(module(ids).flatten(0, 1), labels.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def plain_loop(module: Any, task: str, lengths: list[int], samples: int) -> list[dict[str, float]]:
    """One length after the other, one sequence after the other, as a program in PyTorch would do it."""
    one, rows = ic.task(task), []
    module.eval()
    with torch.no_grad():
        for length in lengths:
            right = labelled = last = whole = 0
            loss = 0.0
            for index in range(samples):
                ids, labels = map(np.array, one.test(length, index))
                logits = module(torch.from_numpy(ids.astype(np.int64))[None])[0]
                asked = np.flatnonzero(labels >= 0)
                wanted = torch.from_numpy(labels[asked].astype(np.int64))
                hits = (logits[asked].argmax(-1) == wanted).numpy()
                right, labelled = right + hits.sum(), labelled + len(asked)
                last, whole = last + hits[-1], whole + hits.all()
                loss += nn.functional.cross_entropy(logits[asked], wanted, reduction="sum").item()
            rows.append({
                "length": length, "n_sequences": samples, "n_tokens": labelled, "accuracy": right / labelled,
                "last_accuracy": last / samples, "sequence_accuracy": whole / samples, "loss": loss / labelled,
            })  # fmt: skip
    return rows


@pytest.mark.parametrize("kind", [Lstm, Gpt])
@pytest.mark.parametrize("task, plan", [("word/Z2", "single_pass"), ("counting_diffsymbol_mod10", "single_pass"), (PARITY, "exhaustive")])
def test_a_sweep_is_what_a_plain_loop_finds(kind: Any, task: str, plan: str) -> None:
    torch.manual_seed(0)
    module = trained(kind(len(ic.task(task).vocabulary)), task)
    lengths = [*range(1, 60), 100, 200]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is exported
        table = ic.sweep(module, task=task, lengths=lengths, samples=8)
    assert module.training, "the module is left as it was"
    assert set(table["plan"].to_pylist()) == {plan} and set(table["status"].to_pylist()) == {"ok"}
    found = table.to_pylist()
    assert 0 < sum(row["last_accuracy"] for row in found) < len(lengths)
    for row, wanted in zip(found, plain_loop(module, task, lengths, 8)):
        same = {key: row[key] for key in wanted}
        assert same == pytest.approx(wanted, abs=1e-5), row["length"]


def test_lengths_beyond_a_table_of_positions_have_a_status() -> None:
    module = Gpt(len(ic.task(PARITY).vocabulary), positions=64)
    for exporter in ["auto", "none"]:
        table = ic.sweep(module, task=PARITY, lengths=[10, 60, 80, 500], samples=3, exporter=exporter)
        ok = [status == "ok" for status in table["status"].to_pylist()]
        assert ok == [True, True, False, False], exporter


class Encoder(nn.Module):
    """PyTorch's own Transformer, which has an operator of its own in evaluation mode."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, 16), nn.Linear(16, vocab)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Any) -> Any:
        seq = torch.arange(ids.shape[1])
        return self.head(self.blocks(self.embed(ids), mask=seq[None, :] > seq[:, None], is_causal=True))


def test_pytorchs_own_transformer_is_exported_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")  # tracing fixes the length of its mask, which is noticed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = ic.sweep(Encoder(3), task="word/Z2", lengths=range(1, 40), samples=3)
    assert set(table["plan"].to_pylist()) == {"single_pass"} and capfd.readouterr() == ("", "")
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", "none"])
def test_every_exporter_gives_the_same_table(exporter: str) -> None:
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    module = Lstm(len(ic.task(PARITY).vocabulary), 16).eval()
    options: dict[str, Any] = {"task": PARITY, "lengths": range(1, 31), "samples": 4}
    found, wanted = ic.sweep(module, exporter=exporter, **options), ic.sweep(module, **options)
    for column in ["accuracy", "last_accuracy", "loss"]:
        assert found[column].to_pylist() == pytest.approx(wanted[column].to_pylist(), abs=1e-5)


def test_the_agreement_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "inductive_counting"):
        ic.sweep(Lstm(len(ic.task(PARITY).vocabulary), 8), task=PARITY, lengths=[1, 50, 100], samples=2)
    assert "agrees with its ONNX export" in caplog.text and "101 tokens" in caplog.text  # and the blank


class Fixed(nn.Module):
    """Traced, it takes its loop for as long as the example: longer sequences are wrong, and nothing says so."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.inner = Lstm(vocab, 8)

    def forward(self, ids: Any) -> Any:
        total = torch.zeros(ids.shape[0], 1)
        for column in range(int(ids.shape[1])):
            total = total + ids[:, column : column + 1]
        return self.inner(ids) + total[..., None]


def test_an_export_that_differs_is_an_error() -> None:
    module = Fixed(len(ic.task(PARITY).vocabulary))
    with pytest.raises(ic.ModelError, match="differs from the module: on .* tokens|does not run on"):
        ic.sweep(module, task=PARITY, lengths=range(1, 41), samples=2, exporter="torchscript")


class Sudden(nn.Module):
    """Wrong from 1100 tokens on, and refuses more than 2000: a trace knows neither."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.inner = Lstm(vocab, 8)

    def forward(self, ids: Any) -> Any:
        assert ids.shape[1] <= 2000
        logits = self.inner(ids)
        return -logits if ids.shape[1] > 1100 else logits


def test_a_module_that_decides_by_sizes_is_run_by_pytorch() -> None:
    torch.manual_seed(3)
    module = Sudden(3).eval()
    with pytest.raises(ic.ModelError, match="decides something in Python by values or sizes of tensors .test_torch.py, line"):
        ic.sweep(module, task="word/Z2", lengths=[1, 2], exporter="torchscript")
    options: dict[str, Any] = {"task": "word/Z2", "lengths": [10, 1000, 1500, 2500], "samples": 5}
    with pytest.warns(UserWarning, match="so that PyTorch runs it"):
        found = ic.sweep(module, **options)
    wanted = ic.sweep(module, exporter="none", **options)
    assert found.drop_columns(["arch"]).equals(wanted.drop_columns(["arch"]))
    assert [status == "ok" for status in found["status"].to_pylist()] == [True, True, True, False]
    known = ic.sweep(module.inner, **options)["loss"].to_pylist()
    losses = found["loss"].to_pylist()
    assert losses[:2] == pytest.approx(known[:2], abs=1e-5) and abs(losses[2] - known[2]) > 1e-3


class Decides(nn.Module):
    """Takes the other way where ``when`` says so, of the ids."""

    def __init__(self, when: Any) -> None:
        super().__init__()
        self.inner, self.when = Lstm(3, 8), when

    def forward(self, ids: Any) -> Any:
        logits = self.inner(ids)
        return -logits if self.when(ids) else logits


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", "auto"])
@pytest.mark.parametrize(
    "when",
    [
        lambda ids: ids.shape[1] > 1100,  # more tokens than most comparisons have
        lambda ids: ids.shape[1] % 7 == 3,
        lambda ids: ids.shape[0] == 1,
        lambda ids: len(ids) == 1,
        lambda ids: int(ids.shape[1]) > 1100,
    ],
)
def test_no_exporter_forgets_what_a_module_decides(exporter: str, when: Any) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(4)
    module = Decides(when).eval()
    options: dict[str, Any] = {"task": "word/Z2", "lengths": [1, 9, 10, 500, 1500], "samples": 3}
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = ic.sweep(module, exporter=exporter, **options)
    except ic.ModelError as error:
        assert exporter != "auto"
        assert re.search("decides something in Python|differs from the module: on|does not run on", str(error)), error
    else:
        assert any("so that PyTorch runs it" in str(one.message) for one in said)
        wanted = ic.sweep(module, exporter="none", **options)
        assert found.drop_columns(["arch"]).equals(wanted.drop_columns(["arch"]))


class Masked(nn.Module):
    """Leaves out tokens with minus infinity, and returns a dictionary."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.inner = Lstm(vocab, 8)

    def forward(self, ids: Any) -> Any:
        logits = self.inner(ids)
        never = torch.arange(logits.shape[-1]) >= 2
        return {"logits": logits.masked_fill(never, float("-inf"))}


def test_masked_logits_are_no_difference() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = ic.sweep(Masked(3), task="word/Z2", lengths=range(1, 20), samples=3)
    assert set(table["plan"].to_pylist()) == {"single_pass"}


class Unexportable(nn.Module):
    """Leaves PyTorch on its way."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.inner = Lstm(vocab, 8)

    def forward(self, ids: Any) -> Any:
        if torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling():
            raise NotImplementedError("not this one")
        return self.inner(ids), "a cache"


def test_a_module_that_cannot_be_exported_is_run_by_pytorch() -> None:
    torch.manual_seed(2)
    module = Unexportable(len(ic.task(PARITY).vocabulary))
    options: dict[str, Any] = {"task": PARITY, "lengths": range(1, 21), "samples": 3}
    with pytest.warns(UserWarning, match="cannot be exported to ONNX as it is.*not this one"):
        table = ic.sweep(module, **options)
    wanted = ic.sweep(module.inner, **options)
    assert table["accuracy"].to_pylist() == wanted["accuracy"].to_pylist()


def test_modules_that_are_wrong_say_so() -> None:
    with pytest.raises(ic.ModelError, match="the task .* has .* tokens"):
        ic.sweep(Lstm(77), task=PARITY, lengths=[1, 2])
    with pytest.raises(ic.ModelError, match="refused ids of the shape"):
        ic.sweep(nn.Linear(3, 3), task=PARITY, lengths=[1, 2])
    with pytest.raises(ic.ArgumentError, match="which task"):
        ic.sweep(Lstm(5))
    with pytest.raises(ic.ArgumentError, match="no exporter `onnx`"):
        ic.sweep(Lstm(5), task=PARITY, exporter="onnx")


def test_tensors_of_a_function_are_logits() -> None:
    module = Lstm(len(ic.task(TASK).vocabulary), 8).eval()
    table = ic.sweep(lambda ids: module(torch.from_numpy(ids)), task=TASK, lengths=[1, 7], samples=2)
    wanted = ic.sweep(module, task=TASK, lengths=[1, 7], samples=2)
    assert table["loss"].to_pylist() == pytest.approx(wanted["loss"].to_pylist(), abs=1e-5)


def test_metadata_is_appended_to_a_model() -> None:
    onnx = pytest.importorskip("onnx")
    from inductive_counting._torch import with_metadata

    model = onnx.ModelProto(ir_version=9)
    text = "x" * 300
    found = onnx.load_from_string(with_metadata(model.SerializeToString(), {"task": "parity", "long": text}))
    assert {p.key: p.value for p in found.metadata_props} == {"task": "parity", "long": text} and found.ir_version == 9
