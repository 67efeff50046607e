//! `checkpoints/epoch-0003-step-93750/`: everything that training needs to go on as if it had never stopped.
//!
//! Batch order, random positions and dropout are functions of the seed and the step, so a checkpoint is the weights,
//! the optimiser's moments and two numbers (and in fp16 the scale of the loss). It is written under a temporary name
//! and renamed, and `state.json` holds a checksum of every file: a checkpoint that was torn, cut off or changed by a
//! failing disk is recognised and never trained from.

use crate::run::checksum::crc32c;
use crate::train::loss_scale::LossScale;
use anyhow::{Context, Result, bail};
use models::Weights;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Stands in for [`State::check`] while that is computed.
const NO_CHECK: &str = "00000000";

/// `state.json`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The epoch that the last step belongs to, from 1.
    pub epoch: u64,
    /// Optimisation steps done.
    pub step: u64,
    /// Seconds of training so far, over all parts of an interrupted run.
    #[serde(default)]
    pub seconds: f64,
    /// Accuracy on validation, where it was evaluated at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_accuracy: Option<f64>,
    /// Loss on validation, where it was evaluated at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// The factor on the loss, where training is in fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// CRC-32C of every other file, in hexadecimal; filled in when the checkpoint is written.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// CRC-32C of this file with zeros in place of this number; filled in when the checkpoint is written.
    #[serde(default)]
    pub check: String,
}

/// A checkpoint whose files are what was written.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    state: State,
}

impl Checkpoint {
    /// Writes the folder `path`, whole or not at all. One that is there already (left damaged by a disk, and now made
    /// again) is replaced. Without the optimiser's moments, training cannot go on from it.
    pub fn write(path: &Path, state: State, weights: &Weights, optimizer: Option<&Weights>) -> Result<()> {
        let doing = || format!("cannot save the checkpoint {}", path.display());
        let folder = path.parent().with_context(doing)?;
        let temporary = folder.join(format!(".partial-{}", state.step));
        let write = || -> Result<()> {
            remove_folder(&temporary)?;
            let mut state = state;
            let files = [(WEIGHTS, Some(weights)), (OPTIMIZER, optimizer)];
            for (name, weights) in files.into_iter().filter_map(|(name, weights)| Some((name, weights?))) {
                let bytes = weights.to_safetensors()?;
                data::files::write_bytes(&temporary.join(name), &bytes)?;
                state.files.insert(name.to_owned(), hex(crc32c(&bytes)));
            }
            data::files::write_bytes(&temporary.join(STATE), sealed(state)?.as_bytes())?;
            remove_folder(path)?;
            fs::rename(&temporary, path)?;
            data::files::sync_folder(folder);
            Ok(())
        };
        write().with_context(doing).inspect_err(|_| {
            let _ = remove_folder(&temporary);
        })
    }

