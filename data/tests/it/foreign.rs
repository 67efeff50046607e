//! Examples as other programs write them: the same examples from every program, and the right message for anything
//! else. `fixtures/make.py` makes the files.

use data::{
    DataError, Dataset, DatasetFolders, DatasetInfo, Example, Origin, Split, Task, dataset_dict, generate_split, import,
};
use std::path::{Path, PathBuf};

fn task() -> Task {
    Task::by_name("counting_samesymbol_mod10bos").unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The twelve examples of every fixture.
fn expected() -> Vec<Example> {
    (0..12).map(|index| task().examples(Split::Val, 0)(index)).collect()
}

fn examples(dataset: &Dataset) -> Vec<Example> {
    dataset.iter().map(|e| e.to_example()).collect()
}

/// An entry of a Parquet file's metadata.
fn footer_entry(path: &Path, key: &str) -> Option<String> {
    let file = std::fs::File::open(path).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let entries = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    entries.into_iter().find(|kv| kv.key == key).and_then(|kv| kv.value)
}

/// Imports a fixture, every label checked against the rule.
fn imported(name: &str) -> Result<Vec<Example>, String> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("val.parquet");
    import(&task(), &fixture(name), "val", true, &target).map_err(|e| e.to_string())?;
    Ok(examples(&Dataset::read(&target).unwrap()))
}

const FILES: [&str; 36] = [
    "snappy.parquet",
    "gzip.parquet",
    "brotli.parquet",
    "lz4.parquet",
    "zstd.parquet",
    "none.parquet",
    "int8.parquet",
    "int16.parquet",
    "uint8.parquet",
    "uint64.parquet",
    "large_list.parquet",
    "whole_floats.parquet",
    "fixed_size_list.parquet",
    "masked.parquet",
    "other_order.parquet",
    "vocab.parquet",
    "pandas.parquet",
    "polars.parquet",
    "duckdb.parquet",
    "lz4.feather",
    "list_view.arrow",
    "plain.feather",
    "polars.arrow",
    "stream.arrow",
    "lines.json",
    "list.json",
    "pandas.csv",
    "arrays.csv",
    "duckdb.csv",
    "spark.parquet",
    "hugging_face",
    "hugging_face.parquet",
    "hugging_face.jsonl",
    "hugging_face_splits/train",
    "hugging_face_splits/validation",
    "spark.parquet/part-00000-8f1c2d3e-c000.snappy.parquet",
];

#[test]
fn what_other_programs_write_is_imported_and_read_as_the_same_examples() {
    let expected = expected();
    assert_eq!(expected[1].labels, [-1, 1, 2]);
    for name in FILES {
        let n = if name.contains("part-") { 5 } else { 12 };
        assert_eq!(imported(name).unwrap_or_else(|e| panic!("{name}: {e}")), expected[..n], "{name}");
        let read = Dataset::read_as(&fixture(name), Some(&task())).unwrap();
        assert_eq!(examples(&read), expected[..n], "{name}");
        assert_eq!(read.info().vocab, task().vocabulary.tokens());
        // without a task, examples can still be shown
        let read = Dataset::read_as(&fixture(name), None).unwrap();
        assert_eq!((read.len(), read.info().vocab.len()), (n, 13), "{name}");
    }
    let splits = dataset_dict(&fixture("hugging_face_splits")).unwrap().unwrap();
    assert_eq!(splits.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["train", "validation"]);
    assert_eq!(dataset_dict(&fixture("hugging_face")).unwrap(), None);
}

