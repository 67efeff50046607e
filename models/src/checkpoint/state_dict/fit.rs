//! Finds a model's tensors in a checkpoint.

use super::contents::Trouble;
use super::wanted::{AVERAGED, BESIDE, Candidate, Wanted, few, has_word, is_optimiser};
use super::{Fitted, StateDict};
use crate::Model;
use crate::checkpoint::weights::{Weight, WeightError, Weights, is_buffer, is_float, mismatch};
use crate::ops::SequenceOps;
use std::collections::{BTreeMap, BTreeSet, HashMap};

impl StateDict {
    /// The weights of `model` among these tensors.
    pub fn fit<B: SequenceOps>(mut self, model: &Model<B>) -> Result<Fitted, WeightError> {
        let wanted = Wanted::of(model);
        let models = self.models(&wanted);
        let fits: Vec<usize> = (0..models.len()).filter(|i| models[*i].fits(&self, &wanted)).collect();
        let chosen = match fits[..] {
            [] => return Err(self.misfit(&wanted, models)),
            [one] => one,
            _ => self.choose(&models, &fits)?,
        };
        let mut others: Vec<Candidate> = Vec::new();
        let mut taken = None;
        for (i, model) in models.into_iter().enumerate() {
            if i == chosen {
                taken = Some(model);
            } else if fits.contains(&i) {
                others.push(model);
            }
        }
        let chosen = taken.unwrap_or_else(|| Candidate::new(""));
        let (extra, left_out) = self.beside(&chosen, &wanted, &others);
        if !extra.is_empty() {
            let shape = |name: &str| wanted.shapes.get(name).map(Vec::as_slice);
            return Err(WeightError::Mismatch(mismatch(&wanted.shapes, &wanted.integers, shape, |_| true, &extra)));
        }
        let others = others.iter().filter(|other| !self.are_same(&chosen, other));
        let left = |other: &Candidate| {
            format!("of two sets of weights, {} is left out and {} is taken", other.shown(), chosen.shown())
        };
        let mut notes: Vec<String> = others.map(left).collect();
        if !left_out.is_empty() {
            notes.push(format!("tensors beside the model are left out: {}", few(&left_out)));
        }
        Ok(Fitted { weights: self.take(&chosen, &wanted)?, notes })
    }

    /// Every prefix after which at least one of the model's names is found.
    fn models(&self, wanted: &Wanted) -> Vec<Candidate> {
        // A tied table may be there under either of its names.
        let mut spellings: HashMap<&str, (&str, bool)> = wanted.names().map(|name| (name, (name, false))).collect();
        for (second, first) in wanted.tied() {
            spellings.insert(second, (first, true));
        }
        let longest = spellings.keys().map(|name| name.len()).max().unwrap_or(0);
        let mut found: BTreeMap<&str, Candidate> = BTreeMap::new();
        for (i, (_, entry)) in self.entries.iter().enumerate() {
            let dots = entry.name.match_indices('.').map(|(at, _)| at + 1);
            for start in std::iter::once(0).chain(dots).filter(|start| entry.name.len() - start <= longest) {
                let (prefix, rest) = entry.name.split_at(start);
                let Some((name, second)) = spellings.get(rest) else { continue };
                let candidate = found.entry(prefix).or_insert_with(|| Candidate::new(prefix));
                let places = if *second { &mut candidate.second } else { &mut candidate.first };
                match places.insert((*name).to_owned(), i) {
                    Some(other) if !self.is_same(other, i) => candidate.twice.push(rest.to_owned()),
                    _ => {}
                }
            }
        }
        found.into_values().filter(|candidate| !is_optimiser(&candidate.prefix)).collect()
    }

    /// Whether two entries share the same numbers in the file.
    fn is_same(&self, a: usize, b: usize) -> bool {
        let ((part_a, a), (part_b, b)) = (&self.entries[a], &self.entries[b]);
        part_a == part_b && a.shape == b.shape && a.view.is_ok() && a.view == b.view
    }

