//! Weights from other programs: recognises the kind of a file, and finds a model's tensors in it.
//!
//! A checkpoint of PyTorch may hold a model's tensors under a key, after a prefix, beside an optimiser's state or a
//! second set of averaged weights, in several files, and a tied table once or twice. All tensors of a file have one
//! name here, the keys that lead to them joined by dots, so that one rule covers keys and prefixes: **the model is
//! where all of its names follow one prefix**. Where two prefixes do, the usual one is taken and the other mentioned;
//! where neither is usual, it is an error. Numbers are read only of the tensors that the model wants.

mod contents;
mod disguise;
mod fit;
mod part;
mod safetensors;
mod shards;
mod wanted;

pub(crate) use contents::{Contents, Entry, Place, Trouble, View};
pub use disguise::disguise;

use crate::checkpoint::weights::{SHARED, Weight, WeightError, Weights, is_float};
use part::Part;
use shards::shards;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use wanted::unwrapped;

/// The tensors of a checkpoint, in one file or several, of safetensors or `torch.save`. At first only their names and
/// shapes are read.
#[derive(Debug)]
pub struct StateDict {
    path: PathBuf,
    parts: Vec<Part>,
    /// With the number of the part.
    entries: Vec<(usize, Entry)>,
    numbers: BTreeMap<String, i64>,
}

/// The weights of a model out of a [`StateDict`].
#[derive(Debug)]
pub struct Fitted {
    /// Exactly the model's.
    pub weights: Weights,
    /// Sets of weights and tensors that were left out.
    pub notes: Vec<String>,
}

impl StateDict {
    /// Opens a file of safetensors or `torch.save`, or the list of the shards that lie beside it
    /// (`model.safetensors.index.json`). Of a shard, the others are read as well.
    pub fn read(path: &Path) -> Result<Self, WeightError> {
        let files = shards(path)?;
        let mut found = Self { path: path.into(), parts: vec![], entries: vec![], numbers: BTreeMap::new() };
        for file in files.paths {
            let mut part = Part::open(&file)?;
            let number = found.parts.len();
            let entries = std::mem::take(&mut part.contents.entries);
            // For a tensor in several shards, the list decides.
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let counts = |entry: &Entry| files.map.get(&entry.name).is_none_or(|shard| *shard == name);
            found.entries.extend(entries.into_iter().filter(counts).map(|entry| (number, entry)));
            found.numbers.extend(part.contents.numbers.drain(..));
            found.parts.push(part);
        }
        let names: BTreeSet<&str> = found.entries.iter().map(|(_, entry)| entry.name.as_str()).collect();
        if let Some((name, shard)) = files.map.iter().find(|(name, _)| !names.contains(name.as_str())) {
            let reason = format!("it says that {name} is in {shard}, but it is not");
            return Err(Trouble::foreign(reason, "copy the list and all shards of one checkpoint").at(path));
        }
        found.add_aliases(files.aliases);
        for (_, entry) in &mut found.entries {
            entry.name = unwrapped(&entry.name);
        }
        Ok(found)
    }

