"""Small models that the tests share."""

from __future__ import annotations

import os
from pathlib import Path

# PyTorch's threads spin while they wait, which takes minutes on a machine that others use as well. Also for child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

import inductive_counting as ic

TASK = "counting_samesymbol_mod10bos"
PARITY = "chomsky/parity_check"


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("work")
    return {"runs": folder / "runs", "datasets": folder / "datasets"}


@pytest.fixture(scope="session")
def run(workspace: dict[str, Path]) -> ic.Run:
    """A run of a few steps, exported."""
    config = {
        "task": {"name": TASK, "train_examples": 600},
        "model": {"arch": "lstm", "hidden_size": 16},
        "train": {"epochs": 2, "seed": 7, "log_every": 5},
    }
    run = ic.train(config, **workspace)
    run.export()
    return run


@pytest.fixture(scope="session")
def onnx_path(run: ic.Run) -> Path:
    assert run.model is not None
    return run.model


def exact_counter(ids: np.ndarray) -> np.ndarray:
    """Logits that count 1, 2 … 10, 1, 2 … without a mistake: a causal function of the ids alone."""
    task = ic.task(TASK)
    counted = np.cumsum(ids == task.vocabulary.index("a"), axis=1)  # [batch, seq]
    numbers = np.array([task.vocabulary.index(str(number)) for number in range(11)])
    logits = np.zeros((*ids.shape, len(task.vocabulary)), np.float32)  # [batch, seq, vocab]
    right = numbers[np.where(counted > 0, (counted - 1) % 10 + 1, 0)]
    np.put_along_axis(logits, right[..., None], 5.0, axis=2)
    return logits