    /// Whether two candidates are the same model under two names.
    fn are_same(&self, a: &Candidate, b: &Candidate) -> bool {
        a.all().zip(b.all()).all(|(a, b)| a.0 == b.0 && self.is_same(a.1, b.1))
    }

    /// One of several sets of weights that all fit.
    fn choose(&self, models: &[Candidate], fits: &[usize]) -> Result<usize, WeightError> {
        let only = |keep: &dyn Fn(&Candidate) -> bool, fits: &[usize]| -> Vec<usize> {
            fits.iter().copied().filter(|i| keep(&models[*i])).collect()
        };
        let trained = only(&|m| !has_word(&m.prefix, &AVERAGED), fits);
        let trained = if trained.is_empty() { fits.to_vec() } else { trained };
        let plain = only(&Candidate::is_plain, &trained);
        for some in [&trained, &plain] {
            if let [first, rest @ ..] = &some[..]
                && rest.iter().all(|other| self.are_same(&models[*first], &models[*other]))
            {
                return Ok(*first);
            }
        }
        let names: Vec<String> = trained.iter().map(|i| models[*i].shown()).collect();
        let hint = self.pick(&models[trained[0]]);
        let reason = format!("it holds {} models that fit: {}", names.len(), names.join(", "));
        Err(Trouble::foreign(reason, hint).at(&self.path))
    }

    /// The hint for saving one of several models.
    fn pick(&self, model: &Candidate) -> String {
        let is_torch = self.parts.first().is_some_and(|part| part.contents.is_torch);
        let container = model.all().next().and_then(|(_, i)| {
            let (part, entry) = &self.entries[i];
            self.parts[*part].contents.containers.get(entry.container)
        });
        let keys = container.map(String::as_str).unwrap_or_default();
        let path = self.path.display();
        // The part of the prefix that is in the keys of the dict itself.
        let depth = keys.matches('[').count();
        let prefix: String = model.prefix.split_inclusive('.').skip(depth).collect();
        let (import, load, save) = match is_torch {
            true => (
                "import torch",
                format!("torch.load('{path}', map_location='cpu'){keys}"),
                "torch.save({}, 'model.pt')",
            ),
            false => (
                "from safetensors.torch import load_file, save_file",
                format!("load_file('{path}')"),
                "save_file({}, 'model.safetensors')",
            ),
        };
        let part = match prefix.is_empty() {
            true => load,
            false => format!("{{k[{}:]: v for k, v in {load}.items() if k.startswith('{prefix}')}}", prefix.len()),
        };
        format!("say which: python -c \"{import}; {}\" keeps {}", save.replace("{}", &part), model.shown())
    }

    /// The error where no prefix has every tensor: that of the prefix with the most.
    fn misfit(&self, wanted: &Wanted, models: Vec<Candidate>) -> WeightError {
        let best = models.into_iter().max_by_key(|m| {
            let words = !has_word(&m.prefix, &AVERAGED);
            (m.all().count(), words, m.is_plain(), std::cmp::Reverse(m.prefix.len()))
        });
        let best = best.unwrap_or_else(|| Candidate::new(""));
        let (extra, _) = self.beside(&best, wanted, &[]);
        let found = |name: &str| Some(self.entries[best.place(name)?].1.shape.as_slice());
        let integer = |name: &str| best.place(name).is_some();
        let mut problems = mismatch(&wanted.shapes, &wanted.integers, found, integer, &extra);
        for (name, i) in best.all() {
            if let Err(kind) = &self.entries[i].1.view {
                problems.retain(|problem| !problem.starts_with(&format!("{name} is ")));
                problems.push(format!("{name} cannot be read: {kind}"));
            }
        }
        problems.extend(best.twice.iter().map(|name| format!("{name} is there twice with different numbers")));
        if problems.is_empty() {
            problems.push("its tensors are not numbers that a model takes".into());
        }
        WeightError::Mismatch(problems)
    }

