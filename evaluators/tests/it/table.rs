//! Result tables: columns, types, nulls, and every format read back.

use crate::common::{MOD10, SHIFTED, fixture, model, sweep};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use data::{Dataset, Split, Task};
use evaluators::{
    Format, Sweep, SweepFacts, model_fingerprint, to_record_batch, totals_to_record_batch, write, write_predictions,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::File;
use std::path::Path;

const HEADER: &str = "handle,task,arch,positional_embedding,num_layers,hidden_size,seed,checkpoint,provider,precision,\
                      split,length,n_sequences,n_tokens,accuracy,counting_accuracy,last_accuracy,sequence_accuracy,loss,\
                      last_accuracy_low,last_accuracy_high,in_distribution,status,plan,model_fingerprint,chance,parameters,state_size,iterations";

/// Length 1 has no counting accuracy, 98 and 99 few tracks, 100 none.
fn table() -> RecordBatch {
    let (model, task) = (model("counts_shifted"), Task::by_name(SHIFTED).unwrap());
    let results = sweep("counts_shifted", SHIFTED, "1,50,98..100", |s| s);
    to_record_batch(&results.lengths, &SweepFacts::new(&model, &task, "sweep")).unwrap()
}

fn read_parquet(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let (schema, batches) = (reader.schema().clone(), reader.build().unwrap().map(Result::unwrap).collect::<Vec<_>>());
    concat_batches(&schema, &batches).unwrap()
}

#[test]
fn columns_and_values() {
    let batch = table();
    let names: Vec<_> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names.join(","), HEADER);
    assert_eq!(batch.schema().metadata()["table_version"], "2");
    let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!((text("handle"), text("provider"), text("split")), ("0102_030405".into(), "cpu".into(), "sweep".into()));
    let column = |name: &str| batch.column_by_name(name).unwrap();
    assert_eq!(column("length").as_primitive::<Int64Type>().values(), &[1, 50, 98, 99, 100]);
    assert_eq!(column("n_sequences").as_primitive::<Int64Type>().values(), &[50, 50, 2, 1, 0]);
    assert_eq!(column("n_tokens").as_primitive::<Int64Type>().values(), &[50, 2500, 196, 99, 0]);
    assert_eq!(column("seed").as_primitive::<Int64Type>().value(0), 1234);
    let in_distribution: Vec<_> = column("in_distribution").as_boolean().iter().flatten().collect();
    assert_eq!(in_distribution, [true, true, false, false, false]);
    assert_eq!(column("status").as_string::<i32>().value(4), "past the vocabulary's last number (100)");
    assert_eq!(column("plan").as_string::<i32>().value(4), "single_pass");
    assert_eq!(text("model_fingerprint"), model_fingerprint(&fixture("counts_shifted")).unwrap());
    assert!(column("counting_accuracy").is_null(0) && column("counting_accuracy").is_valid(1));
    for name in ["accuracy", "counting_accuracy", "last_accuracy", "sequence_accuracy", "loss", "last_accuracy_low"] {
        assert!(column(name).is_null(4) && column(name).is_valid(3), "{name}");
    }
    let low = column("last_accuracy_low").as_primitive::<Float64Type>().value(3);
    assert!((low - 0.2065).abs() < 1e-4, "one of one is weak evidence: {low}");
}

/// Seeds of this program fit; one that another wrote into its model need not, and is never shown as another number.
#[test]
fn a_seed_beyond_signed_integers_is_null() {
    for (seed, shown) in [(Some(i64::MAX as u64), Some(i64::MAX)), (Some(1 << 63), None), (None, None)] {
        let results = sweep("counts_mod10", MOD10, "1..2", |s| s);
        let batch = to_record_batch(&results.lengths, &SweepFacts { seed, ..SweepFacts::default() }).unwrap();
        let seeds = batch.column_by_name("seed").unwrap().as_primitive::<Int64Type>().clone();
        assert_eq!(seeds.iter().collect::<Vec<_>>(), [shown; 2]);
    }
}

/// Readers look for metadata in the footer or in the Arrow schema.
#[test]
fn the_version_is_in_the_footer_as_well() {
    let (batch, dir) = (table(), tempfile::tempdir().unwrap());
    let path = dir.path().join("sweep.parquet");
    write(&batch, Format::Parquet, &path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    let footer = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let version = footer.iter().find(|pair| pair.key == evaluators::TABLE_VERSION_KEY).unwrap();
    assert_eq!(version.value.as_deref(), Some("2"));
}

#[test]
fn parquet_and_arrow_read_back_the_same() {
    let (batch, dir) = (table(), tempfile::tempdir().unwrap());
    let path = dir.path().join("eval/sweep.parquet");
    write(&batch, Format::Parquet, &path).unwrap();
    assert_eq!(read_parquet(&path), batch);
    let path = dir.path().join("eval/sweep.arrow");
    write(&batch, Format::Arrow, &path).unwrap();
    let mut reader = arrow::ipc::reader::FileReader::try_new(File::open(&path).unwrap(), None).unwrap();
    assert_eq!(reader.next().unwrap().unwrap(), batch);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "no temporary files stay");
}

