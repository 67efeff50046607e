"""Generated splits, written again by the tools that users have, are imported and scored like the original.

    python foreign_data.py PIPELINE MODEL.onnx WORK_DIR
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars

TASKS = ["counting_samesymbol_mod10bos", "modular,bos=true,modulus=10,train_max=30"]


def pandas_(path, out):
    frame = pd.read_parquet(path)
    assert frame.length.dtype == "int32" and (frame.length - 200).min() < 0
    for codec in ["snappy", "gzip", "brotli", "lz4", "zstd", None]:
        frame.to_parquet(out / f"pandas-{codec}.parquet", compression=codec)
    frame.convert_dtypes(dtype_backend="pyarrow").to_parquet(out / "pandas-arrow.parquet")
    lists = frame.assign(input_ids=frame.input_ids.map(list), labels=frame.labels.map(list))
    lists.to_json(out / "pandas.jsonl", orient="records", lines=True)
    lists.to_json(out / "pandas.json", orient="records")
    lists.to_csv(out / "pandas.csv")
    frame.to_csv(out / "pandas-arrays.csv", sep=";")


def polars_(path, out):
    frame = pl.read_parquet(path)
    assert frame["length"].dtype == pl.Int32 and (frame["length"] - 200).min() < 0
    for codec in ["uncompressed", "snappy", "gzip", "brotli", "lz4", "zstd"]:
        frame.write_parquet(out / f"polars-{codec}.parquet", compression=codec)
    frame.select("labels", "input_ids").write_ipc(out / "polars.arrow", compression="lz4")
    frame.write_ipc_stream(out / "polars-stream.arrow")
    frame.write_ndjson(out / "polars.ndjson")
    frame.with_columns(pl.col("input_ids", "labels").list.eval(pl.element().cast(pl.Int64))).write_parquet(out / "polars-int64.parquet")


def duckdb_(path, out):
    for codec in ["snappy", "gzip", "brotli", "lz4_raw", "zstd", "uncompressed"]:
        duckdb.sql(f"copy (from '{path}') to '{out}/duckdb-{codec}.parquet' (format parquet, compression {codec})")
    duckdb.sql(f"copy (select labels, input_ids, 'x' as note from '{path}') to '{out}/duckdb.parquet'")
    duckdb.sql(f"copy (from '{path}') to '{out}/duckdb.json'")
    duckdb.sql(f"copy (from '{path}') to '{out}/duckdb.csv'")
    duckdb.sql(f"copy (from '{path}') to '{out}/duckdb-parts' (format parquet, per_thread_output)")
    plain = Path(path).parent.parent / "*" / "train.parquet"
    columns = duckdb.sql(f"describe from '{plain}'").fetchall()
    assert [column[0] for column in columns] == ["input_ids", "labels", "length"], columns


def pyarrow_(path, out):
    table = pq.read_table(path)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert {"task", "vocab", "seed", "generator_version", "settings"} <= set(metadata), metadata
    json.loads(metadata["vocab"])
    for name, kind in [("large", pa.large_list(pa.int64())), ("view", pa.list_view(pa.int32()))]:
        columns = {c: pa.array(table[c].to_pylist(), kind) for c in ["labels", "input_ids"]}
        if name != "view":
            pq.write_table(pa.table(columns), out / f"pyarrow-{name}.parquet", compression="snappy")
        pa.feather.write_feather(pa.table(columns), out / f"pyarrow-{name}.feather")
    rows = table.select(["input_ids", "labels"]).to_pydict()
    width = max(map(len, rows["input_ids"]))
    pad = lambda values, value: [row + [value] * (width - len(row)) for row in values]
    masked = {
        "input_ids": pa.array(pad(rows["input_ids"], 0), pa.list_(pa.int32(), width)),
        "labels": pa.array(pad([[-100 if l < 0 else l for l in row] for row in rows["labels"]], -100), pa.list_(pa.int32(), width)),
        "attention_mask": pa.array(pad([[1] * len(row) for row in rows["input_ids"]], 0), pa.list_(pa.int8(), width)),
    }
    pq.write_table(pa.table(masked), out / "pyarrow-padded.parquet")
    spark = out / "spark.parquet"
    spark.mkdir()
    for index in range(0, table.num_rows, 100):
        pq.write_table(table.slice(index, 100), spark / f"part-{index // 100:05}-a1b2-c000.snappy.parquet")
    (spark / "_SUCCESS").touch()


def hugging_face(path, out):
    own = Dataset.from_parquet(str(path), cache_dir=str(out.parent / "cache"))
    torch = lambda row: {"labels": [-100 if label < 0 else label for label in row["labels"]]}
    for name, dataset in [("own", own), ("torch", own.map(torch).remove_columns("length"))]:
        dataset.to_parquet(out / f"datasets-{name}.parquet")
        dataset.to_json(out / f"datasets-{name}.jsonl")
        dataset.save_to_disk(out / f"datasets-{name}", num_shards=3)


def main():
    pipeline, model, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve()
    disable_progress_bars()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    def run(*arguments):
        done = subprocess.run([pipeline, *arguments, "--json", "--quiet"], cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, (arguments, done.stderr)
        return json.loads(done.stdout)

    def score(task, file):
        found = run("eval", "--model", model, "--task", task, "--split", file, "-o", "score.parquet")["splits"][0]
        return {key: value for key, value in found.items() if key != "split"}

    passed = 0
    for number, task in enumerate(TASKS):
        written = run("data", "generate", "--task", task, "--train", "600", "--seed", "0")
        path = next(Path(f["path"]) for f in written["files"] if f["path"].endswith("val.parquet"))
        path = work / path
        out = work / f"out-{number}"
        out.mkdir()
        for write in [pandas_, polars_, duckdb_, pyarrow_, hugging_face]:
            write(path, out)
        original = score(task, path)
        assert original["n_sequences"] > 0
        for file in sorted(out.iterdir()):
            assert score(task, file) == original, (file, score(task, file), original)
            imported = run("data", "import", "--task", task, "--check-labels", "--split", "again", "--force", file)
            assert score(task, work / imported["files"][0]["path"]) == original, file
            passed += 1
            print(f"{task}: {file.name} ok")
    print(f"{passed} passed, 0 failed")


main()
