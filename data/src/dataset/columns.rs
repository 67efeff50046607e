//! Lists of integers by the names of their columns: the one place that turns Arrow's arrays into examples.
//!
//! Every way that tools store `[0, 12, 12]` is the same here: lists with 32-bit or 64-bit offsets, of a fixed size or
//! as views, of any integers (or of floats that are whole, which is what pandas makes of integers next to a missing
//! value), in dictionaries, in any order of columns, nullable or not.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::take;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Schema, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::array_value_to_string;

/// The columns that examples are in.
pub(crate) const INPUTS: &str = "input_ids";
pub(crate) const LABELS: &str = "labels";
pub(crate) const LENGTH: &str = "length";
/// Hugging Face's padding mask; 0 is padding.
pub(crate) const MASK: &str = "attention_mask";

/// The longest example in tokens; longer ones are refused.
pub(crate) const MAX_ROW_TOKENS: usize = 16 << 20;

/// The names of the columns that are read.
pub(crate) const READ: [&str; 4] = [INPUTS, LABELS, LENGTH, MASK];

/// The hint for a mask that cannot be used.
pub(crate) const MASK_HINT: &str = "`attention_mask` has a 1 (or true) for every token and a 0 (or false) for padding, which \
    stands at the beginning or the end; correct it, or leave the column out where nothing is padded";
/// The hint for impossible lengths.
pub(crate) const LENGTH_HINT: &str = "`length` counts the tokens of an example, or the main tokens as the task does, padding \
    not included; correct it, or leave the column out or rename it where it is something else: lengths are counted then";
/// The hint for columns with the same name.
const TWICE_HINT: &str = "rename or remove one of them";
/// The hint for boolean ids.
const BOOLEAN_HINT: &str =
    "token ids are integers; where false and true are meant as the ids 0 and 1, convert the column to integers";

/// The hint for a problem, if it names an optional column or may concern any column.
pub(crate) fn hint_of(problem: &str) -> Option<&'static str> {
    let hints = [("two columns", TWICE_HINT), (MASK, MASK_HINT), ("boolean", BOOLEAN_HINT), ("length", LENGTH_HINT)];
    hints.iter().find(|(part, _)| problem.contains(part)).map(|(_, hint)| *hint)
}

/// Refuses a list of columns in which one that is read occurs twice.
pub(crate) fn check_names<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<(), String> {
    match READ.iter().find(|name| names.clone().filter(|found| found == *name).count() > 1) {
        Some(name) => Err(format!("there are two columns `{name}`")),
        None => Ok(()),
    }
}

/// Checks the columns of a file: each name occurs once, the lists of integers exist, and a mask, if any, is lists of 0
/// and 1. Other columns may be anything.
pub(crate) fn check(schema: &Schema) -> Result<(), String> {
    let found = || schema.fields().iter().map(|f| describe(f.name(), f.data_type())).collect::<Vec<_>>().join(", ");
    check_names(schema.fields().iter().map(|field| field.name().as_str()))?;
    for name in [INPUTS, LABELS] {
        match schema.field_with_name(name) {
            Err(_) => return Err(format!("there is no column `{name}`: its columns are [{}]", found())),
            Ok(field) if item(field.data_type()).is_some_and(is_number) => {}
            Ok(field) if item(field.data_type()).is_some_and(is_boolean) => {
                return Err(format!("`{name}` is a column of lists of booleans, not of integers"));
            }
            Ok(_) => return Err(format!("`{name}` is no column of lists of integers: its columns are [{}]", found())),
        }
    }
    let Ok(mask) = schema.field_with_name(MASK) else { return Ok(()) };
    let is_flag = |data_type: &DataType| is_number(data_type) || is_boolean(data_type);
    if *mask.data_type() == DataType::Null || item(mask.data_type()).is_some_and(is_flag) {
        return Ok(());
    }
    let column = describe(MASK, mask.data_type());
    let kind = column.strip_prefix(MASK).unwrap_or(&column).trim();
    Err(format!("the column `{MASK}` is of the type {kind}, not lists of 0 and 1 or of booleans"))
}

fn is_boolean(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_boolean(value),
        other => *other == DataType::Boolean,
    }
}

fn describe(name: &str, data_type: &DataType) -> String {
    let list = |kind: &str, item: &DataType| format!("{name} {kind}<{item}>");
    match data_type {
        DataType::List(item) => list("list", item.data_type()),
        DataType::LargeList(item) => list("large_list", item.data_type()),
        DataType::FixedSizeList(item, _) => list("fixed_size_list", item.data_type()),
        DataType::ListView(item) | DataType::LargeListView(item) => list("list_view", item.data_type()),
        other => format!("{name} {other}"),
    }
}