    /// A whole number beside the tensors, such as `epoch` or `global_step`.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.numbers.get(name).and_then(|number| u64::try_from(*number).ok())
    }

    /// Second names as safetensors writes them of shared tensors: the metadata names the one that is in the file.
    fn add_aliases(&mut self, more: Vec<(String, String)>) {
        let mut index: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, (_, entry)) in self.entries.iter().enumerate() {
            index.insert(&entry.name, i);
        }
        let pairs = self.parts.iter().flat_map(|part| part.contents.aliases.iter()).chain(&more);
        let second = |(name, of): &(String, String)| {
            let (number, entry) = &self.entries[*index.get(of.as_str())?];
            let alias = Entry { name: name.clone(), alias: true, ..entry.clone() };
            (!index.contains_key(name.as_str())).then_some((*number, alias))
        };
        let added: Vec<_> = pairs.filter_map(second).collect();
        self.entries.extend(added);
    }

    /// All tensors of a safetensors file.
    pub(crate) fn all(mut self) -> Result<Weights, WeightError> {
        let nested = self.entries.iter().find_map(|(part, entry)| {
            let keys = &self.parts[*part].contents.containers[entry.container];
            (!keys.is_empty()).then(|| entry.name.split('.').next().unwrap_or_default().to_owned())
        });
        if let Some(key) = nested {
            let reason = format!("`{key}` is not a tensor; save model.state_dict() by itself");
            return Err(Trouble::foreign(reason, "`pipeline import` finds a model in such a file").at(&self.path));
        }
        let wanted: Vec<usize> = (0..self.entries.len()).filter(|i| !self.entries[*i].1.alias).collect();
        // Views may overlap, but not so often that they are far larger than the file.
        let elements = |i: &usize| self.entries[*i].1.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let total = wanted.iter().try_fold(0u64, |n, i| n.checked_add(elements(i)?));
        let length: u64 = self.parts.iter().map(|part| part.length).sum();
        if total.is_none_or(|n| n > (1 << 24) + 16 * length) {
            return Err(Trouble::damaged("its tensors are absurdly large").at(&self.path));
        }
        let untied: Vec<String> = self.parts.iter().flat_map(|part| part.contents.untied.clone()).collect();
        let (mut tensors, mut integers) = (BTreeMap::new(), BTreeMap::new());
        for (i, weight) in self.gather(&wanted)? {
            let (_, Entry { name, view, .. }) = &self.entries[i];
            let Ok(View { dtype, .. }) = view else { continue };
            if is_float(*dtype) {
                tensors.insert(name.clone(), weight);
            } else if let [value] = weight.values[..] {
                integers.insert(name.clone(), value as usize);
            }
        }
        for (second, name) in SHARED.iter().copied() {
            let is_second = tensors.contains_key(name) && tensors.get(second) == tensors.get(name);
            if is_second && !untied.iter().any(|name| name == second) {
                tensors.remove(second);
            }
        }
        Ok(tensors.into_iter().collect::<Weights>().with_integers(integers))
    }

    /// The numbers of some tensors; each part is read once.
    fn gather(&mut self, indices: &[usize]) -> Result<Vec<(usize, Weight)>, WeightError> {
        let mut order: Vec<(usize, usize, usize)> = Vec::new();
        for &i in indices {
            let (part, entry) = &self.entries[i];
            match &entry.view {
                Ok(view) => order.push((*part, view.place, i)),
                Err(kind) => {
                    let reason = format!("{} is {kind}", entry.name);
                    return Err(
                        Trouble::foreign(reason, "save plain tensors: model.float().state_dict()").at(&self.path)
                    );
                }
            }
        }
        order.sort_unstable();
        let mut loaded: Option<((usize, usize), Vec<u8>)> = None;
        let mut gathered = Vec::with_capacity(order.len());
        for (part, place, i) in order {
            let source = &mut self.parts[part];
            let path = source.path.clone();
            let bytes = match loaded.take() {
                Some((key, bytes)) if key == (part, place) => bytes,
                _ => source.load(place).map_err(|trouble| trouble.at(&path))?,
            };
            let entry = &self.entries[i].1;
            if let Ok(view) = &entry.view {
                let big_endian = source.contents.big_endian;
                let weight = view.gather(&entry.shape, &bytes, big_endian);
                let named = |reason| Trouble::damaged(format!("{}: {reason}", entry.name)).at(&path);
                gathered.push((i, weight.map_err(named)?));
            }
            loaded = Some(((part, place), bytes));
        }
        Ok(gathered)
    }
}

impl Weights {
    /// Reads a safetensors file or a state dict of `torch.save`, of any type of numbers and from any device. Parts of
    /// names added by wrappers such as DeepSpeed are dropped, and so are integers with axes, which are never
    /// parameters. Tied tensors are read once. ([`StateDict::fit`] finds a model in anything else.)
    pub fn read(path: &Path) -> Result<Self, WeightError> {
        StateDict::read(path)?.all()
    }
}