#[test]
fn what_is_no_dataset_is_named_for_what_it_is() {
    for (name, part) in [
        ("wrong_vocab.parquet", "token 12 of its vocabulary is `c`, but `a` in counting_samesymbol_mod10bos"),
        ("other_vocab.parquet", "token 12 of its vocabulary is `c`, but `a` in counting_samesymbol_mod10bos"),
        ("no_labels.parquet", "there is no column `labels`: its columns are [input_ids list<Int64>]"),
        ("columns.json", "orient=\"records\", lines=True"),
        ("hugging_face_splits", "it is a folder of several datasets: "),
        ("bomb.parquet", "it has examples of 20000000 tokens; at most 16777216 are read"),
        ("bomb-gzip.parquet", "a page of it becomes more than the"),
        ("bomb-brotli.parquet", "a page of it becomes more than the"),
        ("bomb.arrow", "a buffer of it says that it becomes 35184372088832 bytes"),
        (".", "the folder generator1 is in it"),
        ("gone", "gone: No such file"),
    ] {
        let read = Dataset::read_as(&fixture(name), Some(&task())).unwrap_err().to_string();
        for error in [imported(name).unwrap_err(), read] {
            assert!(error.contains(part) && error.contains("hint:"), "{part}: {error}");
            assert!(!error.contains("--force") && (name.starts_with("bomb") || !error.contains("damaged")), "{error}");
        }
    }
}

#[test]
fn a_wrong_example_is_named_by_its_place_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let line = |id: i64| format!("{{\"input_ids\": [0, {id}], \"labels\": [-100, 1]}}\n");
    for (name, text, place) in [
        ("a.jsonl", line(12) + &line(13), "line 2 has the token id 13, but the vocabulary has 13 tokens"),
        ("b.json", format!("[{},{}]", line(12), line(70_000)), "example 1 has the token id 70000"),
        (
            "c.csv",
            "input_ids,labels\n\"[0, 12]\",\"[-1, 1]\"\n\"[0, -3]\",\"[-1, 1]\"\n".into(),
            "line 3 has the token id -3",
        ),
        ("d.csv", "input_ids,labels\n\"[0, 12]\",\"[-1]\"\n".into(), "line 2 has 2 tokens but 1 labels"),
        ("e.jsonl", line(12).replace(", 12]", ", -2]"), "line 1 has the token id -2"),
        ("f.jsonl", line(12).replace(", 1]", ", -2]"), "line 1 has the label -2"),
        (
            "g.csv",
            "input_ids,labels\n\"[0 12 ... 12]\",\"[-1, 1]\"\n".into(),
            "line 2: `input_ids` is shortened by NumPy",
        ),
        ("h.jsonl", "{\"input_ids\": [], \"labels\": []}".into(), "line 1 has no tokens"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let error = Dataset::read_as(&path, Some(&task())).unwrap_err().to_string();
        assert!(error.contains(place) && error.contains(name), "{place}: {error}");
        let error = import(&task(), &path, "val", false, &dir.path().join("out.parquet")).unwrap_err().to_string();
        let place = place.replacen(" has ", ": has ", 1);
        assert!(error.contains(&place) && error.contains("examples are wrong"), "{place}: {error}");
    }
}

#[test]
fn a_folder_is_one_dataset_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("parts");
    let copy = |from: &str, to: &str| {
        let to = folder.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(fixture(from), to).unwrap();
    };
    let read = || Dataset::read_as(&folder, Some(&task())).map(|d| d.len()).map_err(|e| e.to_string());
    copy("snappy.parquet", "part=1/part-10.parquet");
    copy("zstd.parquet", "part=2/part-9.parquet");
    std::fs::write(folder.join("_SUCCESS"), "").unwrap();
    std::fs::write(folder.join(".hidden.crc"), "x").unwrap();
    assert_eq!(read(), Ok(24));
    copy("stream.arrow", "part-11.arrow");
    assert!(read().unwrap_err().contains("are of different kinds"));
    std::fs::remove_dir_all(&folder).unwrap();
    copy("snappy.parquet", "train.parquet");
    assert_eq!(read(), Ok(12));
    copy("snappy.parquet", "val.parquet");
    assert!(read().unwrap_err().contains("it is a folder of several splits: train.parquet, val.parquet"));
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    assert!(read().unwrap_err().contains("there is no file in it"));
}

