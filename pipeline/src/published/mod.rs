//! Published tables, reproduced: a table's folder says what was published, by whom, with which settings and by which rule
//! runs were selected; its jobs are those of a grid; its cells get a verdict.
//!
//! A folder holds `table.toml` ([`table`]) and `values.csv` ([`values`]). Those that come with the program are part of it
//! ([`shipped`]). [`selection`] says which runs are still to be made and which of them count, [`results`] reads them,
//! [`verdict`] compares, and [`outcome`] writes everything as one Parquet file.

pub mod outcome;
pub mod results;
pub mod selection;
pub mod shipped;
pub mod table;
pub mod values;
pub mod verdict;
