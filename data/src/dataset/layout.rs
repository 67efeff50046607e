//! Where datasets are kept: one folder for each task, size and seed, so that none overwrites another.
//!
//! ```text
//! datasets/counting_samesymbol_mod10bos-n1000000-s0/{train,val,ood_test}.parquet
//! datasets/modular-modulus.7-n20000-s3/…              what `modular,modulus=7` generates from seed 3
//! datasets/chomsky-parity_check-n1000000-s0/…         a preset whose name has a `/`
//! datasets/counting_samesymbol_mod10bos/long.parquet  imported splits of a task
//! ```
//!
//! Names consist of letters, digits, `_`, `-` and `.`: tools that read many Parquet files at once interpret a folder
//! called `a=b` as a column. Datasets are found by the folder's name and identified by their files' metadata. Generator
//! 1 put all datasets of a task into the folder of its imported splits, where they are still found.

use crate::task::split_settings;
use crate::{DataError, DatasetInfo, Split, Task};
use std::path::{Path, PathBuf};

/// The longest name of a task's folder, before its size and seed; file systems allow 255 bytes, some of them 143.
const LONGEST_TASK: usize = 80;

/// The longest name that [`capped`] gives.
const LONGEST: usize = 120;

/// The size and seed of a generated dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The requested number of main training examples.
    pub train: usize,
    /// The seed.
    pub seed: u64,
}

/// The folder that datasets are kept under.
#[derive(Debug, Clone, Copy)]
pub struct DatasetFolders<'a>(&'a Path);

impl<'a> DatasetFolders<'a> {
    /// `datasets/`, wherever it is.
    pub fn new(root: &'a Path) -> Self {
        Self(root)
    }

    /// The folder of a generated dataset.
    pub fn generated(&self, task: &Task, origin: Origin) -> PathBuf {
        self.0.join(format!("{}-n{}-s{}", short_name(&task.name), origin.train, origin.seed))
    }

    /// The folder of a task's imported splits.
    pub fn imported(&self, task: &Task) -> PathBuf {
        self.0.join(short_name(&task.name))
    }

    /// The folders that may hold imported splits of a task, and datasets of generator 1: the current one and the old
    /// one.
    pub fn shared(&self, task: &Task) -> Vec<PathBuf> {
        let mut folders = vec![self.imported(task), self.0.join(&task.name)];
        folders.dedup();
        folders
    }

    /// The folders of a task's generated datasets.
    ///
    /// # Errors
    /// The folder of all datasets cannot be read.
    fn all_generated(&self, task: &Task) -> Result<Vec<PathBuf>, DataError> {
        let entries = match std::fs::read_dir(self.0) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(DataError::io("read", self.0)(e)),
        };
        let task = short_name(&task.name);
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let of_task = |name: &str| {
            let rest = name.strip_prefix(&task)?.strip_prefix("-n")?;
            let (train, seed) = rest.split_once("-s")?;
            (is_number(train) && is_number(seed)).then_some(())
        };
        let entries = entries.filter_map(Result::ok);
        let mut found: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_str().and_then(of_task).is_some())
            .map(|entry| entry.path())
            .collect();
        found.sort();
        Ok(found)
    }

    /// The file of a split: the imported one of that name, or one that was generated from `origin`. Sizes make no
    /// difference to splits other than `train`. Without an origin, it is the published size and seed 0, or what there
    /// is if that is one. `None` where there is no such file.
    ///
    /// # Errors
    /// A file cannot be read or is damaged, or there are several without a reason to take one of them.
    pub fn find(&self, task: &Task, split: &str, origin: Option<Origin>) -> Result<Option<PathBuf>, DataError> {
        let file = format!("{split}.parquet");
        let wanted = origin.unwrap_or(Origin { train: task.train_examples, seed: 0 });
        let exact = self.generated(task, wanted);
        let mut found = Vec::new();
        let mut failed = None;
        for folder in self.shared(task) {
            let path = folder.join(&file);
            if path.is_file() {
                let (info, rows) = DatasetInfo::read(&path)?;
                if info.is_imported() && info.task == task.name {
                    return Ok(Some(path));
                }
                found.push((path, info, rows));
            }
        }
        for folder in self.all_generated(task)? {
            let path = folder.join(&file);
            if path.is_file() {
                match DatasetInfo::read(&path) {
                    Ok((info, rows)) => found.push((path, info, rows)),
                    Err(error) if folder == exact => return Err(error),
                    Err(error) => failed = failed.or(Some(error)), // another one may be the one that is meant
                }
            }
        }
        found.retain(|(_, info, _)| info.is_of(task, info.seed));
        let is_train = split == Split::Train.name();
        let rows_of = |origin: Origin| task.rows(Split::Train, origin.train).ok();
        let fits = |(_, info, rows): &&(PathBuf, DatasetInfo, usize)| {
            info.seed == wanted.seed && (!is_train || Some(*rows) == rows_of(wanted))
        };
        if let Some((path, ..)) = found.iter().find(fits) {
            return Ok(Some(path.clone()));
        }
        if origin.is_some() {
            return Ok(None);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let kind = |(_, info, rows): &(PathBuf, DatasetInfo, usize)| (info.seed, if is_train { *rows } else { 0 });
        match found.iter().find(|other| kind(other) != kind(&found[0])) {
            None => Ok(found.into_iter().next().map(|(path, ..)| path)),
            Some(_) => Err(DataError::Ambiguous {
                task: task.name.clone(),
                split: split.to_owned(),
                files: found.into_iter().map(|(path, ..)| path).take(8).collect(),
            }),
        }
    }
}

