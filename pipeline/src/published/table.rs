//! `table.toml`: the settings of a published table, and its cells.

use super::selection::Selection;
use super::shipped::{SHIPPED, Shipped};
use super::values::{self, Published};
use super::verdict::Rule;
use crate::config::{Config, StopAt, parse_toml};
use crate::grid::file::{EvalSettings, Job, flatten};
use crate::report::figures::file_name;
use anyhow::{Context, Result, bail};
use data::suggest::nearest;
use evaluators::Lengths;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::{Table as Settings, Value};

/// The columns of result tables that a published table can be about; the last is accuracy scaled so that chance is 0.
pub const METRICS: [&str; 4] = ["sequence_accuracy", "last_accuracy", "accuracy", "scaled_accuracy"];

/// A table as it is written down. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableFile {
    title: String,
    source: String,
    metric: String,
    /// Whether the order of the columns in each row is compared as well.
    #[serde(default)]
    order: bool,
    /// What is known to differ from the paper.
    #[serde(default)]
    differs: Vec<String>,
    eval: EvalSettings,
    slice: Vec<SliceFile>,
    selection: Selection,
    /// The rates that are swept; the config's own if there are none.
    #[serde(default)]
    learning_rates: Vec<f64>,
    #[serde(default)]
    set: Settings,
    row: BTreeMap<String, Part>,
    column: BTreeMap<String, Part>,
    /// By `row/column`.
    #[serde(default)]
    cell: BTreeMap<String, Part>,
    quick: Option<Quick>,
    /// The settings of the quick version, which come after those of cells; and those of its columns, after them.
    #[serde(skip)]
    last: (Settings, BTreeMap<String, Settings>),
}

/// `[[slice]]`: lengths of the sweep, or a split.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SliceFile {
    name: String,
    lengths: Option<String>,
    split: Option<String>,
}

/// What a row, a column or a cell adds to the settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Part {
    task: Option<String>,
    set: Settings,
    learning_rates: Option<Vec<f64>>,
}

/// `[quick]`: a smaller version, for an afternoon.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quick {
    /// How it differs from the whole table.
    differs: Vec<String>,
    rows: Option<Vec<String>>,
    columns: Option<Vec<String>>,
    runs: Option<usize>,
    tries: Option<usize>,
    learning_rates: Option<Vec<f64>>,
    eval: Option<EvalSettings>,
    #[serde(default)]
    set: Settings,
    /// By column.
    #[serde(default)]
    column: BTreeMap<String, QuickPart>,
}

/// What a column adds to the settings of the quick version.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QuickPart {
    set: Settings,
    learning_rates: Option<Vec<f64>>,
}

/// Where the value of a slice comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// The mean over these lengths of the sweep, each with the same weight.
    Lengths(Lengths),
    /// The total of a split.
    Split(String),
}

/// A named range of lengths, or a split.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Its name in `values.csv`.
    pub name: String,
    /// Its lengths or split.
    pub place: Place,
}

/// A published table.
#[derive(Debug)]
pub struct Table {
    /// The name of its folder.
    pub name: String,
    /// One line.
    pub title: String,
    /// The paper.
    pub source: String,
    /// One of [`METRICS`].
    pub metric: String,
    /// Whether the order of columns is compared.
    pub order: bool,
    /// What differs from the paper, those of the quick version with it.
    pub differs: Vec<String>,
    /// How runs are evaluated.
    pub eval: EvalSettings,
    /// In the file's order.
    pub slices: Vec<Slice>,
    /// Which runs count.
    pub selection: Selection,
    /// In the order of `values.csv`.
    pub cells: Vec<Cell>,
    /// Whether this is the quick version.
    pub quick: bool,
}

/// A row and a column, and what was published for them.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its row.
    pub row: String,
    /// Its column.
    pub column: String,
    /// At least one rate; `None` is that of the settings.
    pub learning_rates: Vec<Option<f64>>,
    /// In the order of `values.csv`.
    pub values: Vec<Published>,
    task: Option<String>,
    set: Vec<(String, Value)>,
}

