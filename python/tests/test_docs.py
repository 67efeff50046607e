"""The code of the documentation runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def execute(code: str, folder: Path) -> str:
    # A program of its own, as loaders with workers want it.
    file = folder / "example.py"
    file.write_text(code)
    done = subprocess.run([sys.executable, str(file)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


def test_the_readme_runs_in_half_a_minute(tmp_path: Path) -> None:
    (code,) = blocks("README.md")
    start = time.perf_counter()
    out = execute(code, tmp_path)
    assert time.perf_counter() - start < 30 and "last_accuracy" in out


def test_the_page_about_python_runs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert torch
    code = blocks("docs/python.md")
    three_lines, recipe, tasks, functions, training, written = code
    models = Path(__file__).with_name("torch_models.py").read_text()
    parity = "import inductive_counting as ic\ntask = ic.task('chomsky/parity_check')\n"
    module = f"{models}\nimport inductive_counting as ic\nmodel = Lstm(len(ic.task('chomsky/parity_check').vocabulary), 16)\n"
    optimizer = "optimizer = torch.optim.Adam(model.parameters())\n"
    execute(module + three_lines.replace("1001", "41"), tmp_path)
    execute(module + optimizer + recipe, tmp_path)
    execute(parity + tasks, tmp_path)
    execute(parity + "import numpy\n" + functions.replace("1000]", "100]"), tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/lstm.toml").write_text((ROOT / "configs/lstm.toml").read_text())
    small = training.replace("2000", '20, "model.hidden_size": 16, "task.train_examples": 500').replace("501", "21")
    execute("import pyarrow.parquet, os\n" + parity + small + "os.makedirs(run.path / 'eval')\n" + written, tmp_path)


def test_every_public_name_is_documented() -> None:
    import inductive_counting as ic

    for name in ic.__all__:
        value = getattr(ic, name)
        assert name == "__version__" or (value.__doc__ and value.__doc__.strip()), name


def test_a_loader_with_workers_gives_the_batches_of_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    recipe = blocks("docs/python.md")[1].split("loader =")[0]
    code = recipe + """
def ids(workers):
    loader = torch.utils.data.DataLoader(Examples("chomsky/parity_check", 4), batch_size=None, num_workers=workers)
    return [batch["input_ids"].tolist() for _, batch in zip(range(12), loader)]

if __name__ == "__main__":
    one = ids(0)
    assert one == ids(2) == ids(3) and one[0] != one[1]
    print("same")
"""
    assert execute(code, tmp_path) == "same\n"
