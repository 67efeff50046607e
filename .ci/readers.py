"""Opens what the program wrote with the tools that its users have, and checks what they see.

    python readers.py QUICKSTART.json DATASETS_DIR RUNS_DIR
"""

import json
import re
import sys
from pathlib import Path

import duckdb
import onnx
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

RESULT_COLUMNS = (
    "handle task arch positional_embedding num_layers hidden_size seed checkpoint provider precision split length "
    "n_sequences n_tokens accuracy counting_accuracy last_accuracy sequence_accuracy loss last_accuracy_low "
    "last_accuracy_high in_distribution status plan model_fingerprint chance parameters state_size iterations"
).split()


def check_quickstart(path):
    """The recurrent model counts at every length up to 1000, the Transformer only at those it was trained on."""
    rnn, transformer = json.loads(path.read_text())["runs"]
    assert rnn["model"] == "RNN" and rnn["first_wrong_length"] is None, rnn
    assert transformer["trained_lengths"] == 1 and transformer["longer_lengths"] < 0.5, transformer
    for plot in json.loads(path.read_text())["plots"]:
        assert path.parent.joinpath(plot).stat().st_size > 10_000, plot


def check_dataset(path):
    table = pq.read_table(path)
    item = lambda t: pa.list_(pa.field("item", t, nullable=False))
    assert table.schema.field("input_ids").type == item(pa.int32()), table.schema
    assert table.schema.field("labels").type == item(pa.int32()), table.schema
    assert table.schema.field("length").type == pa.int32(), table.schema
    metadata = {k.decode(): v.decode() for k, v in pq.read_metadata(path).metadata.items()}
    vocab = json.loads(metadata["vocab"])
    assert path.parent.name.startswith(f"{metadata['task']}-n") and path.parent.name.endswith(f"-s{metadata['seed']}")
    assert metadata["generator_version"] == "2" and metadata["split"] == path.stem
    in_schema = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert all(in_schema[key] == metadata[key] for key in ["task", "vocab", "seed", "settings"]), in_schema

    frame = pl.read_parquet(path)
    assert frame.height == table.num_rows > 0
    assert frame["input_ids"].list.len().equals(frame["labels"].list.len())
    assert frame["input_ids"].list.max().max() < len(vocab)
    longest = duckdb.sql(f"select max(len(input_ids)), min(length), count(*) from '{path}'").fetchone()
    assert longest == (frame["input_ids"].list.len().max(), frame["length"].min(), frame.height)
    # counts are signed, so that their differences are right
    assert (frame["length"] - 10_000).max() < 0 and (pd.read_parquet(path)["length"] - 10_000).max() < 0


def check_result(path):
    schema = pq.read_schema(path)
    assert schema.names == RESULT_COLUMNS, schema.names
    assert schema.metadata[b"table_version"] == b"2", schema.metadata
    assert not any(pa.types.is_unsigned_integer(field.type) for field in schema), schema
    assert (pd.read_parquet(path).length - 200).min() == -199
    frame = pl.read_parquet(path)
    assert frame["length"].to_list() == list(range(1, 101))
    assert frame["status"].unique().to_list() == ["ok"]
    assert frame["in_distribution"].sum() == 50
    assert (frame["last_accuracy_low"] <= frame["last_accuracy"]).all()
    assert (frame["last_accuracy"] <= frame["last_accuracy_high"]).all()
    query = f"select avg(last_accuracy) from '{path}' where not in_distribution"
    (mean,) = duckdb.sql(query).fetchone()
    theirs = frame.filter(~pl.col("in_distribution"))["last_accuracy"].mean()
    assert abs(mean - theirs) < 1e-12
    assert abs(pd.read_parquet(path).query("~in_distribution").last_accuracy.mean() - mean) < 1e-12

    predictions = pl.read_parquet(path.with_name("sweep-predictions.parquet"))
    right = (predictions["gold"].list.last() == predictions["predicted"].list.last()).mean()
    assert abs(right - frame["last_accuracy"].mean()) < 1e-12


def check_model(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    dims = lambda v: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
    inputs = {i.name: dims(i) for i in model.graph.input}
    assert inputs["input_ids"] == ["batch", "seq"], inputs
    outputs = {o.name: dims(o) for o in model.graph.output}
    metadata = {p.key: p.value for p in model.metadata_props}
    assert outputs["logits"] == ["batch", "seq", len(json.loads(metadata["vocab"]))], outputs
    assert metadata["handle"] == path.parent.name


def check_checkpoint(path):
    names = set(load_file(path))
    if any(name.startswith("lstm.") for name in names):
        kinds = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
        assert names == {"encoder.weight", "decoder.weight", *(f"lstm.{kind}_l0" for kind in kinds)}, names
    else:
        assert {"wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_proj.bias", "lm_head.weight"} <= names, names


# The README's Python example needs the wheel, whose own check runs it.
QUERIES = {"README.md": (1, "sql"), "results.md": (5, "sql|python")}


def check_queries(path):
    """The queries on this page run as they stand, here, in the folder that holds runs/."""
    count, languages = QUERIES[path.name]
    blocks = re.findall(rf"^```({languages})\n(.*?)^```", path.read_text(), re.M | re.S)
    assert len(blocks) == count, blocks
    for language, code in blocks:
        if language == "sql":
            rows = duckdb.sql(code).fetchall()
            assert rows[0][0] == "rnn", rows
        else:
            exec(code, {})


def main():
    quickstart, datasets, runs = map(Path, sys.argv[1:])
    check_quickstart(quickstart)
    repository = Path(__file__).parent.parent
    files = {
        check_dataset: sorted(datasets.glob("*/*.parquet")),
        check_result: sorted(runs.glob("*/eval/sweep.parquet")),
        check_model: sorted(runs.glob("*/model*.onnx")),
        check_checkpoint: sorted(runs.glob("*/checkpoints/*/model.safetensors")),
        check_queries: [repository / "README.md", repository / "docs/results.md"],
    }
    for check, paths in files.items():
        assert paths, f"nothing to check with {check.__name__}"
        for path in paths:
            check(path)
            print(f"{check.__name__}: {path.parent.name}/{path.name} ok")
    metrics = duckdb.sql(f"select distinct split from '{runs}/*/metrics.parquet' order by split").fetchall()
    assert metrics == [("ood_test",), ("train",), ("val",)], metrics
    print(f"{sum(map(len, files.values()))} passed, 0 failed")


main()