/// What the command line changes.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The quick version.
    pub quick: bool,
    /// Runs that count.
    pub runs: Option<usize>,
    /// Rows, or cells as `row/column`.
    pub only: Vec<String>,
    /// Keys of every run's config.
    pub set: Vec<(String, Value)>,
}

impl Table {
    /// A table that comes with the program, by name, or one of the user's, by the path of its folder.
    ///
    /// # Errors
    /// There is no such table, or it makes no sense.
    pub fn find(name: &str, changes: &Changes) -> Result<Self> {
        if let Some(Shipped { name, table, values }) = SHIPPED.iter().find(|shipped| shipped.name == name) {
            return Self::parse(name, table, values, changes).with_context(|| format!("in the table {name}"));
        }
        let folder = Path::new(name);
        if !folder.is_dir() {
            let names = SHIPPED.map(|shipped| shipped.name);
            let hint = match nearest(name, names) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("one of {}, or a folder with table.toml and values.csv", names.join(", ")),
            };
            bail!("there is no published table `{name}`\n  hint: {hint}");
        }
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let full = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&name, &read("table.toml")?, &read("values.csv")?, changes)
            .with_context(|| format!("in the table {}", folder.display()))
    }

    /// A table from the text of its two files.
    ///
    /// # Errors
    /// One of them makes no sense, or they do not fit together.
    pub fn parse(name: &str, table: &str, values: &str, changes: &Changes) -> Result<Self> {
        parse_toml(table).context("in table.toml")?; // numbers that are too large are named
        let mut file: TableFile =
            toml::from_str(table).map_err(|e| anyhow::anyhow!("in table.toml: {}", e.to_string().trim_end()))?;
        let values = values::parse(values).context("in values.csv")?;
        file.check_quick().context("in table.toml")?;
        if changes.quick {
            let Some(quick) = file.quick.take() else {
                bail!("it has no quick version\n  hint: leave out --quick; --only and --seeds make it smaller");
            };
            file.become_quick(quick).context("in table.toml")?;
        }
        if let Some(runs) = changes.runs {
            file.selection.runs = runs;
        }
        let cells = file.cells(values, changes).context("in table.toml and values.csv")?;
        let slices = file.slices().context("in table.toml")?;
        let TableFile { title, source, metric, order, differs, eval, selection, .. } = file;
        let table = Self {
            name: name.to_owned(),
            title,
            source,
            metric,
            order,
            differs,
            eval,
            slices,
            selection,
            cells,
            quick: changes.quick,
        };
        table.check()?;
        table.narrowed_to(&changes.only)
    }

    /// What the file itself cannot be asked: whether slices, metric and selection name something that there is.
    fn check(&self) -> Result<()> {
        if !METRICS.contains(&self.metric.as_str()) {
            bail!("metric `{}` is none of {}", self.metric, METRICS.join(", "));
        }
        let known = |slice: &str| self.slices.iter().any(|s| s.name == slice);
        for value in self.cells.iter().flat_map(|cell| &cell.values) {
            if !known(&value.slice) {
                bail!("values.csv has the slice `{}`, but table.toml has no [[slice]] of that name", value.slice);
            }
        }
        if let Some(choose) = self.selection.choose.as_ref().filter(|choose| !known(choose)) {
            bail!("selection.choose is `{choose}`, which is no [[slice]]");
        }
        let several = self.cells.iter().any(|cell| cell.learning_rates.len() > 1);
        if several && self.selection.rule == Rule::Mean && self.selection.choose.is_none() {
            bail!("there are several learning rates, but selection.choose does not say which slice chooses among them");
        }
        if let Some(fit) = &self.selection.fit
            && !known(&fit.on)
            && !(fit.on == "val" && StopAt::METRICS.contains(&self.metric.as_str()))
        {
            bail!("selection.fit.on is `{}`, which is neither a [[slice]] nor val", fit.on);
        }
        if self.selection.runs == 0 {
            bail!("selection.runs must be at least 1");
        }
        Ok(())
    }

    /// The cells of these rows, or these cells.
    fn narrowed_to(mut self, only: &[String]) -> Result<Self> {
        let is_of = |cell: &Cell, name: &str| cell.row == name || format!("{}/{}", cell.row, cell.column) == name;
        for name in only {
            if !self.cells.iter().any(|cell| is_of(cell, name)) {
                let mut rows: Vec<&str> = self.cells.iter().map(|cell| cell.row.as_str()).collect();
                rows.dedup();
                let hint = match nearest(name, rows.iter().copied()) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => format!("rows are {}; a cell is ROW/COLUMN", rows.join(", ")),
                };
                bail!("--only {name}: the table {} has no such row\n  hint: {hint}", self.name);
            }
        }
        self.cells.retain(|cell| only.is_empty() || only.iter().any(|name| is_of(cell, name)));
        Ok(self)
    }

    /// The run of a cell with this learning rate and seed.
    ///
    /// # Errors
    /// The settings of the cell make no config.
    pub fn job(&self, cell: &Cell, learning_rate: Option<f64>, seed: u64) -> Result<Job> {
        let mut set = cell.set.clone();
        if let Some(task) = &cell.task {
            set.insert(0, ("task.name".into(), task.clone().into()));
        }
        let mut name = vec![cell.row.clone(), cell.column.clone()];
        if let Some(rate) = learning_rate {
            set.push(("optimizer.lr".into(), rate.into()));
            name.extend((cell.learning_rates.len() > 1).then(|| format!("lr{rate}")));
        }
        set.push(("train.seed".into(), i64::try_from(seed).context("seeds go up to 2⁶³ − 1")?.into()));
        name.push(format!("s{seed}"));
        let doing = || format!("in the cell {}/{}", cell.row, cell.column);
        let config = Config::parse("", &set).with_context(doing)?;
        config.task.task().with_context(doing)?;
        Ok(Job { name: file_name(&name.join(".")), config })
    }
}