/// A task's name as that of a folder: `modular,modulus=7` is `modular-modulus.7`, `chomsky/parity_check` is
/// `chomsky-parity_check`. Lists and quoted values are left out. Where characters are lost or the name would be long, it
/// ends in a hash of the whole, so that names are unique.
pub fn short_name(task: &str) -> String {
    let (base, settings) = task.split_once(',').unwrap_or((task, ""));
    // Folders that differ in the case of letters are the same on some systems; only presets have upper case.
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let kept = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | ',' | '=');
    let pairs = settings.split(',').filter(|setting| !setting.is_empty());
    let plain = base.split('/').all(|part| !part.is_empty() && part.chars().all(known))
        && settings.chars().all(kept)
        && pairs.clone().all(|setting| setting.matches('=').count() == 1);
    let show = |c: char| match c {
        ',' | '/' => '-',
        '=' => '.',
        c if known(c) => c,
        _ => '_',
    };
    let is_list = |setting: &&str| setting.contains(['[', '{', '"']);
    let name: String = match split_settings(settings) {
        Ok(parts) if parts.iter().any(is_list) => {
            let rest = parts.into_iter().filter(|part| !is_list(part) && !part.is_empty());
            std::iter::once(base).chain(rest).collect::<Vec<_>>().join(",").chars().map(show).collect()
        }
        _ => task.chars().map(show).collect(),
    };
    if plain && name.len() <= LONGEST_TASK { name } else { with_hash(&name, task, LONGEST_TASK) }
}

/// A name of ASCII letters that fits into a file name with room for more: longer ones are cut and end in a hash.
pub fn capped(name: &str) -> String {
    if name.len() <= LONGEST { name.to_owned() } else { with_hash(name, name, LONGEST) }
}