/// The type of a list's items.
fn item(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => Some(item.data_type()),
        DataType::Dictionary(_, value) => item(value),
        _ => None,
    }
}

fn is_number(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_number(value),
        DataType::Null => true, // the items of lists that are all empty
        other => other.is_integer() || other.is_floating(),
    }
}

/// The columns of a batch.
pub(crate) struct Columns {
    inputs: Lists,
    labels: Lists,
    mask: Option<Lists>,
    lengths: Option<(Vec<Option<i64>>, ArrayRef)>,
}

/// One example as stored in a file.
#[derive(Debug, Default)]
pub(crate) struct RawExample {
    pub inputs: Vec<i64>,
    pub labels: Vec<i64>,
    pub length: Option<i64>,
    /// The padding mask, 0 at padding; `None` where the file has none.
    pub mask: Option<Vec<i64>>,
}

impl Columns {
    /// The columns of `batch`, whose schema [`check`] has seen.
    pub fn of(batch: &RecordBatch) -> Result<Self, String> {
        let lists = |name: &str| match batch.column_by_name(name) {
            Some(column) => Lists::of(column).map_err(|reason| format!("`{name}` {reason}")),
            None => Err(format!("there is no column `{name}`")),
        };
        // An optional column may be of any kind.
        let lengths = batch.column_by_name(LENGTH).filter(|column| *column.data_type() != DataType::Null);
        let lengths = lengths.and_then(|column| {
            let column = plain(column).ok().filter(|column| is_number(column.data_type()))?;
            Some((numbers(&column).ok()?, column))
        });
        let mask = batch.column_by_name(MASK).filter(|column| *column.data_type() != DataType::Null);
        let mask = mask.map(Lists::of_flags).transpose().map_err(|reason| format!("`{MASK}` {reason}"))?;
        Ok(Self { inputs: lists(INPUTS)?, labels: lists(LABELS)?, mask, lengths })
    }

    /// Puts row number `row` into `out`, or returns the problem.
    pub fn row(&self, row: usize, out: &mut RawExample) -> Result<(), String> {
        let named = |name: &'static str| move |reason: String| format!("has {reason} in `{name}`");
        self.inputs.row(row, &mut out.inputs).map_err(named(INPUTS))?;
        self.labels.row(row, &mut out.labels).map_err(named(LABELS))?;
        // A row without a mask has no padding.
        out.mask = match self.mask.as_ref().filter(|mask| mask.array.is_valid(row)) {
            Some(mask) => Some(mask.flags(row).map_err(named(MASK))?),
            None => None,
        };
        out.length = match self.lengths.as_ref().filter(|(_, column)| column.is_valid(row)) {
            Some((lengths, column)) => {
                let text = || array_value_to_string(column, row).unwrap_or_default();
                let whole = lengths.get(row).copied().flatten();
                Some(whole.ok_or_else(|| format!("has the length {}", text()))?)
            }
            None => None,
        };
        Ok(())
    }
}

/// A column of lists of integers.
struct Lists {
    array: ArrayRef,
    items: Vec<i64>,
    values: ArrayRef,
}

impl Lists {
    fn of(column: &ArrayRef) -> Result<Self, String> {
        let (array, values) = Self::parts(column)?;
        Ok(Self { items: whole_numbers(&values)?, values, array })
    }

    /// The lists, and the items of all of them.
    fn parts(column: &ArrayRef) -> Result<(ArrayRef, ArrayRef), String> {
        let array = plain(column)?;
        let values = match array.data_type() {
            DataType::List(_) => array.as_list::<i32>().values(),
            DataType::LargeList(_) => array.as_list::<i64>().values(),
            DataType::FixedSizeList(..) => array.as_fixed_size_list().values(),
            DataType::ListView(_) => array.as_list_view::<i32>().values(),
            DataType::LargeListView(_) => array.as_list_view::<i64>().values(),
            other => return Err(format!("is {other}, not a list of integers")),
        };
        let values = plain(values)?;
        Ok((array, values))
    }

    /// A column of lists of 0 and 1, as integers, floats or booleans.
    fn of_flags(column: &ArrayRef) -> Result<Self, String> {
        let (array, values) = Self::parts(column)?;
        let items = match values.data_type() {
            DataType::Boolean => values.as_boolean().values().iter().map(i64::from).collect(),
            _ => numbers(&values)?.into_iter().map(|value| value.unwrap_or(NEITHER)).collect(),
        };
        Ok(Self { array, items, values })
    }