/// The description of a generated file is in its footer and in its Arrow schema, and files of generator 1 are still
/// read.
#[test]
fn files_of_both_generators() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("val.parquet");
    generate_split(&task(), Split::Val, 7, 50, &path, |_| ()).unwrap();
    let (info, rows) = DatasetInfo::read(&path).unwrap();
    assert_eq!((info.generator_version, info.seed, rows), (2, 7, 50));
    assert_eq!(info.settings["modulus"], "10");
    assert!(info.is_of(&task(), 7) && !info.is_of(&task(), 8));
    let file = std::fs::File::open(&path).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = reader.schema();
    let types: Vec<String> = schema.fields().iter().map(|f| f.data_type().to_string()).collect();
    assert!(types[..2].iter().all(|t| t.contains("Int32") && !t.contains("UInt")) && types[2] == "Int32", "{types:?}");
    // without the Arrow schema, the metadata is the footer's; the schema has the rest from itself
    assert_eq!(schema.metadata().get("vocab").map(|v| v.to_string()), footer_entry(&path, "vocab"));
    let encoded = footer_entry(&path, "ARROW:schema").unwrap();
    let plain = parquet::arrow::parquet_to_arrow_schema(
        reader.parquet_schema(),
        Some(&vec![parquet::file::metadata::KeyValue::new("ARROW:schema".to_owned(), encoded)]),
    )
    .unwrap();
    assert_eq!(plain.metadata().get("task").map(|v| v.to_string()), Some(task().name));
    assert!(plain.metadata().get("vocab").is_some() && plain.metadata().get("settings").is_some());

    let old = fixture("generator1/val.parquet");
    let (info, rows) = DatasetInfo::read(&old).unwrap();
    assert!(info.is_of(&task(), 0) && info.generator_version == 1 && rows == 300);
    assert!(Dataset::read(&old).unwrap().iter().eq(Dataset::generated(&task(), Split::Val, 0, 300).unwrap().iter()));
    // it is found where generator 1 put it
    let folders = DatasetFolders::new(dir.path());
    let then = dir.path().join("counting_samesymbol_mod10bos/val.parquet");
    std::fs::create_dir(then.parent().unwrap()).unwrap();
    std::fs::copy(&old, &then).unwrap();
    let origin = Origin { train: 77, seed: 0 };
    assert_eq!(folders.find(&task(), "val", Some(origin)).unwrap(), Some(then));
    assert_eq!(folders.find(&task(), "val", Some(Origin { seed: 1, ..origin })).unwrap(), None);
}

#[test]
fn damaged_files_are_called_damaged_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for name in ["zstd.parquet", "stream.arrow", "lz4.feather"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = Dataset::read_as(&path, Some(&task())).unwrap_err();
        assert!(matches!(error, DataError::Damaged { .. }), "{name}: {error}");
    }
}

/// The decoder takes the place of a message's body from the index at the end of the file. Where that is slightly off,
/// the unpacked size of compressed buffers is read from other bytes, which can be any number.
#[test]
fn an_index_that_is_off_is_damage_and_no_allocation() {
    let bytes = std::fs::read(fixture("lz4.feather")).unwrap();
    let size = u32::from_le_bytes(bytes[bytes.len() - 10..bytes.len() - 6].try_into().unwrap()) as usize;
    let start = bytes.len() - 10 - size;
    let footer = arrow::ipc::root_as_footer(&bytes[start..bytes.len() - 10]).unwrap();
    let block = footer.recordBatches().unwrap().get(0).0; // offset i64, length of the head i32, padding, of the body i64
    let at = start + bytes[start..].windows(24).position(|window| window == block).unwrap();
    let offset = i64::from_le_bytes(block[..8].try_into().unwrap()) as usize;
    let head = i32::from_le_bytes(block[8..12].try_into().unwrap());
    let dir = tempfile::tempdir().unwrap();
    for off in (8..=64).step_by(8) {
        let mut moved = bytes.clone();
        moved[at + 8..at + 12].copy_from_slice(&(head + off).to_le_bytes());
        let body = offset + (head + off) as usize;
        moved[body..body + 8].copy_from_slice(&(1i64 << 60).to_le_bytes());
        let path = dir.path().join(format!("{off}.feather"));
        std::fs::write(&path, moved).unwrap();
        let message = Dataset::read_as(&path, Some(&task())).unwrap_err().to_string();
        assert!(message.contains("damaged"), "{message}");
    }
}
