//! One file of a checkpoint.

use super::contents::{Contents, Place, Trouble};
use super::disguise::disguise;
use super::safetensors::read_safetensors;
use crate::checkpoint::torch::{self, Archive};
use crate::checkpoint::weights::WeightError;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// One file of a checkpoint.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) length: u64,
    pub(super) contents: Contents,
    archive: Option<Archive>,
}

impl Part {
    pub(super) fn open(path: &Path) -> Result<Self, WeightError> {
        let io = |source| WeightError::Io { path: path.into(), source };
        let metadata = std::fs::metadata(path).map_err(io)?;
        if metadata.is_dir() {
            return Err(Trouble::foreign("it is a folder", "name the file with the weights in it").at(path));
        }
        if !metadata.is_file() {
            return Err(Trouble::foreign("it is no regular file", "copy it to one").at(path));
        }
        let mut file = File::open(path).map_err(io)?;
        let length = metadata.len();
        let mut head = Vec::new();
        file.by_ref().take(1024).read_to_end(&mut head).map_err(io)?;
        let opened = if head.starts_with(torch::ZIP) {
            torch::read_zip(path, file).map(|(contents, archive)| (contents, Some(archive)))
        } else if torch::is_legacy(&head) {
            torch::read_legacy(path, &mut file).map(|contents| (contents, None))
        } else if head.get(6..9) == Some(b"\0\0{") {
            read_safetensors(&mut file, length).map(|contents| (contents, None))
        } else if let Some((reason, hint)) = disguise(&head, path) {
            Err(Trouble::foreign(reason, hint))
        } else {
            read_safetensors(&mut file, length).map(|contents| (contents, None))
        };
        let (contents, archive) = opened.map_err(|trouble| trouble.at(path))?;
        Ok(Self { path: path.into(), length, contents, archive })
    }

    /// The bytes of one of its parts.
    pub(super) fn load(&mut self, place: usize) -> Result<Vec<u8>, Trouble> {
        match (self.contents.places.get(place), &mut self.archive) {
            (Some(Place::Member(index)), Some(archive)) => {
                // Compressed data may unpack to any size.
                torch::member_at(archive, *index, (256 << 20) + 16 * self.length)
            }
            (Some(Place::Missing(name)), _) => Err(Trouble::damaged(format!("{name} is missing in it"))),
            (Some(Place::Range { start, bytes }), _) => {
                let io = |e: std::io::Error| Trouble::damaged(e.to_string());
                let mut file = File::open(&self.path).map_err(io)?;
                file.seek(SeekFrom::Start(*start)).map_err(io)?;
                let mut content = Vec::new();
                file.take(*bytes).read_to_end(&mut content).map_err(io)?;
                if content.len() as u64 == *bytes { Ok(content) } else { Err(Trouble::damaged("it is cut short")) }
            }
            _ => Err(Trouble::damaged("a part of it is missing")),
        }
    }
}