    /// The items of a row, of which each must be 0 or 1.
    fn flags(&self, row: usize) -> Result<Vec<i64>, String> {
        let mut out = vec![];
        self.row(row, &mut out)?;
        let Some(at) = out.iter().position(|value| !matches!(value, 0 | 1)) else { return Ok(out) };
        let value = array_value_to_string(&self.values, self.span(row).0 + at).unwrap_or_default();
        Err(format!("{value}, which is neither 0 nor 1,"))
    }

    /// Where the items of a row are.
    fn span(&self, row: usize) -> (usize, usize) {
        let wide = |value: i64| usize::try_from(value).unwrap_or(usize::MAX);
        match self.array.data_type() {
            DataType::List(_) => {
                let offsets = self.array.as_list::<i32>().value_offsets();
                (offsets[row] as usize, offsets[row + 1].saturating_sub(offsets[row]) as usize)
            }
            DataType::LargeList(_) => {
                let offsets = self.array.as_list::<i64>().value_offsets();
                (wide(offsets[row]), wide(offsets[row + 1].saturating_sub(offsets[row])))
            }
            DataType::ListView(_) => {
                let list = self.array.as_list_view::<i32>();
                (list.value_offsets()[row] as usize, list.value_sizes()[row] as usize)
            }
            DataType::LargeListView(_) => {
                let list = self.array.as_list_view::<i64>();
                (wide(list.value_offsets()[row]), wide(list.value_sizes()[row]))
            }
            _ => {
                let list = self.array.as_fixed_size_list();
                (list.value_offset_at(row), list.value_length() as usize)
            }
        }
    }

    fn row(&self, row: usize, out: &mut Vec<i64>) -> Result<(), String> {
        out.clear();
        if self.array.is_null(row) {
            return Err("a null".into());
        }
        let (start, length) = self.span(row);
        if length > MAX_ROW_TOKENS {
            return Err(format!("{length} items, and at most {MAX_ROW_TOKENS} are read,"));
        }
        if self.values.null_count() > 0 && (start..start + length).any(|i| self.values.is_null(i)) {
            return Err("a null".into());
        }
        match self.items.get(start..start.saturating_add(length)) {
            Some(items) => out.extend_from_slice(items),
            None => return Err("items that are not there".into()),
        }
        Ok(())
    }
}

/// A column with dictionaries decoded.
fn plain(column: &ArrayRef) -> Result<ArrayRef, String> {
    match column.as_any_dictionary_opt() {
        Some(dictionary) => {
            take(dictionary.values(), dictionary.keys(), None).map_err(|e| format!("cannot be decoded: {e}"))
        }
        None => Ok(column.clone()),
    }
}

/// In place of an item of a mask that is neither 0 nor 1.
const NEITHER: i64 = -1;

/// [`whole_numbers`], with `None` for floats that are not whole.
fn numbers(values: &ArrayRef) -> Result<Vec<Option<i64>>, String> {
    fn floats<T: ArrowPrimitiveType>(values: &ArrayRef) -> Vec<Option<i64>>
    where
        T::Native: Into<f64>,
    {
        let whole = |value: &T::Native| Some((*value).into()).filter(|value| value.fract() == 0.0);
        values.as_primitive::<T>().values().iter().map(|value| whole(value).map(|value| value as i64)).collect()
    }
    Ok(match values.data_type() {
        DataType::Float16 => floats::<Float16Type>(values),
        DataType::Float32 => floats::<Float32Type>(values),
        DataType::Float64 => floats::<Float64Type>(values),
        _ => whole_numbers(values)?.into_iter().map(Some).collect(),
    })
}

