//! Dataset files: round trips, the same bytes for the same seed, imports, and every kind of damaged or wrong file.

use arrow::array::{ArrayRef, Int16Array, Int64Array, ListArray, RecordBatch, StringArray, UInt16Array, UInt32Array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Field, FieldRef};
use data::{DataError, Dataset, DatasetInfo, Split, Task, generate_split, import, split_name, text};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use proptest::prelude::*;
use proptest::sample::select;
use std::path::Path;
use std::sync::Arc;

const TASK: &str = "counting_samesymbol_shiftedstart3";

fn task(name: &str) -> Task {
    Task::by_name(name).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn parquet_and_text_give_back_what_was_written(
        name in select(Task::names().collect::<Vec<_>>()), split in select(Split::ALL.to_vec()), seed: u64, rows in 1usize..200,
    ) {
        let task = task(name);
        let rows = rows.min(task.rows(split, 100_000).unwrap());
        let dataset = Dataset::generated(&task, split, seed, rows).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.parquet");
        generate_split(&task, split, seed, rows, &path, |_| ()).unwrap();
        prop_assert_eq!(&Dataset::read(&path).unwrap(), &dataset);

        let lines: Vec<String> = dataset.iter().map(|e| text::to_line(e, &task.vocabulary)).collect();
        for (line, e) in lines.iter().zip(dataset.iter()) {
            let parsed = text::parse_line(line, &task.vocabulary).unwrap();
            prop_assert_eq!(parsed, (e.input_ids.to_vec(), e.labels.to_vec()));
        }
        // imported, from text and from Parquet, they are the same examples again
        let source = dir.path().join("source.txt");
        std::fs::write(&source, lines.join("\n") + "\n").unwrap();
        for source in [&source, &path] {
            let target = dir.path().join("imported.parquet");
            let imported = import(&task, source, "test", true, &target).unwrap();
            let read = Dataset::read(&target).unwrap();
            prop_assert_eq!(imported.rows, rows);
            prop_assert!(read.info().is_imported() && read.info().vocab == dataset.info().vocab);
            prop_assert!(read.iter().eq(dataset.iter()));
        }
    }
}

#[test]
fn same_seed_same_bytes_in_any_number_of_pieces() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["counting_diffsymbol", "counting_samesymbol_shiftedstart3_addtablelarge", "counting_selective_10items"]
    {
        let task = task(name);
        let [a, b, other] = ["a", "b", "other"].map(|n| dir.path().join(n));
        let write = |seed, path: &Path| generate_split(&task, Split::Train, seed, 40_000, path, |_| ()).unwrap();
        write(3, &a);
        write(3, &b);
        write(4, &other);
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(Dataset::read(&a).unwrap(), Dataset::generated(&task, Split::Train, 3, 40_000).unwrap());
        if name != "counting_samesymbol_shiftedstart3_addtablelarge" {
            assert_ne!(std::fs::read(&a).unwrap(), std::fs::read(&other).unwrap());
        }
    }
}

#[test]
fn files_that_cannot_be_decoded_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("val.parquet");
    generate_split(&task(TASK), Split::Val, 0, 50, &path, |_| ()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for keep in [0, 3, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        let error = Dataset::read(&path).unwrap_err();
        assert!(matches!(error, DataError::Damaged { .. }), "{keep}: {error}");
        assert!(error.to_string().contains("val.parquet"));
    }
    std::fs::write(&path, "this is no Parquet file, but long enough to be one").unwrap();
    assert!(matches!(Dataset::read(&path).unwrap_err(), DataError::Unreadable { .. }));
    let error = Dataset::read(&dir.path().join("gone.parquet")).unwrap_err().to_string();
    assert!(error.contains("gone.parquet") && error.contains("hint: check the path"), "{error}");
}

/// A list column of these rows.
fn list(values: ArrayRef, lengths: &[usize], nulls: Option<NullBuffer>) -> ArrayRef {
    let nullable = values.null_count() > 0;
    let item: FieldRef = Arc::new(Field::new_list_field(values.data_type().clone(), nullable));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths.iter().copied()), values, nulls))
}

