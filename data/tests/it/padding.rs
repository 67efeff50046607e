//! Padding in examples of other programs: masks, lengths and labels that declare it, in every form of file, and the
//! messages for contradictions.

use arrow::array::{
    ArrayRef, BooleanBuilder, Float32Builder, Int64Array, Int64Builder, ListBuilder, RecordBatch, StringArray,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema};
use data::{Dataset, Example, Split, Task, import};
use parquet::arrow::ArrowWriter;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PAD: i64 = 11;

fn task() -> Task {
    Task::by_name("counting_samesymbol_mod10bos").unwrap()
}

/// The lengths 1 to 4.
fn expected() -> Vec<Example> {
    (0..4).map(|index| task().examples(Split::Val, 0)(index)).collect()
}

/// Rows of five tokens, padded at their end with `pad`, labelled `label` there; with a mask.
fn padded(pad: i64, label: i64) -> [Vec<Vec<i64>>; 3] {
    let filled = |row: Vec<i64>, fill: i64| (0..5).map(|at| row.get(at).copied().unwrap_or(fill)).collect::<Vec<_>>();
    let rows = expected();
    [
        rows.iter().map(|e| filled(e.input_ids.iter().map(|id| i64::from(*id)).collect(), pad)).collect(),
        rows.iter().map(|e| filled(e.labels.iter().map(|label| i64::from(*label)).collect(), label)).collect(),
        rows.iter().map(|e| filled(vec![1; e.input_ids.len()], 0)).collect(),
    ]
}

fn integers(rows: &[Vec<i64>]) -> ArrayRef {
    let mut list = ListBuilder::new(Int64Builder::new());
    rows.iter().for_each(|row| list.append_value(row.iter().copied().map(Some)));
    Arc::new(list.finish())
}

fn booleans(rows: &[Vec<i64>]) -> ArrayRef {
    let mut list = ListBuilder::new(BooleanBuilder::new());
    rows.iter().for_each(|row| list.append_value(row.iter().map(|flag| Some(*flag != 0))));
    Arc::new(list.finish())
}

