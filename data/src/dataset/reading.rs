//! Reads examples from any file that [`super::source`] recognises, with one walk over rows and lines for all forms.

use super::arrow_ipc::{arrow_schema, for_each_batch};
use super::columns::{self, Columns, MASK, MAX_ROW_TOKENS, RawExample};
use super::damage::{MAX_TOKENS, undecoded};
use super::source::{Format, Part, parts};
use super::text::for_each_line;
use super::{CHUNK, CHUNK_TOKENS};
use super::{pages, records};
use crate::{DataError, DatasetInfo, IGNORE, Vocabulary};
use arrow::array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::path::{Path, PathBuf};

/// PyTorch's mark of positions without a label, which Hugging Face's datasets have.
const TORCH_IGNORE: i64 = -100;

/// The place of an example.
pub(crate) struct Place<'a> {
    /// The file, where there are several.
    pub part: Option<&'a Path>,
    pub unit: &'static str,
    pub number: usize,
}

impl Place<'_> {
    /// A line of the only file.
    pub fn line(number: usize) -> Self {
        Self { part: None, unit: "line", number }
    }
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(part) = self.part {
            write!(f, "{}, ", part.file_name().unwrap_or_default().to_string_lossy())?;
        }
        write!(f, "{} {}", self.unit, self.number)
    }
}

/// An example that was found, its labels −1 where there are none.
pub(crate) struct Found<'a> {
    pub input_ids: &'a [u16],
    pub labels: &'a [i16],
    /// The value of the column of that name; at most the number of tokens.
    pub length: Option<u32>,
    /// Whether a mask has marked padding, which is removed.
    pub masked: bool,
}

/// The callback for every example, in order.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&Place<'_>, Result<Found<'_>, String>) -> Result<(), DataError>;

/// How a line of [`super::text`] becomes ids and labels.
pub(crate) type Parse<'a> = &'a mut dyn FnMut(&str) -> Result<(Vec<u16>, Vec<i16>), String>;

/// Files of examples, opened.
pub(crate) struct Source {
    path: PathBuf,
    parts: Vec<Part>,
    /// The description in the first file, or the part that it lacks.
    pub info: Result<DatasetInfo, String>,
    /// The tokens in id order, where its metadata has a list of that name.
    pub vocab: Option<Vec<String>>,
}

impl Source {
    /// A file, or a folder with the parts of one dataset.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let parts = parts(path)?;
        let metadata: Option<BTreeMap<String, String>> = match parts.first() {
            Some(Part { path, format: Format::Parquet }) => {
                let metadata = open_parquet(path)?.metadata().file_metadata().key_value_metadata().cloned();
                Some(metadata.into_iter().flatten().filter_map(|kv| Some((kv.key, kv.value?))).collect())
            }
            Some(Part { path, format: Format::Arrow }) => {
                let metadata = arrow_schema(path)?.metadata().clone();
                Some(metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
            }
            _ => None,
        };
        let info = metadata.as_ref().map_or_else(|| Err(TEXT.into()), DatasetInfo::from_metadata);
        let vocab = metadata.as_ref().and_then(|metadata| serde_json::from_str(metadata.get("vocab")?).ok());
        Ok(Self { path: path.into(), parts, info, vocab })
    }

    /// A file of pairs, without recognition.
    pub fn pairs(path: &Path) -> Self {
        let parts = vec![Part { path: path.into(), format: Format::Pairs }];
        Self { path: path.into(), parts, info: Err(TEXT.into()), vocab: None }
    }

    /// The number of examples according to the files.
    pub fn rows(&self) -> Result<usize, DataError> {
        let mut rows = 0;
        for Part { path, format } in &self.parts {
            match format {
                Format::Parquet => rows += open_parquet(path)?.metadata().file_metadata().num_rows().max(0) as usize,
                Format::Arrow => for_each_batch(path, |_, batch| {
                    rows += batch.map_or(0, RecordBatch::num_rows);
                    Ok(())
                })?,
                _ => {} // text has no description
            }
        }
        Ok(rows)
    }