#[test]
fn csv_and_json_are_plain() {
    let (batch, dir) = (table(), tempfile::tempdir().unwrap());
    let path = dir.path().join("sweep.csv");
    write(&batch, Format::Csv, &path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines.len()), (HEADER, 6));
    let model = model_fingerprint(&fixture("counts_shifted")).unwrap();
    assert!(lines[5].ends_with(&format!(
        ",sweep,100,0,0,,,,,,,,false,past the vocabulary's last number (100),single_pass,{model},,,,"
    )));
    write(&batch.slice(0, 0), Format::Csv, &path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap().trim_end(), HEADER, "also without rows");

    let path = dir.path().join("sweep.json");
    write(&batch, Format::Json, &path).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!((rows.len(), rows[0].as_object().unwrap().len()), (5, 29));
    assert_eq!(rows[4]["loss"], serde_json::Value::Null);
    assert_eq!((rows[1]["length"].as_u64(), rows[1]["accuracy"].as_f64()), (Some(50), Some(1.0)));
}

#[test]
fn predictions_keep_their_lists() {
    let results = sweep("counts_mod10", MOD10, "1..3", |s| s.keep_predictions(true));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("predictions.parquet");
    write_predictions(&results.predictions, Format::Parquet, &path).unwrap();
    let batch = read_parquet(&path);
    assert_eq!(batch.num_rows(), 3);
    let names: Vec<_> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["length", "index", "input_ids", "gold", "predicted"]);
    let lists = |name: &str| batch.column_by_name(name).unwrap().as_list::<i32>().value(2);
    assert_eq!(lists("input_ids").as_primitive::<Int32Type>().values(), &[0, 12, 12, 12]);
    assert_eq!(lists("predicted").as_primitive::<Int32Type>().values(), &[1, 2, 3]);

    let path = dir.path().join("predictions.csv");
    write_predictions(&results.predictions, Format::Csv, &path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().next(), Some("length,index,input_ids,gold,predicted"));
    assert_eq!(text.lines().last(), Some("3,0,\"[0, 12, 12, 12]\",\"[1, 2, 3]\",\"[1, 2, 3]\""));
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let (batch, dir) = (table(), tempfile::tempdir().unwrap());
    let blocked = dir.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let message = write(&batch, Format::Csv, &blocked.join("sweep.csv")).unwrap_err().to_string();
    assert!(message.starts_with(&format!("cannot create the folder {}", blocked.display())), "{message}");
}

#[test]
fn format_names_are_parsed_and_typos_answered() {
    for name in ["parquet", "arrow", "csv", "json"] {
        assert_eq!(name.parse::<Format>().unwrap().to_string(), name);
    }
    assert_eq!(
        "parqet".parse::<Format>().unwrap_err().to_string(),
        "there is no format `parqet`; did you mean `parquet`?\n  hint: the choices are parquet, arrow, csv, json"
    );
}

#[test]
fn totals_have_one_row_per_split() {
    let (mut model, task) = (model("counts_shifted"), Task::by_name(SHIFTED).unwrap());
    let split = |split: Split, model: &mut evaluators::Model| {
        let dataset = Dataset::generated(&task, split, 0, task.rows(split, 50).unwrap()).unwrap();
        Sweep::new(model).task(&task).loops(Some(2)).run_dataset(&dataset, split.name()).unwrap()
    };
    let results = [split(Split::Val, &mut model), split(Split::OodTest, &mut model)];
    let batch = totals_to_record_batch(&results).unwrap();
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let names: Vec<_> = column("split").as_string::<i32>().iter().flatten().collect();
    assert_eq!(names, ["val", "ood_test"]);
    assert_eq!(column("loops").as_primitive::<Int64Type>().values(), &[2, 2]);
    assert_eq!(column("n_sequences").as_primitive::<Int64Type>().values(), &[100, 2450]);
    assert!(column("unseen_accuracy").is_null(0), "validation has no unseen lengths");
    assert_eq!(column("unseen_accuracy").as_primitive::<Float64Type>().value(1), 1.0);
    assert_eq!(column("last_accuracy").as_primitive::<Float64Type>().values(), &[1.0, 1.0]);
    assert_eq!(column("status").as_string::<i32>().value(0), "ok");
}