    /// Opens the folder `path` after checking every file against its checksum.
    pub fn open(path: &Path) -> Result<Self> {
        let state = read_state(path)?;
        for (name, expected) in &state.files {
            let file = path.join(name);
            let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let found = hex(crc32c(&bytes));
            if found != *expected {
                bail!("{} is damaged: its checksum is {found}, but {expected} was written", file.display());
            }
        }
        Ok(Self { path: path.to_owned(), state })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's name.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// How far training was.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The file with the model's parameters.
    pub fn weights_file(&self) -> PathBuf {
        self.path.join(WEIGHTS)
    }

    /// The model's parameters.
    pub fn weights(&self) -> Result<Weights> {
        Ok(Weights::read(&self.weights_file())?)
    }

    /// The optimiser's moments.
    pub fn optimizer(&self) -> Result<Weights> {
        let path = self.path.join(OPTIMIZER);
        if !path.exists() {
            bail!(
                "{} has no {OPTIMIZER}\n  hint: its training cannot be continued; `pipeline train --init-from` starts a new run from its weights",
                self.path.display()
            );
        }
        Ok(Weights::read(&path)?)
    }
}

/// `state.json` of a checkpoint, checked against its own checksum; the other files are not looked at.
pub fn read_state(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join(STATE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let state: State = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    // Checkpoints that other programs made have no checksums.
    if !state.check.is_empty() && state.check != hex(crc32c(text.replace(&state.check, NO_CHECK).as_bytes())) {
        bail!("{} is damaged: its checksum does not fit", path.display());
    }
    if state.check.is_empty() && !state.files.is_empty() {
        bail!("{} is damaged: its checksum is missing", path.display());
    }
    Ok(state)
}

/// Whether a checkpoint has all of its files, as its `state.json` says; what is in the others is not looked at.
pub fn looks_whole(checkpoint: &Path) -> bool {
    let is_there = |name: &str| checkpoint.join(name).metadata().is_ok_and(|file| file.len() > 0);
    read_state(checkpoint).is_ok_and(|state| is_there(WEIGHTS) && state.files.keys().all(|name| is_there(name)))
}

/// Whether training can go on from a checkpoint.
pub fn has_optimizer(checkpoint: &Path) -> bool {
    checkpoint.join(OPTIMIZER).exists()
}

/// The checksum of a checkpoint's weights: as it was written down, or of the file where another program made it.
pub fn weights_checksum(checkpoint: &Path) -> Result<String> {
    if let Some(written) = read_state(checkpoint)?.files.remove(WEIGHTS) {
        return Ok(written);
    }
    let file = checkpoint.join(WEIGHTS);
    Ok(hex(crc32c(&fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?)))
}

/// Removes a checkpoint so that no part of it can be taken for one, whenever the process ends.
pub fn remove(checkpoint: &Path) -> Result<()> {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let doomed = checkpoint.with_file_name(format!(".partial-old-{name}"));
    remove_folder(&doomed)?;
    fs::rename(checkpoint, &doomed).with_context(|| format!("cannot remove {}", checkpoint.display()))?;
    remove_folder(&doomed)
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The text of `state.json`, with its own checksum in it.
fn sealed(state: State) -> Result<String> {
    let open = format!("{}\n", serde_json::to_string(&State { check: NO_CHECK.into(), ..state })?);
    let check = hex(crc32c(open.as_bytes()));
    Ok(open.replace(&format!("\"check\":\"{NO_CHECK}\""), &format!("\"check\":\"{check}\"")))
}

fn hex(crc: u32) -> String {
    format!("{crc:08x}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use models::Weight;

    fn weights(value: f32) -> Weights {
        [("a.b".to_owned(), Weight { shape: vec![2, 3], values: vec![value; 6] })].into_iter().collect()
    }

    #[test]
    fn a_checkpoint_reads_back_and_replaces_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epoch-0001-step-7");
        for step in [6, 7] {
            let state = State { epoch: 1, step, val_accuracy: Some(0.1 + 0.2), ..Default::default() };
            Checkpoint::write(&path, state, &weights(step as f32), Some(&weights(0.0))).unwrap();
        }
        let read = Checkpoint::open(&path).unwrap();
        assert_eq!((read.state().step, read.state().val_accuracy), (7, Some(0.1 + 0.2)));
        assert_eq!((read.weights().unwrap(), read.optimizer().unwrap()), (weights(7.0), weights(0.0)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epoch-0002-step-9");
        let state = State { epoch: 2, step: 9, seconds: 1.25, ..Default::default() };
        Checkpoint::write(&path, state, &weights(1.0), Some(&weights(2.0))).unwrap();
        for name in [WEIGHTS, OPTIMIZER, STATE] {
            let file = path.join(name);
            let whole = fs::read(&file).unwrap();
            for bit in 0..8 * whole.len() {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fs::write(&file, &flipped).unwrap();
                assert!(Checkpoint::open(&path).is_err(), "bit {bit} of {name}");
            }
            for length in 0..whole.len() {
                fs::write(&file, &whole[..length]).unwrap();
                assert!(Checkpoint::open(&path).is_err(), "{length} bytes of {name}");
            }
            fs::write(&file, &whole).unwrap();
        }
        assert!(Checkpoint::open(&path).is_ok());
        fs::remove_file(path.join(OPTIMIZER)).unwrap();
        assert!(Checkpoint::open(&path).unwrap_err().to_string().contains(OPTIMIZER));
    }
}
