//! Examples as Arrow tables in memory, and the labels of sequences.

use arrow::compute::concat_batches;
use data::{Dataset, Split, Task, generate_split, record_batches};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

#[test]
fn a_table_is_the_file_of_the_same_examples() {
    let dir = tempfile::tempdir().unwrap();
    // auxiliary examples among the others; more than one chunk; long examples, of which few make a chunk
    for (name, rows) in [
        ("counting_samesymbol_shiftedstart3_addtablelarge", 300),
        ("word/Z2", 40_000),
        ("counting_samesymbol,max_seq_len=1000000,train_max=60,last_number=200", 50),
    ] {
        let task = Task::by_name(name).unwrap();
        let path = dir.path().join("train.parquet");
        generate_split(&task, Split::Train, 5, rows, &path, |_| ()).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path).unwrap()).unwrap();
        let schema = reader.schema().clone();
        let file: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
        let table = record_batches(&task, Split::Train, 5, 0..rows, rows).unwrap();
        assert_eq!(table[0].schema().metadata(), schema.metadata(), "{name}");
        let [file, whole] = [&file, &table].map(|batches| concat_batches(&schema, batches).unwrap());
        assert!(file == whole, "{name}");
        let part = record_batches(&task, Split::Train, 5, 10..30, rows).unwrap();
        assert!(concat_batches(&schema, &part).unwrap() == whole.slice(10, 20), "{name}");
    }
    let task = Task::by_name("word/Z2").unwrap();
    let none = record_batches(&task, Split::Val, 0, 0..0, 0).unwrap();
    assert_eq!((none.len(), none[0].num_rows(), none[0].num_columns()), (1, 0, 3));
}

#[test]
fn sequences_are_labelled_by_the_rules_main_and_auxiliary() {
    for name in ["chomsky/parity_check", "counting_samesymbol_addbigram", "counting_samesymbol_padhelper"] {
        let task = Task::by_name(name).unwrap();
        let splits = task.splits();
        for split in splits {
            let examples = Dataset::generated(&task, split, 1, 40.min(task.rows(split, 1000).unwrap())).unwrap();
            for example in examples.iter() {
                assert_eq!(task.labels(example.input_ids).as_deref(), Ok(example.labels), "{name} {}", split.name());
            }
        }
    }
    let parity = Task::by_name("chomsky/parity_check").unwrap();
    assert!(parity.labels(&[2, 2]).is_err() && parity.labels(&[]).is_err());
}