    /// The files that are read.
    pub fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|part| part.path.clone()).collect()
    }

    /// Whether its lines have tokens, not ids.
    pub fn is_pairs(&self) -> bool {
        self.parts.iter().all(|part| part.format == Format::Pairs)
    }

    /// Visits every example with its place, or the problem with it: a number outside of `bounds` is one.
    ///
    /// # Errors
    /// A file cannot be read to its end, or `visit` fails.
    pub fn for_each(&self, bounds: Bounds, parse: Parse<'_>, visit: Visit<'_>) -> Result<(), DataError> {
        let mut walk = Walk { bounds, tokens: 0, rows: 0, input_ids: vec![], labels: vec![], visit, part: None };
        for part in &self.parts {
            walk.part = (self.parts.len() > 1).then_some(&part.path);
            let path = &part.path;
            match part.format {
                Format::Parquet => walk.parquet(path)?,
                Format::Arrow => walk.arrow(path)?,
                Format::Pairs => walk.pairs(path, parse)?,
                Format::JsonLines => for_each_line(path, |number, line| {
                    let mut raw = RawExample::default();
                    let found = line.and_then(|line| records::parse(line, &mut raw));
                    walk.raw("line", number, found.map(|()| &mut raw), path)
                })?,
                Format::JsonList => {
                    records::for_each_of_list(path, |number, raw| walk.raw("example", number, raw, path))?;
                }
                Format::Csv => records::for_each_of_csv(path, |line, raw| walk.raw("line", line, raw, path))?,
            }
        }
        Ok(())
    }

    /// The hint of a message about a single example.
    pub fn hint(&self, problem: &str) -> &'static str {
        if self.is_pairs() {
            return "a line is a pair [[tokens], [labels]] of strings";
        }
        columns::hint_of(problem).unwrap_or(EXAMPLES)
    }

    pub fn invalid(&self, reason: String, hint: &str) -> DataError {
        DataError::Invalid { path: self.path.clone(), reason, hint: hint.into() }
    }
}

const TEXT: &str = "it is text, which has no description of itself";

const EXAMPLES: &str =
    "examples are lists of token ids in `input_ids` and as many ids in `labels`, -1 or -100 where there is no label";

/// How many different numbers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Token ids are below.
    pub tokens: usize,
    /// Labels are below.
    pub labels: usize,
}

impl Bounds {
    /// Whatever fits into the types.
    pub const NONE: Self = Self { tokens: usize::MAX, labels: i16::MAX as usize };

    /// The numbers of a vocabulary.
    pub fn of(vocabulary: &Vocabulary) -> Self {
        Self { tokens: vocabulary.len(), labels: vocabulary.label_count() }
    }
}

/// The walk over the examples of a source.
struct Walk<'a> {
    bounds: Bounds,
    tokens: u64,
    rows: u64,
    input_ids: Vec<u16>,
    labels: Vec<i16>,
    visit: Visit<'a>,
    part: Option<&'a Path>,
}