fn u16s(values: &[u16]) -> ArrayRef {
    Arc::new(UInt16Array::from(values.to_vec()))
}

fn i16s(values: &[i16]) -> ArrayRef {
    Arc::new(Int16Array::from(values.to_vec()))
}

/// A Parquet file of another program.
fn foreign(path: &Path, columns: Vec<(&str, ArrayRef)>, metadata: &[(&str, &str)]) {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    metadata.iter().for_each(|(k, v)| writer.append_key_value_metadata(KeyValue::new(k.to_string(), v.to_string())));
    writer.close().unwrap();
}

const METADATA: [(&str, &str); 4] =
    [("task", "t"), ("vocab", r#"["<pad>","a","b","1","2","3"]"#), ("seed", "0"), ("generator_version", "1")];

#[test]
fn parquet_files_that_are_no_datasets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("foreign.parquet");
    let lengths = |values: &[u32]| -> ArrayRef { Arc::new(UInt32Array::from(values.to_vec())) };
    let good = || [list(u16s(&[1, 2, 2]), &[3], None), list(i16s(&[3, 3, 4]), &[3], None), lengths(&[3])];
    let named = |[a, b, c]: [ArrayRef; 3]| vec![("input_ids", a), ("labels", b), ("length", c)];

    foreign(&path, named(good()), &METADATA);
    assert_eq!(Dataset::read(&path).unwrap().len(), 1);

    let with = |column: usize, replacement: ArrayRef| {
        let mut columns = good();
        columns[column] = replacement;
        named(columns)
    };
    let length_of_text: ArrayRef = Arc::new(StringArray::from(vec!["3"]));
    let strings: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "b"]));
    let null_item: ArrayRef = Arc::new(UInt16Array::from(vec![Some(1), None, Some(2)]));
    let int64: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 2]));
    let null_length: ArrayRef = Arc::new(UInt32Array::from(vec![None]));
    let null_row = list(u16s(&[]), &[0], Some(NullBuffer::from(vec![false])));
    let cases: Vec<(Vec<(&str, ArrayRef)>, &str)> = vec![
        (with(0, list(strings, &[3], None)), "its columns are [input_ids list<Utf8>"),
        (with(0, lengths(&[3])), "`input_ids` is no column of lists of integers: its columns are [input_ids UInt32"),
        (named(good()).into_iter().take(1).collect(), "there is no column `labels`: its columns are ["),
        (vec![("x", lengths(&[1]))], "its columns are [x UInt32]"),
        (with(0, list(u16s(&[1, 2]), &[2], None)), "row 0 has 2 tokens but 3 labels"),
        (with(0, list(u16s(&[1, 6, 2]), &[3], None)), "row 0 has the token id 6, but the vocabulary has 6 tokens"),
        (with(1, list(i16s(&[3, 3, 6]), &[3], None)), "row 0 has the label 6"),
        (with(1, list(i16s(&[3, 3, -2]), &[3], None)), "row 0 has the label -2"),
        (with(0, list(null_item, &[3], None)), "row 0 has a null in `input_ids`"),
        (with(0, null_row), "row 0 has a null in `input_ids`"),
    ];
    for (columns, part) in cases {
        foreign(&path, columns, &METADATA);
        let error = Dataset::read(&path).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("hint:"), "{part}: {error}");
        let error = import(&task("debug"), &path, "x", false, &path.with_extension("out")).unwrap_err().to_string();
        assert!(error.contains(part.trim_start_matches("row 0 ")) && error.contains("hint:"), "{part}: {error}");
    }
    // integers of any width are the same, and lengths that are not there are counted
    for columns in [
        with(0, list(int64, &[3], None)),
        with(2, Arc::new(Int64Array::from(vec![3]))),
        with(2, null_length),
        with(2, length_of_text),
        named(good()).into_iter().take(2).collect(),
    ] {
        foreign(&path, columns, &METADATA);
        let read = Dataset::read(&path).unwrap();
        assert_eq!(
            (read.get(0).input_ids, read.get(0).labels, read.get(0).length),
            (&[1, 2, 2][..], &[3, 3, 4][..], 3)
        );
    }
    for (missing, part) in [(0, "no `task`"), (1, "no `vocab`"), (2, "no `seed`"), (3, "no `generator_version`")] {
        let metadata: Vec<_> = METADATA.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, m)| *m).collect();
        foreign(&path, named(good()), &metadata);
        let error = Dataset::read(&path).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // without any description, a file can still be imported: the task has the vocabulary
    let target = dir.path().join("out.parquet");
    foreign(&path, named(good()), &[]);
    assert_eq!(import(&task("debug"), &path, "x", true, &target).unwrap().rows, 1);
    foreign(&path, named(good()), &[METADATA[0], ("vocab", r#"["<pad>","b"]"#), METADATA[2], METADATA[3]]);
    let error = import(&task("debug"), &path, "x", true, &target).unwrap_err().to_string();
    assert!(error.contains("token 1 of its vocabulary is `b`, but `a` in debug"), "{error}");
    foreign(&path, named([list(u16s(&[]), &[], None), list(i16s(&[]), &[], None), lengths(&[])]), &METADATA);
    assert!(Dataset::read(&path).unwrap().is_empty());
    let error = import(&task("debug"), &path, "x", true, &target).unwrap_err().to_string();
    assert!(error.contains("it has no examples"), "{error}");
}

/// Imports `bytes` as a text file; on an error nothing may be left but the source.
fn import_text(name: &str, split: &str, check_labels: bool, bytes: &[u8]) -> Result<Dataset, String> {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source.txt"), dir.path().join("out/val.parquet"));
    std::fs::write(&source, bytes).unwrap();
    match import(&task(name), &source, split, check_labels, &target) {
        Ok(imported) => {
            let dataset = Dataset::read(&target).unwrap();
            assert_eq!(
                (imported.rows, imported.tokens),
                (dataset.len(), dataset.iter().map(|e| e.input_ids.len()).sum())
            );
            Ok(dataset)
        }
        Err(error) => {
            let left = target.parent().unwrap().read_dir().map_or(0, |files| files.count());
            assert_eq!(left, 0, "{error}");
            Err(error.to_string())
        }
    }
}

const LINE: &str = r#"[["a", "b", "b"], ["1", "1", "2"]]"#;

#[test]
fn text_files_that_are_right_in_their_way() {
    for text in [
        format!("{LINE}\n"),
        LINE.to_owned(),
        format!("{LINE}\r\n"),
        format!("\u{feff}{LINE}\n"),
        format!("{LINE}\n\n\r\n\n"),
        " [ [\"a\",\"b\" , \"\\u0062\"],[\"1\",\"1\",\"2\"] ] \n".to_owned(),
    ] {
        let dataset = import_text("debug", "val", true, text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        let e = dataset.get(0);
        assert_eq!((dataset.len(), e.input_ids, e.labels, e.length), (1, &[1, 2, 2][..], &[3, 3, 4][..], 3));
        assert_eq!(dataset.info(), &DatasetInfo::imported(&task("debug")));
    }
    // the length of anything but a sequence of the task is its number of labels
    let dataset = import_text("debug", "val", false, br#"[["1", "a"], ["-1", "2"]]"#).unwrap();
    assert_eq!((dataset.get(0).labels, dataset.get(0).length), (&[-1, 4][..], 1));
}

#[test]
fn text_files_that_are_wrong() {
    let long = format!("[[{}], [{}]]", vec!["\"a\""; 129].join(","), vec!["\"1\""; 129].join(","));
    for (text, part) in [
        ("", "it has no examples"),
        ("\n\r\n\n", "it has no examples"),
        ("hello\n", "line 1: expected value at character 1"),
        ("[]\n", "line 1: invalid length 0, expected a pair [[tokens], [labels]]"),
        ("[[\"a\"]]\n", "line 1: invalid length 1"),
        ("[[\"a\"], [\"1\"], []]\n", "line 1: trailing"),
        ("[[\"a\"], [\"1\"]] x\n", "line 1: trailing characters"),
        ("[[\"a\"], [\"1\"\n", "line 1: EOF while parsing"),
        ("[[\"a\"], [1]]\n", "line 1: invalid type: integer `1`, expected a string"),
        ("{\"a\": 1}\n", "line 1: there is no `input_ids`"),
        ("[[\"c\"], [\"1\"]]\n", "line 1: the token `c` is not in the vocabulary"),
        ("[[\"-1\"], [\"1\"]]\n", "line 1: the token `-1` is not in the vocabulary"),
        ("[[\"a\"], [\"9\"]]\n", "line 1: the label `9` is not in the vocabulary"),
        ("[[\"a\", \"b\"], [\"1\"]]\n", "line 1: there are 2 tokens but 1 labels"),
        ("[[], []]\n", "line 1: there are no tokens"),
        ("[[\"a\"], [\"2\"]]\n", "line 1: label 1 is `2`, but the rule gives `1`"),
        ("[[\"a\", \"1\"], [\"1\", \"2\"]]\n", "line 1: the input is not made of `a` and `b`"),
        (&format!("{LINE}\n\n{LINE}\n"), "line 2: the line is empty"),
        (&long, "line 1: there are 129 tokens, but max_seq_len = 128"),
    ] {
        let error = import_text("debug", "val", true, text.as_bytes()).unwrap_err();
        assert!(error.contains(part) && error.contains("\n  hint: "), "{text:?}: {error}");
    }
    let mut bytes = LINE.as_bytes().to_vec();
    bytes[4] = 0xff;
    let error = import_text("debug", "val", false, &bytes).unwrap_err();
    assert!(error.contains("line 1: byte 5 is not UTF-8"), "{error}");
    // tests may be longer than anything in training
    assert!(import_text("debug", "ood_test", false, long.as_bytes()).is_ok());
}

#[test]
fn all_problems_are_counted_and_the_first_twenty_shown() {
    let wrong = r#"[["a"], ["x"]]"#;
    let lines: Vec<&str> = (0..100).map(|i| if i % 3 == 1 { wrong } else { LINE }).collect();
    let error = import_text("debug", "val", false, lines.join("\n").as_bytes()).unwrap_err();
    assert!(error.contains("33 of 100 examples are wrong"), "{error}");
    assert_eq!(error.matches("  line ").count(), 20);
    assert!(error.contains("line 2: ") && error.contains("line 59: ") && !error.contains("line 62: "), "{error}");
    assert!(error.contains("… and 13 more"), "{error}");
}

#[test]
fn a_line_without_end_is_refused_without_being_held() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("val.txt");
    // sixty million bytes: ten million tokens
    let endless = format!("{LINE}\n[[{}\n{LINE}\n", "\"a\", ".repeat(12_000_000));
    std::fs::write(&source, endless).unwrap();
    let error = import(&task("debug"), &source, "val", false, &dir.path().join("x.parquet")).unwrap_err().to_string();
    assert!(error.contains("1 of 3 examples are wrong\n  line 2: the line is longer than 16 MiB"), "{error}");
}

#[test]
fn names_of_imported_splits() {
    let name = |path: &str| split_name(Path::new(path)).map(str::to_owned);
    assert_eq!(name("folder/ood_test.txt").unwrap(), "ood_test");
    assert_eq!(name("ood_test_2000.parquet").unwrap(), "ood_test_2000");
    for bad in ["", "..", "a b.txt", "x/..", "näh.txt"] {
        assert!(name(bad).is_err(), "{bad}");
    }
}

#[test]
fn reading_text_for_a_look() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("val.txt");
    std::fs::write(&path, "[[\"x\", \"y\"], [\"-1\", \"1\"]]\n").unwrap();
    let dataset = Dataset::read_pairs(&path, None).unwrap();
    assert_eq!(dataset.info().vocab, ["x", "y", "1"]);
    assert_eq!((dataset.get(0).labels, dataset.get(0).length), (&[-1, 2][..], 1));
    let error = Dataset::read_pairs(&path, Some(&task("debug"))).unwrap_err().to_string();
    assert!(error.contains("line 1: the token `x` is not in the vocabulary"), "{error}");
}