/// All values as `i64`; those that are too large for it are `i64::MAX`, and nulls are anything.
fn whole_numbers(values: &ArrayRef) -> Result<Vec<i64>, String> {
    fn integers<T: ArrowPrimitiveType>(values: &ArrayRef) -> Vec<i64>
    where
        T::Native: TryInto<i64>,
    {
        values.as_primitive::<T>().values().iter().map(|v| (*v).try_into().unwrap_or(i64::MAX)).collect()
    }
    fn floats<T: ArrowPrimitiveType>(values: &ArrayRef) -> Result<Vec<i64>, String>
    where
        T::Native: Into<f64>,
    {
        let whole = |(i, value): (usize, &T::Native)| match (*value).into() {
            _ if values.is_null(i) => Ok(0),
            value if value.fract() == 0.0 => Ok(value as i64),
            value => Err(format!("holds {value}, which is no integer")),
        };
        values.as_primitive::<T>().values().iter().enumerate().map(whole).collect()
    }
    Ok(match values.data_type() {
        DataType::Int8 => integers::<Int8Type>(values),
        DataType::Int16 => integers::<Int16Type>(values),
        DataType::Int32 => integers::<Int32Type>(values),
        DataType::Int64 => integers::<Int64Type>(values),
        DataType::UInt8 => integers::<UInt8Type>(values),
        DataType::UInt16 => integers::<UInt16Type>(values),
        DataType::UInt32 => integers::<UInt32Type>(values),
        DataType::UInt64 => integers::<UInt64Type>(values),
        DataType::Float16 => floats::<Float16Type>(values)?,
        DataType::Float32 => floats::<Float32Type>(values)?,
        DataType::Float64 => floats::<Float64Type>(values)?,
        DataType::Null => vec![0; values.len()],
        other => return Err(format!("is {other}, not a list of integers")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::array::{
        DictionaryArray, FixedSizeListArray, Float64Array, Int8Array, Int32Array, Int64Array, LargeListArray,
        ListArray, ListViewArray, UInt8Array, UInt64Array,
    };
    use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
    use arrow::datatypes::{Field, FieldRef};
    use std::sync::Arc;

    fn rows(column: ArrayRef) -> Result<Vec<Vec<i64>>, String> {
        let lists = Lists::of(&column)?;
        let mut out = vec![];
        (0..column.len()).map(|row| lists.row(row, &mut out).map(|()| out.clone())).collect()
    }

    fn of(values: ArrayRef) -> (FieldRef, ArrayRef) {
        (Arc::new(Field::new_list_field(values.data_type().clone(), true)), values)
    }

    #[test]
    fn every_kind_of_list_of_every_kind_of_number_is_the_same() {
        let (field, values) = of(Arc::new(Int64Array::from(vec![9, 1, 2, 3, 4])));
        let offsets = OffsetBuffer::from_lengths([1, 2, 2]);
        let list: ArrayRef = Arc::new(ListArray::new(field.clone(), offsets.clone(), values.clone(), None));
        let large = OffsetBuffer::<i64>::from_lengths([1, 2, 2]);
        let large: ArrayRef = Arc::new(LargeListArray::new(field.clone(), large, values.clone(), None));
        let view = ListViewArray::new(
            field.clone(),
            ScalarBuffer::from(vec![0, 1, 3]),
            ScalarBuffer::from(vec![1, 2, 2]),
            values.clone(),
            None,
        );
        let expected = vec![vec![1, 2], vec![3, 4]];
        for array in [list, large, Arc::new(view)] {
            assert_eq!(rows(array.slice(1, 2)).unwrap(), expected, "{}", array.data_type());
        }
        let fixed: ArrayRef = Arc::new(FixedSizeListArray::new(field, 2, values.slice(1, 4), None));
        assert_eq!(rows(fixed.clone()).unwrap(), expected);
        assert_eq!(rows(fixed.slice(1, 1)).unwrap(), expected[1..]);
        let numbers: [ArrayRef; 4] = [
            Arc::new(Int8Array::from(vec![9, 1, 2, 3, 4])),
            Arc::new(UInt8Array::from(vec![9, 1, 2, 3, 4])),
            Arc::new(UInt64Array::from(vec![9, 1, 2, 3, 4])),
            Arc::new(Float64Array::from(vec![9.0, 1.0, 2.0, 3.0, 4.0])),
        ];
        let keys = Int32Array::from(vec![0, 1, 2, 3, 4]);
        let dictionary: ArrayRef = Arc::new(DictionaryArray::new(keys, numbers[0].clone()));
        for numbers in numbers.into_iter().chain([dictionary]) {
            let (field, values) = of(numbers);
            let list: ArrayRef = Arc::new(ListArray::new(field, offsets.clone(), values, None));
            assert_eq!(rows(list.slice(1, 2)).unwrap(), expected, "{}", list.data_type());
        }
    }

    #[test]
    fn what_is_no_number_is_said() {
        let one = |values: ArrayRef, nulls: Option<NullBuffer>| {
            let (field, values) = of(values);
            rows(Arc::new(ListArray::new(field, OffsetBuffer::from_lengths([1, 1]), values, nulls)))
        };
        let fraction = one(Arc::new(Float64Array::from(vec![1.0, 0.5])), None).unwrap_err();
        assert_eq!(fraction, "holds 0.5, which is no integer");
        assert_eq!(one(Arc::new(Int64Array::from(vec![None, Some(1)])), None).unwrap_err(), "a null");
        // the items of a null row do not count
        let hidden = Arc::new(Int64Array::from(vec![Some(1), None]));
        let nulls = Some(NullBuffer::from(vec![true, false]));
        assert_eq!(one(hidden, nulls).unwrap_err(), "a null");
        let huge = one(Arc::new(UInt64Array::from(vec![u64::MAX, 1])), None).unwrap();
        assert_eq!(huge, [[i64::MAX], [1]]);
    }
}