impl Walk<'_> {
    fn pairs(&mut self, path: &Path, parse: Parse<'_>) -> Result<(), DataError> {
        let part = self.part;
        for_each_line(path, |number, line| {
            let place = Place { part, unit: "line", number };
            match line.and_then(&mut *parse) {
                Ok((input_ids, labels)) => (self.visit)(
                    &place,
                    Ok(Found { input_ids: &input_ids, labels: &labels, length: None, masked: false }),
                ),
                Err(problem) => (self.visit)(&place, Err(problem)),
            }
        })
    }

    fn parquet(&mut self, path: &Path) -> Result<(), DataError> {
        let builder = open_parquet(path)?;
        columns::check(builder.schema()).map_err(|reason| invalid(path, reason))?;
        let read = |name: &str| columns::READ.contains(&name);
        let roots = builder.schema().fields().iter().enumerate().filter(|(_, field)| read(field.name()));
        let roots: Vec<usize> = roots.map(|(index, _)| index).collect();
        let (mut longest_mean, mut all) = (1, 0u64);
        for group in builder.metadata().row_groups() {
            let rows = group.num_rows().max(1).unsigned_abs();
            let is_read = |c: &&ColumnChunkMetaData| c.column_path().parts().first().is_some_and(|name| read(name));
            let lists = || group.columns().iter().filter(is_read);
            lists().try_for_each(|column| pages::check(path, column))?;
            let values = lists().map(|c| c.num_values().max(0).unsigned_abs()).max().unwrap_or(0);
            self.see(path, rows, 0)?;
            all = all.saturating_add(values);
            longest_mean = longest_mean.max(values / rows);
        }
        if all > MAX_TOKENS {
            return Err(invalid(path, format!("it has {all} tokens; at most {MAX_TOKENS} are read")));
        }
        if longest_mean > MAX_ROW_TOKENS as u64 {
            return Err(invalid(
                path,
                format!("it has examples of {longest_mean} tokens; at most {MAX_ROW_TOKENS} are read"),
            ));
        }
        let size = (CHUNK_TOKENS as u64 / longest_mean).clamp(1, CHUNK as u64) as usize;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let batches = builder.with_projection(mask).with_batch_size(size).build().map_err(|e| undecoded(path, &e))?;
        let mut row = 0;
        for batch in batches {
            let batch = batch.map_err(|e| undecoded(path, &ParquetError::from(e)))?;
            self.batch(path, &batch, &mut row)?;
        }
        Ok(())
    }

    fn arrow(&mut self, path: &Path) -> Result<(), DataError> {
        let mut row = 0;
        for_each_batch(path, |schema, batch| {
            columns::check(schema).map_err(|reason| invalid(path, reason))?;
            let Some(batch) = batch else { return Ok(()) };
            self.see(path, batch.num_rows() as u64, 0)?;
            self.batch(path, batch, &mut row)
        })
    }

    /// Adds to the total count.
    fn see(&mut self, path: &Path, rows: u64, tokens: u64) -> Result<(), DataError> {
        self.rows = self.rows.saturating_add(rows);
        self.tokens = self.tokens.saturating_add(tokens);
        if self.rows.max(self.tokens) > MAX_TOKENS {
            return Err(invalid(path, format!("it has more rows or tokens than the {MAX_TOKENS} that are read")));
        }
        Ok(())
    }

    fn batch(&mut self, path: &Path, batch: &RecordBatch, row: &mut usize) -> Result<(), DataError> {
        let columns = Columns::of(batch).map_err(|reason| invalid(path, reason))?;
        let mut raw = RawExample::default();
        for index in 0..batch.num_rows() {
            let found = columns.row(index, &mut raw);
            self.raw("row", *row, found.map(|()| &mut raw), path)?;
            *row += 1;
        }
        Ok(())
    }

    /// An example as stored in the file, without its padding, in the narrow types, with one mark for missing labels.
    fn raw(
        &mut self,
        unit: &'static str,
        number: usize,
        raw: Result<&mut RawExample, String>,
        path: &Path,
    ) -> Result<(), DataError> {
        let place = Place { part: self.part, unit, number };
        let found = raw.and_then(|raw| {
            let range = unmasked(raw)?;
            let (inputs, labels) = (&raw.inputs[range.clone()], &raw.labels[range]);
            narrow(inputs, labels, self.bounds, &mut self.input_ids, &mut self.labels)?;
            let (tokens, masked) = (inputs.len(), raw.mask.is_some());
            let fits = |n: i64| u32::try_from(n).ok().filter(|n| *n as usize <= tokens);
            let length = raw.length.map(|n| fits(n).ok_or_else(|| too_long(n, tokens, masked))).transpose()?;
            Ok((length, tokens, masked))
        });
        match found {
            Ok((length, tokens, masked)) => {
                let found = Found { input_ids: &self.input_ids, labels: &self.labels, length, masked };
                (self.visit)(&place, Ok(found))?;
                self.see(path, 0, tokens as u64)
            }
            Err(problem) => (self.visit)(&place, Err(problem)),
        }
    }
}