impl TableFile {
    /// Whether all that the quick version names is there, also where it is not asked for.
    fn check_quick(&self) -> Result<()> {
        let Some(quick) = &self.quick else { return Ok(()) };
        for (kind, parts, names) in [("row", &self.row, &quick.rows), ("column", &self.column, &quick.columns)] {
            if let Some(unknown) = names.iter().flatten().find(|name| !parts.contains_key(*name)) {
                bail!("quick.{kind}s has `{unknown}`, but there is no [{kind}.{unknown}]");
            }
        }
        for name in quick.column.keys() {
            let listed = quick.columns.as_ref().is_none_or(|columns| columns.contains(name));
            if !listed || !self.column.contains_key(name) {
                bail!("there are settings of quick.column.{name}, but the quick version has no such column");
            }
        }
        Ok(())
    }

    fn become_quick(&mut self, quick: Quick) -> Result<()> {
        self.differs.extend(quick.differs);
        self.selection.runs = quick.runs.unwrap_or(self.selection.runs);
        self.selection.tries = quick.tries.or(self.selection.tries);
        if let Some(rates) = quick.learning_rates {
            self.learning_rates = rates;
            for part in self.row.values_mut().chain(self.column.values_mut()).chain(self.cell.values_mut()) {
                part.learning_rates = None;
            }
        }
        self.eval = quick.eval.unwrap_or_else(|| self.eval.clone());
        for (parts, names) in [(&mut self.row, quick.rows), (&mut self.column, quick.columns)] {
            let Some(names) = names else { continue };
            parts.retain(|name, _| names.contains(name));
        }
        self.last.0 = quick.set;
        for (name, part) in quick.column {
            if let (Some(rates), Some(column)) = (part.learning_rates, self.column.get_mut(&name)) {
                let of_column = |cell: &str| cell.rsplit_once('/').is_some_and(|(_, column)| column == name);
                let cells = self.cell.iter_mut().filter(|(cell, _)| of_column(cell));
                cells.for_each(|(_, part)| part.learning_rates = None);
                column.learning_rates = Some(rates);
            }
            self.last.1.insert(name, part.set);
        }
        Ok(())
    }

