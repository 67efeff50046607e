"""A small real grid, killed in the middle and resumed; then its report, whose numbers must be those of DuckDB.

    python grids.py PIPELINE GRID.toml WORK_DIR
"""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # 97.5 % quantiles of Student's t
MODELS = {
    ("rnn", "none"): "RNN",
    ("lstm", "none"): "LSTM",
    ("transformer", "rope"): "Transformer (RoPE, shift)",
}


class Tables(HTMLParser):
    """{table id: {(model, task): (mean, text)}} of a report's page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.table, self.tasks, self.model, self.cell, self.column = {}, None, [], None, None, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self.table = self.found.setdefault(attributes["id"], {}) if "id" in attributes else None
            self.tasks = []
        elif tag == "th" and attributes.get("scope") == "col" and "data-task" in attributes:
            self.tasks.append(attributes["data-task"])
        elif tag == "th" and attributes.get("scope") == "row":
            self.model, self.column = "", 0
        elif tag == "td":
            self.cell = [attributes.get("data-v"), ""]

    def handle_data(self, text):
        if self.cell is not None:
            self.cell[1] += text
        elif self.model is not None and self.column == 0:
            self.model += text

    def handle_endtag(self, tag):
        if tag == "td":
            value, text = self.cell
            if value is not None and self.table is not None:
                self.table[self.model, self.tasks[self.column]] = (float(value), text)
            self.cell, self.column = None, self.column + 1
        elif tag == "tr":
            self.model = None


def files(folder):
    """The existing results, with their digests and times."""
    paths = sorted([*folder.glob("runs/*/eval/*.parquet"), *folder.glob("runs/*/model.onnx")])
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in paths}


def killed_and_resumed(pipeline, grid, work):
    command = [pipeline, "grid", grid, "--json", "--quiet"]
    plan = json.loads(subprocess.run([*command, "--dry-run"], cwd=work, check=True, stdout=subprocess.PIPE).stdout)
    assert len(plan["cells"]) == 12 and all(job["status"] == "waiting" for job in plan["cells"]), plan
    assert not (work / "runs").exists(), "a dry run writes something"

    process = subprocess.Popen([*command, "--workers", "2"], cwd=work, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    # The last files of a job; a split's table alone belongs to an unfinished run.
    last = ["sweep.svg", "sweep.png", "sweep.parquet", "ood_test-total.parquet"]
    is_whole = lambda run: all((run / "eval" / name).is_file() for name in last)
    is_done = lambda: sum(map(is_whole, work.glob("runs/*"))) >= 5
    while not is_done() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the sweep ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = files(work)
    after_kill = json.loads(subprocess.run([*command, "--dry-run"], cwd=work, check=True, stdout=subprocess.PIPE).stdout)
    done = [job["handle"] for job in after_kill["cells"] if job["status"] == "done"]
    assert 5 <= len(done) < 12, after_kill

    resumed = json.loads(subprocess.run([*command, "--workers", "2"], cwd=work, check=True, stdout=subprocess.PIPE).stdout)
    assert all(job["status"] == "done" for job in resumed["cells"]), resumed
    assert {job["handle"] for job in resumed["cells"]} >= set(done)
    assert len({job["handle"] for job in resumed["cells"]}) == 12
    now = files(work)
    for path, state in before.items():
        if path.parts[path.parts.index("runs") + 1] in done:
            assert now[path] == state, f"{path} was done before the kill and was made again"
    runs = [path for path in work.glob("runs/*/config.toml")]
    assert len(runs) == 12, f"{len(runs)} runs for 12 jobs: a half-trained one started over"
    print(f"grid: killed with {len(done)} of 12 jobs done, resumed, none made twice")


def expected(work, path, column, where):
    query = f"""
        WITH runs AS (SELECT task, arch, positional_embedding, handle, avg({column}) AS v
                      FROM '{work}/runs/*/eval/{path}' WHERE {where} GROUP BY ALL)
        SELECT task, arch, positional_embedding, avg(v), stddev_samp(v), count(*) FROM runs WHERE v IS NOT NULL GROUP BY ALL"""
    return {(MODELS[arch, pe], task): row for task, arch, pe, *row in duckdb.sql(query).fetchall()}


def check_numbers(work, page):
    text = page.read_text()
    tables = Tables(text).found
    sources = {
        "table-longer": ("sweep.parquet", "last_accuracy", "NOT in_distribution AND status = 'ok'"),
        "table-trained": ("sweep.parquet", "last_accuracy", "in_distribution AND status = 'ok'"),
        **{f"table-ood_test-{m}": ("ood_test-total.parquet", m, "true") for m in ("last_accuracy", "accuracy", "unseen_accuracy")},
    }
    assert set(tables) == set(sources), set(tables)
    numbers = 0
    for name, source in sources.items():
        wanted = expected(work, *source)
        assert set(tables[name]) == set(wanted), (name, set(tables[name]) ^ set(wanted))
        for key, (mean, spread, n) in wanted.items():
            value, shown = tables[name][key]
            half = T[n - 1] * spread / math.sqrt(n)
            low, high = max(mean - half, 0), min(mean + half, 1)
            assert abs(value - mean) < 1e-6, (name, key, value, mean)
            assert shown.startswith(f"{100 * mean:.1f}[{100 * low:.1f}, {100 * high:.1f}] n={n}"), (name, key, shown)
            numbers += 3
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    for task in data["tasks"]:
        for curve in task["curves"]:
            model = next(key for key, name in MODELS.items() if name == data["models"][curve["model"]])
            for (first, last), mean in zip(task["grids"][curve["grid"]], curve["mean"]):
                (wanted,) = duckdb.sql(f"""
                    SELECT avg(last_accuracy) FROM '{work}/runs/*/eval/sweep.parquet' WHERE task = '{task["name"]}'
                    AND arch = '{model[0]}' AND length BETWEEN {first} AND {last}""").fetchone()
                assert abs(mean / 10000 - wanted) <= 0.5001e-4, (task["name"], model, first, last)
                numbers += 1
    print(f"report: {numbers} numbers of the page are DuckDB's")


def check_scale(pipeline, work):
    """5000 result files: in less than ten seconds, less than 5 MB."""
    runs = work / "many/runs"
    source = pq.read_table(next(work.glob("runs/*/eval/sweep.parquet")))
    tables = []
    for index in range(40):
        task = ["counting_samesymbol", "counting_diffsymbol", "counting_samesymbol_mod10", "counting_samesymbol_mod10bos"][index % 4]
        rows = 1000
        accuracy = pa.array([float((i * 7919 + index * 104729) % 1000 > i) for i in range(rows)])
        columns = {name: pa.array([source[name][0].as_py()] * rows, source.schema.field(name).type) for name in source.schema.names}
        columns |= {name: accuracy for name in columns if "accuracy" in name}
        columns |= {"length": pa.array(range(1, rows + 1), pa.uint32()), "task": pa.array([task] * rows)}
        columns["in_distribution"] = pa.array([i < 50 for i in range(rows)])
        path = work / f"many/{index}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, compression="zstd")
        tables.append((task, path))
    config = next(work.glob("runs/*/config.toml")).read_text()
    for run in range(5000):
        folder = runs / f"{run:04}"
        (folder / "eval").mkdir(parents=True)
        shutil.copyfile(tables[run % 40][1], folder / "eval/sweep.parquet")
        lines = config.replace("lr = ", f"lr = 0.{1 + run % 1000 // 4:03} # ").splitlines()
        lines = [f"seed = {run // 1000}" if line.startswith("seed = ") else line for line in lines]
        (folder / "config.toml").write_text("\n".join(lines))
    command = [pipeline, "report", "--runs-dir", runs, "-o", work / "many/report.html", "--json", "--quiet"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    size = (work / "many/report.html").stat().st_size
    assert found["results"] == 5000 and found["cells"] == 1000 and not found["notices"], (found["results"], found["cells"], found["notices"][:3])
    print(f"report: 5000 result files, {found['cells']} cells: {found['seconds']:.1f} s, {size / 1e6:.1f} MB")
    assert found["seconds"] < 10 and size < 5_000_000
    shutil.rmtree(work / "many")


def main():
    pipeline, grid, work = (Path(argument).resolve() for argument in sys.argv[1:])
    work.mkdir(parents=True)
    killed_and_resumed(pipeline, grid, work)
    reference = os.environ.get("REFERENCE_CSV")
    report = [pipeline, "report", "--quiet", *(["--reference", reference] if reference else [])]
    subprocess.run([*report, "-o", "report.html"], cwd=work, check=True)
    subprocess.run([*report, "-o", "report.md"], cwd=work, check=True)
    for figure in ["map", "accuracy-counting_samesymbol_mod10bos", "training-loss-counting_samesymbol_mod10bos"]:
        assert (work / f"report-figures/{figure}.svg").stat().st_size > 2000
        assert (work / f"report-figures/{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert f"(report-figures/{figure}.svg)" in (work / "report.md").read_text()
    check_numbers(work, work / "report.html")
    check_scale(pipeline, work)


main()