fn floats(rows: &[Vec<i64>], scale: f32) -> ArrayRef {
    let mut list = ListBuilder::new(Float32Builder::new());
    rows.iter().for_each(|row| list.append_value(row.iter().map(|flag| Some(*flag as f32 * scale))));
    Arc::new(list.finish())
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn text(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn tables(&self, columns: &[(&str, ArrayRef)]) -> [PathBuf; 3] {
        let fields: Vec<Field> =
            columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let columns = columns.iter().map(|(_, column)| column.clone()).collect();
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let paths = ["x.parquet", "x.feather", "x.arrows"].map(|name| self.0.path().join(name));
        let file = |at: usize| File::create(&paths[at]).unwrap();
        let mut writer = ArrowWriter::try_new(file(0), schema.clone(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let mut writer = arrow::ipc::writer::FileWriter::try_new(file(1), &schema).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        let mut writer = arrow::ipc::writer::StreamWriter::try_new(file(2), &schema).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        paths
    }

    /// The same as the lines of JSON, a list of it and CSV, with the given text for the columns.
    fn texts(&self, columns: &[(&str, Vec<String>)]) -> [PathBuf; 3] {
        let object = |row: usize| {
            let fields = columns.iter().map(|(name, rows)| format!("\"{name}\": {}", rows[row]));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        };
        let objects: Vec<String> = (0..columns[0].1.len()).map(object).collect();
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let fields =
            |row: usize| columns.iter().map(|(_, rows)| format!("\"{}\"", rows[row])).collect::<Vec<_>>().join(",");
        let table: Vec<String> = (0..objects.len()).map(fields).collect();
        [
            self.text("x.jsonl", &(objects.join("\n") + "\n")),
            self.text("x.json", &format!("[{}]", objects.join(", "))),
            self.text("x.csv", &format!("{}\n{}\n", names.join(","), table.join("\n"))),
        ]
    }
}

fn lists(rows: &[Vec<i64>]) -> Vec<String> {
    rows.iter().map(|row| format!("{row:?}")).collect()
}

fn read(path: &Path) -> Result<(Vec<Example>, Option<String>), String> {
    let read = Dataset::read_as(path, Some(&task())).map_err(|e| e.to_string())?;
    Ok((read.iter().map(|e| e.to_example()).collect(), read.note()))
}

/// Reads and imports, checking every label; both must say the same.
fn both(path: &Path) -> Result<Option<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("val.parquet");
    let (examples, note) = match read(path) {
        Ok(found) => found,
        Err(error) => {
            let imported = import(&task(), path, "val", false, &target).unwrap_err().to_string();
            assert!(imported.contains("hint: ") && !target.exists(), "{imported}");
            return Err(error);
        }
    };
    let imported = import(&task(), path, "val", true, &target).map_err(|e| e.to_string())?;
    assert_eq!(imported.note(), note);
    let again: Vec<Example> = Dataset::read(&target).unwrap().iter().map(|e| e.to_example()).collect();
    assert_eq!(again, examples, "{}", path.display());
    assert_eq!(examples, expected(), "{}", path.display());
    Ok(note)
}

#[test]
fn masks_of_every_type_say_what_is_padding() {
    let files = Files::new();
    let [ids, labels, mask] = padded(PAD, PAD);
    for flags in [booleans(&mask), integers(&mask), floats(&mask, 1.0)] {
        for path in files.tables(&[
            ("input_ids", integers(&ids)),
            ("attention_mask", flags.clone()),
            ("labels", integers(&labels)),
        ]) {
            assert_eq!(both(&path), Ok(None), "{}", flags.data_type());
        }
    }
    let spelled = |zero: &str, one: &str| -> Vec<String> {
        let row = |row: &Vec<i64>| row.iter().map(|flag| if *flag == 0 { zero } else { one }).collect::<Vec<_>>();
        mask.iter().map(|flags| format!("[{}]", row(flags).join(", "))).collect()
    };
    for (zero, one) in
        [("0", "1"), ("false", "true"), ("0.0", "1.0"), ("False", "True"), ("np.False_", "np.True_"), ("FALSE", "1")]
    {
        let [lines, list, csv] = files.texts(&[
            ("input_ids", lists(&ids)),
            ("labels", lists(&labels)),
            ("attention_mask", spelled(zero, one)),
        ]);
        assert_eq!(both(&csv), Ok(None), "{zero}");
        if serde_json::from_str::<serde_json::Value>(zero).is_ok() {
            assert_eq!((both(&lines), both(&list)), (Ok(None), Ok(None)), "{zero}");
        }
    }
    // padding at the beginning, and rows without a mask, are as before
    let line = "{\"input_ids\": [11, 0, 12], \"labels\": [11, -1, 1], \"attention_mask\": [false, true, true]}\n\
                {\"input_ids\": [0, 12, 12], \"labels\": [-1, 1, 2], \"attention_mask\": null}\n";
    assert_eq!(read(&files.text("y.jsonl", line)).unwrap().0, expected()[..2]);
}

#[test]
fn what_padding_is_labelled_with_is_not_scored() {
    let files = Files::new();
    for (pad, label) in [(PAD, PAD), (PAD, -100), (PAD, 0), (0, 0), (PAD, 3)] {
        let [ids, labels, mask] = padded(pad, label);
        let columns = [("input_ids", integers(&ids)), ("labels", integers(&labels))];
        let lengths = |more: i64| Arc::new(Int64Array::from((1..=4).map(|n| n + more).collect::<Vec<_>>())) as ArrayRef;
        // a single token of padding that is labelled 3 could be an example, regardless of the mask
        for (name, column) in [("attention_mask", booleans(&mask)), ("length", lengths(1)), ("length", lengths(0))] {
            let [path, ..] = files.tables(&[&columns[..], &[(name, column)]].concat());
            let found = both(&path);
            match found {
                Err(error) if label == 3 && name == "attention_mask" => {
                    assert!(
                        error.contains("row 2 has a label at position 4, where its `attention_mask` says"),
                        "{error}"
                    );
                }
                found => assert_eq!(found, Ok(None), "{pad} {label} {name}"),
            }
        }
        // without a declaration of padding
        let [path, ..] = files.tables(&columns);
        match (pad, label) {
            (PAD, PAD) => {
                let note = both(&path).unwrap().unwrap();
                assert!(note.contains("`<pad>` was taken for padding in 3 of 4 examples"), "{note}");
            }
            (PAD, -100) => assert_eq!(both(&path), Ok(None)),
            _ => assert_ne!(read(&path).unwrap().0, expected(), "that could be anything"),
        }
    }
}

#[test]
fn columns_that_contradict_each_other_are_named() {
    let files = Files::new();
    let line = |more: &str| format!("{{\"input_ids\": [0, 12], \"labels\": [-1, 1]{more}}}\n");
    let table = |more: &str, value: &str| format!("input_ids,labels,{more}\n\"[0, 12]\",\"[-1, 1]\",\"{value}\"\n");
    for (name, text, part) in [
        ("a.jsonl", line(", \"length\": 3"), "line 1 has the length 3, but 2 tokens"),
        ("b.jsonl", line(", \"length\": -1"), "line 1 has the length -1"),
        ("c.jsonl", line(", \"length\": 1.5"), "the length is 1.5"),
        ("d.jsonl", line(", \"attention_mask\": [1]"), "line 1 has 2 tokens but 1 items in `attention_mask`"),
        ("e.jsonl", line(", \"attention_mask\": [1, 1, 0]"), "has 2 tokens but 3 items in `attention_mask`"),
        ("f.jsonl", line(", \"attention_mask\": [1, 2]"), "`attention_mask`: 2 is neither 0 nor 1"),
        ("g.jsonl", line(", \"attention_mask\": [0, -10000.0]"), "`attention_mask`: -10000 is neither 0 nor 1"),
        ("h.jsonl", line(", \"attention_mask\": [\"1\", \"1\"]"), "`attention_mask`: invalid type: string"),
        ("i.jsonl", line(", \"attention_mask\": 1"), "`attention_mask`: invalid type: integer"),
        ("j.jsonl", line(", \"attention_mask\": [0, 0]"), "has no token by its `attention_mask`"),
        (
            "k.jsonl",
            line(", \"length\": 2, \"attention_mask\": [0, 1]").replace("-1", "-100"),
            "has the length 2, but 1 tokens by its `attention_mask`",
        ),
        ("l.jsonl", line(", \"labels\": [-1, 1]"), "there are two columns `labels`"),
        ("m.jsonl", line("").replace("[0, 12]", "[true, false]"), "`input_ids`: the boolean `true` is no integer"),
        ("n.jsonl", line("").replace("[-1, 1]", "[-1]"), "line 1 has 2 tokens but 1 labels"),
        (
            "o.json",
            format!("[{}, {}]", line(""), line(", \"attention_mask\": [1, 5]")),
            "example 1: `attention_mask`: 5 is neither",
        ),
        ("p.csv", table("attention_mask", "[1, 2]"), "line 2: `attention_mask` has `2`, which is neither 0 nor 1"),
        ("q.csv", table("attention_mask", "11"), "line 2: `attention_mask` has `11`"),
        ("r.csv", table("attention_mask", "[1]"), "line 2 has 2 tokens but 1 items in `attention_mask`"),
        ("s.csv", table("length", "7"), "line 2 has the length 7, but 2 tokens"),
        ("t.csv", table("length", "1.5"), "line 2 has the length 1.5"),
        ("u.csv", table("labels", "[-1, 1]"), "there are two columns `labels`"),
        ("v.csv", table("x", "").replace("[0, 12]", "[True, False]"), "`input_ids` has the boolean `True`"),
        (
            "w.jsonl",
            "{\"input_ids\": [0, 12, 11, 12], \"labels\": [-1, 1, -1, 2], \"attention_mask\": [1, 1, 0, 1]}".into(),
            "line 1 has padding at position 2, between its tokens, by its `attention_mask`",
        ),
        (
            "x.jsonl",
            "{\"input_ids\": [0, 12, 12, 12], \"labels\": [-1, 1, 2, 3], \"length\": 2}".into(),
            "line 1 has the length 2, but 4 tokens, 3 of them main tokens",
        ),
    ] {
        let error = both(&files.text(name, &text)).unwrap_err();
        assert!(error.contains(part) && error.contains(name) && error.contains("\n  hint: "), "{name}: {error}");
        let hint =
            [("length", "padding not included"), ("attention_mask", "leave the column out"), ("two columns", "rename")];
        if let Some((_, hint)) = hint.iter().rev().find(|(word, _)| part.contains(word)) {
            assert!(error.contains(hint), "{name}: {error}");
        }
    }
    // a column `length` that is not a number is ignored
    for text in [table("length", "long"), table("length", ""), table("attention_mask", "")] {
        assert_eq!(read(&files.text("y.csv", &text)).unwrap().0, expected()[..1]);
    }
}

#[test]
fn columns_of_tables_that_cannot_be_read_are_named_with_their_type() {
    let files = Files::new();
    let rows: Vec<Vec<i64>> = vec![vec![0, 12], vec![0, 12]];
    let labels: Vec<Vec<i64>> = vec![vec![-1, 1], vec![-1, 1]];
    let (input_ids, labels) = (integers(&rows), integers(&labels));
    let ones = || integers(&[vec![1, 1], vec![1, 1]]);
    let words: ArrayRef = Arc::new(StringArray::from(vec!["11", "11"]));
    let cases: [(&str, ArrayRef, &str); 9] = [
        ("attention_mask", words.clone(), "the column `attention_mask` is of the type Utf8, not lists of 0 and 1"),
        ("attention_mask", Arc::new(Int64Array::from(vec![1, 1])), "is of the type Int64"),
        ("attention_mask", integers(&[vec![1, 1], vec![1]]), "row 1 has 2 tokens but 1 items in `attention_mask`"),
        (
            "attention_mask",
            integers(&[vec![1, 1], vec![1, 3]]),
            "row 1 has 3, which is neither 0 nor 1, in `attention_mask`",
        ),
        (
            "attention_mask",
            floats(&[vec![1, 1], vec![1, 1]], 0.5),
            "row 0 has 0.5, which is neither 0 nor 1, in `attention_mask`",
        ),
        ("length", Arc::new(Int64Array::from(vec![2, 3])), "row 1 has the length 3, but 2 tokens"),
        ("length", Arc::new(arrow::array::Float64Array::from(vec![1.0, 1.25])), "row 1 has the length 1.25"),
        ("labels", ones(), "there are two columns `labels`"),
        ("attention_mask", integers(&[vec![1, 1], vec![0, 0]]), "row 1 has no token by its `attention_mask`"),
    ];
    for (name, column, part) in cases {
        for path in
            files.tables(&[("input_ids", input_ids.clone()), ("labels", labels.clone()), (name, column.clone())])
        {
            let error = both(&path).unwrap_err();
            assert!(error.contains(part) && error.contains("x.") && error.contains("\n  hint: "), "{part}: {error}");
        }
    }
    for name in ["input_ids", "labels"] {
        let flags = booleans(&rows);
        let other = if name == "labels" { ("input_ids", input_ids.clone()) } else { ("labels", labels.clone()) };
        for path in files.tables(&[(name, flags.clone()), other]) {
            let error = both(&path).unwrap_err();
            assert!(error.contains(&format!("`{name}` is a column of lists of booleans")), "{error}");
        }
    }
    // null: explicitly no mask
    let none = new_null_array(&DataType::Null, 2);
    let [path, ..] = files.tables(&[("input_ids", input_ids), ("labels", labels), ("attention_mask", none)]);
    assert_eq!(read(&path).unwrap().0.len(), 2);
}

#[test]
fn a_file_without_a_row_is_no_dataset() {
    let files = Files::new();
    let none: [Vec<i64>; 0] = [];
    let [parquet, feather, stream] = files.tables(&[("input_ids", integers(&none)), ("labels", integers(&none))]);
    let empty = files.text("empty.txt", "");
    let head = files.text("head.csv", "input_ids,labels\n");
    for path in [parquet, feather, stream, empty, head] {
        let error = Dataset::read_as(&path, Some(&task())).unwrap_err().to_string();
        assert!(error.contains("it has no examples") && error.contains("hint: "), "{}: {error}", path.display());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(error.contains(&name), "{error}");
    }
    for device in ["/dev/null", "/dev/zero"].map(PathBuf::from).into_iter().filter(|path| path.exists()) {
        let error = Dataset::read_as(&device, Some(&task())).unwrap_err().to_string();
        assert!(error.contains("it is a device or a pipe") && error.contains("hint: "), "{error}");
    }
}