    fn slices(&self) -> Result<Vec<Slice>> {
        let swept = self.eval.parsed_lengths()?;
        let slice = |slice: &SliceFile| {
            let name = slice.name.clone();
            let place = match (&slice.lengths, &slice.split) {
                (Some(lengths), None) => {
                    let lengths: Lengths = lengths.parse().with_context(|| format!("in the slice {name}"))?;
                    let inside = lengths.as_slice().iter().copied().filter(|l| swept.as_slice().contains(l));
                    let inside = Lengths::from_values(inside);
                    if inside.as_slice().is_empty() {
                        bail!("the slice {name} has no length of eval.lengths = {}", self.eval.lengths);
                    }
                    Place::Lengths(inside)
                }
                (None, Some(split)) if self.eval.splits.contains(split) => Place::Split(split.clone()),
                (None, Some(split)) => bail!("the slice {name} is the split {split}, which is not in eval.splits"),
                _ => bail!("the slice {name} must have either `lengths` or `split`"),
            };
            Ok(Slice { name, place })
        };
        self.slice.iter().map(slice).collect()
    }

    /// The cells that there are values of, in the order of these.
    fn cells(&self, values: Vec<Published>, changes: &Changes) -> Result<Vec<Cell>> {
        let (common, last) = (flatten(&self.set)?, flatten(&self.last.0)?);
        let mut cells: Vec<Cell> = Vec::new();
        for value in values {
            if let Some(cell) = cells.iter_mut().find(|cell| (&cell.row, &cell.column) == (&value.row, &value.column)) {
                cell.values.push(value);
                continue;
            }
            let parts = (self.row.get(&value.row), self.column.get(&value.column));
            let (Some(row), Some(column)) = parts else {
                if changes.quick {
                    continue; // left out of the quick version
                }
                let (kind, name) = if parts.0.is_none() { ("row", &value.row) } else { ("column", &value.column) };
                bail!("values.csv has the {kind} `{name}`, but table.toml has no [{kind}.{name}]");
            };
            let nothing = Part::default();
            let own = self.cell.get(&format!("{}/{}", value.row, value.column)).unwrap_or(&nothing);
            let set = [common.clone(), flatten(&row.set)?, flatten(&column.set)?, flatten(&own.set)?];
            let last_of_column = self.last.1.get(&value.column).map(flatten).transpose()?.unwrap_or_default();
            // What is later in the order of settings, and names one rate, would expect to count.
            let lists =
                [None, row.learning_rates.as_ref(), column.learning_rates.as_ref(), own.learning_rates.as_ref()];
            let (level, rates) = (0..lists.len())
                .rev()
                .find_map(|level| Some((level, lists[level]?)))
                .unwrap_or((0, &self.learning_rates));
            let later = set[level..].iter().chain([&last, &last_of_column, &changes.set]).flatten();
            if let Some((_, rate)) = later.rev().find(|(key, _)| key == "optimizer.lr" && !rates.is_empty()) {
                bail!(
                    "optimizer.lr = {rate} has no effect on {}/{}, which has learning_rates\n  \
                     hint: leave out one of both; `learning_rates = []` beside set.optimizer.lr takes that",
                    value.row,
                    value.column
                );
            }
            if let Some(twice) = rates.iter().enumerate().find(|(i, rate)| rates[..*i].contains(rate)) {
                bail!("the learning rate {} of {}/{} is listed twice", twice.1, value.row, value.column);
            }
            cells.push(Cell {
                row: value.row.clone(),
                column: value.column.clone(),
                learning_rates: if rates.is_empty() { vec![None] } else { rates.iter().copied().map(Some).collect() },
                task: [own, column, row].into_iter().find_map(|part| part.task.clone()),
                set: [set.concat(), last.clone(), last_of_column, changes.set.clone()].concat(),
                values: vec![value],
            });
        }
        if cells.is_empty() {
            bail!("there is no cell: values.csv has no line of a row and a column of table.toml");
        }
        let used = |of: fn(&Cell) -> &String| cells.iter().map(of).collect::<BTreeSet<_>>();
        let (rows, columns) = (used(|cell| &cell.row), used(|cell| &cell.column));
        for (kind, names, used) in [("row", self.row.keys(), rows), ("column", self.column.keys(), columns)] {
            for name in names {
                if !used.contains(name) {
                    bail!("table.toml has [{kind}.{name}], but values.csv has no value of it");
                }
            }
        }
        Ok(cells)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every cell of every table and of its quick version is a run that can be made, has a source, and is judged where it is
    /// evaluated.
    #[test]
    fn every_table_that_comes_with_the_program_is_sound() {
        for shipped in SHIPPED {
            for quick in [false, true] {
                let table = Table::find(shipped.name, &Changes { quick, ..Default::default() }).unwrap();
                assert!(!table.cells.is_empty() && !table.title.is_empty() && !table.source.is_empty());
                assert!(!table.differs.is_empty(), "{}: what differs is said", table.name);
                let mut names = BTreeSet::new();
                for cell in &table.cells {
                    for rate in &cell.learning_rates {
                        let seed = table.selection.first_seed;
                        let job = table.job(cell, *rate, seed).unwrap();
                        assert_eq!(job.config.train.seed, seed);
                        assert!(rate.is_none_or(|rate| rate == job.config.optimizer.lr));
                        assert!(names.insert(job.name.clone()), "{}: {} is there twice", table.name, job.name);
                    }
                    assert!(cell.values.iter().all(|value| value.source.len() > 10));
                }
            }
        }
    }

    const TABLE: &str = "title = 't'\nsource = 's'\nmetric = 'last_accuracy'\nlearning_rates = [1e-3, 1e-2]\n\
        [eval]\nlengths = '1..60'\nsplits = ['val']\n\
        [[slice]]\nname = 'short'\nlengths = '1..50'\n[[slice]]\nname = 'val'\nsplit = 'val'\n\
        [selection]\nrule = 'mean'\nruns = 3\nchoose = 'short'\n\
        [set.model]\nhidden_size = 8\n[set.train]\nmax_steps = 5\n\
        [row.mod10]\ntask = 'counting_samesymbol_mod10bos'\n\
        [column.RNN]\nset.model.arch = 'rnn'\n[column.LSTM]\nset.model.arch = 'lstm'\nlearning_rates = [2e-3]\n\
        [cell.'mod10/RNN']\nset.model.num_layers = 2\nlearning_rates = [1e-3, 1e-2]\n\
        [quick]\ndiffers = ['d']\nruns = 1\ncolumns = ['RNN']\nset.train.max_steps = 2\nset.model.hidden_size = 4\n\
        [quick.column.RNN]\nset.optimizer.grad_clip = 0.5\nlearning_rates = [5e-4]\n";
    const VALUES: &str = "row,column,slice,value,sd,runs,source\n\
        mod10,RNN,short,0.99,,,paper\nmod10,LSTM,val,0.9,,,paper\nmod10,RNN,val,0.5,,,paper\n";

    fn parse(table: &str, values: &str, changes: &Changes) -> Result<Table> {
        Table::parse("mine", table, values, changes)
    }

    #[test]
    fn settings_add_up_from_the_table_to_the_cell_to_the_command_line() {
        let table = parse(TABLE, VALUES, &Changes::default()).unwrap();
        let named: Vec<_> = table.cells.iter().map(|c| (c.column.as_str(), c.values.len())).collect();
        assert_eq!(named, [("RNN", 2), ("LSTM", 1)]);
        let job = table.job(&table.cells[0], table.cells[0].learning_rates[1], 7).unwrap();
        assert_eq!(
            (job.config.model.arch(), job.config.model.num_layers(), job.config.model.hidden_size()),
            ("rnn", 2, 8)
        );
        assert_eq!((job.config.optimizer.lr, job.config.train.seed, job.config.train.max_steps), (1e-2, 7, Some(5)));
        assert_eq!(job.name, "mod10-RNN-lr0-01-s7");
        assert_eq!(table.cells[1].learning_rates, [Some(2e-3)]);

        let set = vec![("train.max_steps".to_owned(), Value::from(3))];
        let quick = Changes { quick: true, runs: Some(2), set, ..Default::default() };
        let table = parse(TABLE, VALUES, &quick).unwrap();
        assert_eq!((table.cells.len(), table.selection.runs), (1, 2));
        let config = table.job(&table.cells[0], None, 0).unwrap().config;
        assert_eq!((config.train.max_steps, config.model.hidden_size(), config.model.num_layers()), (Some(3), 4, 2));
        assert_eq!(config.optimizer.grad_clip, 0.5);
        assert_eq!(table.cells[0].learning_rates, [Some(5e-4)], "after those of the cell");

        let only = |only: &str| parse(TABLE, VALUES, &Changes { only: vec![only.into()], ..Default::default() });
        assert_eq!(only("mod10").unwrap().cells.len(), 2);
        assert_eq!(only("mod10/LSTM").unwrap().cells.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        for (find, replace, expected) in [
            ("metric = 'last", "metric = 'first", "metric `first_accuracy` is none of"),
            ("choose = 'short'", "choose = 'long'", "selection.choose is `long`, which is no [[slice]]"),
            ("choose = 'short'", "", "several learning rates"),
            ("runs = 3", "runs = 0", "selection.runs must be at least 1"),
            ("runs = 3", "runs = 3\nfit = { on = 'vall', at_least = 1.0 }", "selection.fit.on is `vall`"),
            ("name = 'short'", "name = 'long'", "values.csv has the slice `short`"),
            ("lengths = '1..50'", "lengths = '70..80'", "has no length of eval.lengths"),
            ("splits = ['val']", "splits = []", "which is not in eval.splits"),
            ("[row.mod10]", "[row.mod11]", "values.csv has the row `mod10`"),
            ("[column.RNN]", "[column.GRU]\n[column.RNN]", "[column.GRU], but values.csv has no value of it"),
            ("title", "titel", "unknown field `titel`"),
        ] {
            let error =
                format!("{:#}", parse(&TABLE.replacen(find, replace, 1), VALUES, &Changes::default()).unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
        let error = |changes: &Changes| format!("{:#}", parse(TABLE, VALUES, changes).unwrap_err());
        let only = Changes { only: vec!["mod1".into()], ..Default::default() };
        assert!(error(&only).contains("did you mean `mod10`?"), "{}", error(&only));
        let unknown = Table::find("huang2023", &Changes::default()).unwrap_err().to_string();
        assert!(unknown.contains("did you mean `huang2024`?"), "{unknown}");
        let typo = TABLE.replace("columns = ['RNN']", "columns = ['RMN']");
        let typo = parse(&typo, VALUES, &Changes { quick: true, ..Default::default() }).unwrap_err();
        assert!(format!("{typo:#}").contains("quick.columns has `RMN`"), "{typo:#}");
        let other = TABLE.replace("[quick.column.RNN]", "[quick.column.LSTM]");
        for quick in [true, false] {
            let other = parse(&other, VALUES, &Changes { quick, ..Default::default() }).unwrap_err();
            assert!(format!("{other:#}").contains("quick.column.LSTM, but the quick version has no"), "{other:#}");
        }
        let twice = TABLE.replace("learning_rates = [2e-3]", "learning_rates = [2e-3, 2e-3]");
        let twice = format!("{:#}", parse(&twice, VALUES, &Changes::default()).unwrap_err());
        assert!(twice.contains("rate 0.002 of mod10/LSTM is listed twice"), "{twice}");
        let in_vain = "optimizer.lr = 0.1 has no effect on mod10/RNN, which has learning_rates";
        let layers = "set.model.num_layers = 2\n";
        let of_cell = TABLE.replace(layers, &format!("{layers}set.optimizer.lr = 0.1\n"));
        let of_table = TABLE.replace(&format!("{layers}learning_rates = [1e-3, 1e-2]"), layers);
        let of_table = of_table.replace("[set.model]", "[set.optimizer]\nlr = 0.1\n[set.model]");
        for table in [of_cell, of_table] {
            let error = format!("{:#}", parse(&table, VALUES, &Changes::default()).unwrap_err());
            assert!(error.contains(in_vain), "{error}");
        }
        let of_user = Changes { set: vec![("optimizer.lr".into(), 0.1.into())], ..Default::default() };
        assert!(error(&of_user).contains(in_vain), "{}", error(&of_user));
        let without = TABLE.split("[quick]").next().unwrap();
        let quick = parse(without, VALUES, &Changes { quick: true, ..Default::default() }).unwrap_err();
        assert!(quick.to_string().contains("no quick version"));
    }
}