/// The error for a length that an example of so many tokens cannot have.
fn too_long(length: i64, tokens: usize, masked: bool) -> String {
    match (length, masked) {
        (..0, _) => format!("has the length {length}"),
        (_, true) => format!("has the length {length}, but {tokens} tokens by its `{MASK}`"),
        (_, false) => format!("has the length {length}, but {tokens} tokens"),
    }
}

/// The part of an example that its padding mask keeps: padding before and after it is removed if its labels are none of
/// a sequence's (none, the token itself, the same for all of it).
fn unmasked(raw: &RawExample) -> Result<std::ops::Range<usize>, String> {
    let (tokens, labels) = (raw.inputs.len(), raw.labels.len());
    if tokens != labels {
        return Err(format!("has {tokens} tokens but {labels} labels"));
    }
    if tokens == 0 {
        return Err("has no tokens".into());
    }
    let Some(mask) = &raw.mask else { return Ok(0..tokens) };
    if mask.len() != tokens {
        return Err(format!("has {tokens} tokens but {} items in `{MASK}`", mask.len()));
    }
    let Some(start) = mask.iter().position(|flag| *flag != 0) else {
        return Err(format!("has no token by its `{MASK}`: all of it is padding"));
    };
    let end = mask.iter().rposition(|flag| *flag != 0).map_or(tokens, |last| last + 1);
    if let Some(gap) = mask[start..end].iter().position(|flag| *flag == 0) {
        return Err(format!("has padding at position {}, between its tokens, by its `{MASK}`", start + gap));
    }
    let padding = || (0..start).chain(end..tokens);
    let first = padding().next().map(|i| (raw.inputs[i], raw.labels[i]));
    let is_filled = padding().all(|i| Some((raw.inputs[i], raw.labels[i])) == first)
        && (padding().nth(1).is_some() || first.is_some_and(|(_, label)| label == 0));
    let is_label = |i: usize| raw.labels[i] >= 0 && raw.labels[i] != raw.inputs[i] && !is_filled;
    match padding().find(|i| is_label(*i)) {
        Some(at) => Err(format!("has a label at position {at}, where its `{MASK}` says that there is padding")),
        None => Ok(start..end),
    }
}

/// Ids and labels in their narrow types, all inside of the bounds.
fn narrow(
    inputs: &[i64],
    labels: &[i64],
    bounds: Bounds,
    narrow_inputs: &mut Vec<u16>,
    narrow_labels: &mut Vec<i16>,
) -> Result<(), String> {
    let vocab = bounds.tokens.min(i16::MAX as usize) as i64;
    let label_count = bounds.labels.min(1 << 15) as i64;
    narrow_inputs.clear();
    narrow_labels.clear();
    narrow_inputs.extend(inputs.iter().map_while(|id| (0..vocab).contains(id).then_some(*id as u16)));
    if let Some(id) = inputs.get(narrow_inputs.len()) {
        return Err(format!("has the token id {id}, but the vocabulary has {vocab} tokens"));
    }
    narrow_labels.extend(labels.iter().map_while(|label| match *label {
        -1 | TORCH_IGNORE => Some(IGNORE),
        label => (0..label_count).contains(&label).then_some(label as i16),
    }));
    match labels.get(narrow_labels.len()) {
        Some(label) if vocab == label_count || bounds == Bounds::NONE => {
            Err(format!("has the label {label}, but the vocabulary has {vocab} tokens"))
        }
        Some(label) => Err(format!("has the label {label}, but labels are sets below {label_count}")),
        None => Ok(()),
    }
}

/// Opens a Parquet file by its own types: additions of an Arrow schema in it make no difference to lists of integers.
fn open_parquet(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, DataError> {
    let file = File::open(path).map_err(DataError::io("read", path))?;
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(|e| undecoded(path, &e))
}

fn invalid(path: &Path, reason: String) -> DataError {
    let hint = columns::hint_of(&reason).unwrap_or(EXAMPLES);
    DataError::Invalid { path: path.into(), reason, hint: hint.into() }
}