    /// The float tensors in the containers of the model that are not its own, and those of them that may be left out:
    /// other sets of the same weights, and what belongs to a loss.
    fn beside(&self, chosen: &Candidate, wanted: &Wanted, others: &[Candidate]) -> (Vec<String>, Vec<String>) {
        let tensors =
            |model: &Candidate| model.first.values().chain(model.second.values()).copied().collect::<Vec<_>>();
        let own: BTreeSet<usize> = tensors(chosen).into_iter().collect();
        let theirs: BTreeSet<usize> = others.iter().flat_map(tensors).collect();
        let container = |i: usize| (self.entries[i].0, self.entries[i].1.container);
        let homes: BTreeSet<(usize, usize)> = own.iter().map(|i| container(*i)).collect();
        // Shards count as one container here.
        let is_home = |i: usize| {
            let is_torch = self.parts[container(i).0].contents.is_torch;
            homes.is_empty() || !is_torch || homes.contains(&container(i))
        };
        let (mut extra, mut left_out) = (Vec::new(), Vec::new());
        for (i, (_, entry)) in self.entries.iter().enumerate() {
            let is_number = !entry.view.as_ref().is_ok_and(|view| is_float(view.dtype));
            if own.contains(&i) || theirs.contains(&i) || entry.alias || is_number || !is_home(i) {
                continue;
            }
            let inside = entry.name.strip_prefix(&chosen.prefix);
            if inside.is_some_and(|name| is_buffer(name) && !wanted.shapes.contains_key(name)) {
                continue;
            }
            // Other tensors of another set of weights, such as its masks.
            if others.iter().any(|other| !other.prefix.is_empty() && entry.name.starts_with(&other.prefix)) {
                continue;
            }
            let module = entry.name.rsplit_once('.').map_or("", |(module, _)| module);
            if has_word(module, &AVERAGED) || has_word(module, &BESIDE) || is_optimiser(module) {
                left_out.push(entry.name.clone());
            } else {
                extra.push(inside.unwrap_or(&entry.name).to_owned());
            }
        }
        (extra, left_out)
    }

    /// The numbers of the chosen tensors.
    fn take(&mut self, chosen: &Candidate, wanted: &Wanted) -> Result<Weights, WeightError> {
        let mut names: HashMap<usize, Vec<&str>> = HashMap::new();
        for (name, i) in chosen.all() {
            names.entry(i).or_default().push(name);
        }
        // Both names of a tied table must have the same numbers.
        let doubles: Vec<(&str, usize, usize)> = chosen
            .second
            .iter()
            .filter_map(|(name, second)| Some((name.as_str(), *chosen.first.get(name)?, *second)))
            .filter(|(_, first, second)| !self.is_same(*first, *second))
            .collect();
        let mut indices: Vec<usize> =
            names.keys().copied().chain(doubles.iter().map(|(_, _, second)| *second)).collect();
        indices.sort_unstable();
        indices.dedup();
        let found: HashMap<usize, Weight> = self.gather(&indices)?.into_iter().collect();
        for (name, first, second) in doubles {
            if found.get(&first) != found.get(&second) {
                let other = wanted.tied().find(|(_, first)| *first == name).map_or(name, |(second, _)| second);
                let problem = format!("{other} is not in the model, which ties it to {name}, and differs from that");
                return Err(WeightError::Mismatch(vec![problem]));
            }
        }
        let (mut tensors, mut integers) = (Vec::new(), Vec::new());
        for (i, weight) in found {
            for name in names.get(&i).into_iter().flatten() {
                if wanted.integers.contains(*name) {
                    integers.push(((*name).to_owned(), weight.values.first().map_or(0, |v| *v as usize)));
                } else {
                    tensors.push(((*name).to_owned(), weight.clone()));
                }
            }
        }
        Ok(tensors.into_iter().collect::<Weights>().with_integers(integers))
    }
}