/// At most `longest` characters, the last of them a hash of `of`.
fn with_hash(name: &str, of: &str, longest: usize) -> String {
    let hash = of.bytes().fold(0xcbf29ce484222325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3)); // FNV-1a
    let start: String = name.chars().take(longest - 9).collect();
    format!("{start}-{:08x}", (hash ^ (hash >> 32)) as u32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::generate_split;
    use std::collections::HashSet;

    #[test]
    fn names_are_plain_short_and_of_one_task_each() {
        assert_eq!(short_name("counting_raspL"), "counting_raspL");
        assert_eq!(short_name("modular,modulus=7,train_max=35"), "modular-modulus.7-train_max.35");
        assert_eq!(short_name("chomsky/parity_check"), "chomsky-parity_check");
        assert_eq!(short_name("chomsky/parity_check,ignore=1"), "chomsky-parity_check-ignore.1");
        let lists = short_name(r#"automaton,alphabet=["a","b"],emit=slot,step=[[0,1],[1,0]]"#);
        assert!(lists.starts_with("automaton-emit.slot-") && lists.len() == 28, "{lists}");
        let long = format!("modular,{}", (0..40).map(|i| format!("key_{i}=12345")).collect::<Vec<_>>().join(","));
        let names = [
            "modular,modulus=-7",
            "modular,modulus=_7",
            "modular,modulus=7.5",
            "modular,modulus=7,5",
            "modular,modulus=A",
            "modular,modulus=a",
            "modular,modulus=\"a b/c\"",
            &long,
            &format!("{long}6"),
            "ä,b=ü",
            "chomsky/parity_check",
            "chomsky_parity_check",
            "chomsky/parity_check,train_lengths=1..20",
            "chomsky//parity_check",
            r#"automaton,alphabet=["a","b"],step=[[0,1],[1,0]]"#,
            r#"automaton,alphabet=["a","c"],step=[[0,1],[1,0]]"#,
            r#"automaton,alphabet=["a,b=3","b"],step=[[0,1],[1,0]]"#,
        ];
        let short: HashSet<String> = names.iter().map(|name| short_name(name).to_lowercase()).collect();
        assert_eq!(short.len(), names.len(), "{short:?}");
        for name in &short {
            assert!(name.len() <= 80, "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)), "{name}");
        }
        assert_eq!(capped("short"), "short");
        assert!(capped(&"x".repeat(300)).len() <= 120 && capped(&"x".repeat(300)) != capped(&"x".repeat(301)));
    }

    #[test]
    fn splits_are_found_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let folders = DatasetFolders::new(dir.path());
        let task = Task::by_name("counting_selective_10items2bos").unwrap();
        let val = Split::Val;
        assert_eq!(folders.find(&task, "val", None).unwrap(), None);
        let write = |origin: Origin| {
            let path = folders.generated(&task, origin).join("val.parquet");
            generate_split(&task, val, origin.seed, 20, &path, |_| ()).unwrap();
            path
        };
        let (small, large, zero) =
            (Origin { train: 100, seed: 3 }, Origin { train: 200, seed: 3 }, Origin { train: 100, seed: 0 });
        // of one seed, any size will do
        let path = write(small);
        assert_eq!(folders.find(&task, "val", None).unwrap(), Some(path.clone()));
        assert_eq!(folders.find(&task, "val", Some(large)).unwrap(), Some(path.clone()));
        assert_eq!(folders.find(&task, "val", Some(zero)).unwrap(), None);
        // of several seeds, none but the default
        write(Origin { train: 100, seed: 4 });
        let error = folders.find(&task, "val", None).unwrap_err().to_string();
        assert!(error.contains("s3/val.parquet") && error.contains("s4/val.parquet"), "{error}");
        let default = write(zero);
        assert_eq!(folders.find(&task, "val", None).unwrap(), Some(default));
        assert_eq!(folders.find(&task, "val", Some(small)).unwrap(), Some(path));
        // a damaged file of another seed does not matter; one of this seed is an error, and is left alone
        let broken = folders.generated(&task, Origin { train: 100, seed: 8 }).join("val.parquet");
        crate::files::write_bytes(&broken, b"PAR1 and no more").unwrap();
        assert!(folders.find(&task, "val", Some(small)).unwrap().is_some());
        let error = folders.find(&task, "val", Some(Origin { train: 100, seed: 8 })).unwrap_err();
        assert!(matches!(error, DataError::Damaged { .. }), "{error}");
        std::fs::remove_file(&broken).unwrap();
        // a dataset of another task in this folder is not taken
        let wrong = folders.generated(&task, Origin { train: 100, seed: 9 }).join("val.parquet");
        generate_split(&Task::by_name("debug").unwrap(), val, 9, 20, &wrong, |_| ()).unwrap();
        assert_eq!(folders.find(&task, "val", Some(Origin { train: 100, seed: 9 })).unwrap(), None);
    }
}
