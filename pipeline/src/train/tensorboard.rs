//! The training curve as TensorBoard reads it: an event file is a sequence of TFRecords, each a protobuf `Event`.
//!
//! Formats: `tensorflow/core/lib/io/record_writer.h` and `tensorflow/core/util/event.proto`.

use crate::run::checksum::crc32c;
use crate::train::metrics::MetricsRow;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An event file that grows during training.
pub struct EventFile {
    file: File,
    path: PathBuf,
    /// When the run began, had it never been interrupted.
    start: SystemTime,
}

impl EventFile {
    /// A file in `folder` that holds `rows`. Files of earlier parts of the run are replaced by it, so that steps which
    /// are repeated after an interruption are in the curve once.
    pub fn create(folder: &Path, rows: &[MetricsRow], seconds: f64) -> Result<Self> {
        let doing = || format!("cannot write TensorBoard's event file in {}", folder.display());
        fs::create_dir_all(folder).with_context(doing)?;
        for entry in fs::read_dir(folder).with_context(doing)?.filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with("events.out.tfevents.") {
                fs::remove_file(entry.path()).with_context(doing)?;
            }
        }
        let now = SystemTime::now();
        let path = folder.join(format!("events.out.tfevents.{}.pipeline", seconds_since_epoch(now) as u64));
        let file = File::create(&path).with_context(doing)?;
        let start = now.checked_sub(Duration::from_secs_f64(seconds)).unwrap_or(UNIX_EPOCH);
        let mut events = Self { file, path, start };
        let version = bytes_field(3, b"brain.Event:2");
        events.record(&[double_field(1, seconds_since_epoch(start)), version].concat())?;
        events.append(rows)?;
        Ok(events)
    }

    /// Adds rows.
    pub fn append(&mut self, rows: &[MetricsRow]) -> Result<()> {
        for row in rows {
            let time = seconds_since_epoch(self.start) + row.seconds;
            let values: Vec<u8> =
                scalars(row).flat_map(|(name, value)| bytes_field(1, &scalar(&row.split, name, value))).collect();
            let event = [double_field(1, time), varint_field(2, row.step), bytes_field(5, &values)].concat();
            self.record(&event)?;
        }
        Ok(())
    }

    /// One TFRecord: length, its masked checksum, the data, its masked checksum; in one write, so that a reader that
    /// follows the file sees whole records.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let record = [&length[..], &masked(&length), data, &masked(data)].concat();
        self.file.write_all(&record).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The values of a row that it has, by column name.
fn scalars(row: &MetricsRow) -> impl Iterator<Item = (&'static str, f64)> {
    let all = [
        ("loss", row.loss),
        ("accuracy", row.accuracy),
        ("counting_accuracy", row.counting_accuracy),
        ("last_accuracy", row.last_accuracy),
        ("sequence_accuracy", row.sequence_accuracy),
        ("unseen_accuracy", row.unseen_accuracy),
        ("lr", row.lr),
        ("grad_norm", row.grad_norm),
        ("tokens_per_s", row.tokens_per_s),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// `Summary.Value { tag = 1, simple_value = 2 }`; tags are `<split>/<column>`.
fn scalar(split: &str, name: &str, value: f64) -> Vec<u8> {
    let mut out = bytes_field(1, format!("{split}/{name}").as_bytes());
    out.push(2 << 3 | 5);
    out.extend((value as f32).to_le_bytes());
    out
}

fn double_field(number: u8, value: f64) -> Vec<u8> {
    let mut out = vec![number << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    let mut out = vec![number << 3];
    varint(value, &mut out);
    out
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// TFRecord's mask, which keeps checksums of data that contain checksums apart.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn seconds_since_epoch(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Values of `masked_crc32c` in the Python package `tensorboard`.
    #[test]
    fn masked_checksums() {
        assert_eq!(masked(&24u64.to_le_bytes()), 0x224b_7fa3_u32.to_le_bytes());
        assert_eq!(masked(b"brain.Event:2"), 0x7c06_01ee_u32.to_le_bytes());
    }

    #[test]
    fn a_new_file_replaces_those_of_earlier_parts() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("events.out.tfevents.1.pipeline"), "old").unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let row = MetricsRow { step: 300, split: "val".into(), loss: Some(0.5), ..Default::default() };
        let mut events = EventFile::create(folder.path(), std::slice::from_ref(&row), 3.0).unwrap();
        let before = events.file.metadata().unwrap().len();
        events.append(&[row]).unwrap();
        let bytes = fs::read(&events.path).unwrap();
        // header, then two equal events of: time 9, step 3, summary 2 + value 2 + tag 2 + 8 + loss 5, framed by 16
        assert_eq!((before, bytes.len()), (40 + 47, 40 + 2 * 47));
        assert!(bytes.windows(8).filter(|w| w == b"val/loss").count() == 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
