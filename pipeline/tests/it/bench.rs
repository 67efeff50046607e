//! `pipeline bench train` times every architecture, and says what is wrong with its options.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{fails, files, ok};
use serde_json::Value;

#[test]
fn every_architecture_is_timed_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["--hidden", "64", "--batch", "2", "--seq", "5", "--steps", "2", "--warmup", "1", "--device", "cpu"];
    for arch in models::ModelConfig::ARCHITECTURES {
        let arguments = [&["bench", "train", "--arch", arch, "--json", "--quiet"], &small[..]].concat();
        let report: Value = ok(dir.path(), &arguments).parse().unwrap();
        assert_eq!((report["arch"].as_str(), report["steps"].as_u64()), (Some(arch), Some(2)));
        let number = |key: &str| report[key].as_f64().unwrap();
        let rate = 2.0 * 5.0 * 1e3 / number("step_ms_median");
        assert!((number("tokens_per_s") / rate - 1.0).abs() < 1e-9, "{report}");
        assert!(number("step_ms_min") <= number("step_ms_median") && number("parameters") > 64.0, "{report}");
        assert!((3.0..7.0).contains(&number("loss")), "that of guessing among 102 tokens, or near: {report}");
    }
    let table = ok(dir.path(), &[&["bench", "train", "--arch", "rnn"], &small[..]].concat());
    assert!(table.contains("tokens/s") && table.contains("rnn, 1 × 64"), "{table}");
    assert_eq!(files(dir.path()), [""; 0]);
}

#[test]
fn options_that_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    for (options, status, part) in [
        (vec!["--arch", "lstn"], 1, "did you mean `lstm`?"),
        (vec!["--heads", "2"], 1, "the architecture lstm has none"),
        (vec!["--arch", "rwkv5", "--heads", "3"], 1, "--heads 3 does not divide --hidden 128"),
        (vec!["--positional-embedding", "rope"], 1, "the architecture lstm has none"),
        (vec!["--device", "tpu"], 1, "one of auto, cpu, cuda, cuda:N"),
        (vec!["--steps", "0"], 2, "--steps"),
    ] {
        fails(dir.path(), &[&["bench", "train"], &options[..]].concat(), status, &[part]);
    }
}
