//! Models with external weights.
//!
//! ONNX Runtime reads such files only from the model's folder, links resolved. In a cache of Hugging Face, though, both
//! the model and its weights are links into a folder of blobs; and a link to a model may lie far from its weights. So
//! the files are looked for beside the model and beside everything that its link leads to, and if one is outside that
//! folder, the model is passed on with their real paths.

use crate::model::proto::{parts, relocate};
use crate::{EvalError, Result};
use data::DataError;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A model file as it was read, and the files that belong to it.
pub(crate) struct Source {
    /// The bytes of the file.
    pub model: Vec<u8>,
    /// The files of its weights, links resolved, by the names that the model has for them.
    weights: BTreeMap<String, PathBuf>,
    /// The folder that the names are relative to.
    folder: PathBuf,
}

impl Source {
    /// Reads the model at `path` and finds its other files.
    ///
    /// # Errors
    /// The file cannot be read; one of the others is missing, too short, or named by a path out of the folder.
    pub fn read(path: &Path) -> Result<Self> {
        let io = |source| DataError::Io { action: "read the model", path: path.into(), source };
        let model = std::fs::read(path).map_err(io)?;
        let folders = folders(path);
        let mut weights = BTreeMap::new();
        let mut ends: BTreeMap<String, u64> = BTreeMap::new();
        for part in parts(&model) {
            let end = ends.entry(part.location).or_default();
            *end = part.end.max(*end);
        }
        for (location, end) in ends {
            let file = find(&location, end, &folders);
            let file = file.map_err(|(reason, hint)| EvalError::Weights { path: path.into(), location, reason, hint });
            let (location, file) = file?;
            weights.insert(location, file);
        }
        let folder = folders.into_iter().next().unwrap_or_default();
        Ok(Self { model, weights, folder })
    }

    /// A model in memory, which messages call `name`.
    ///
    /// # Errors
    /// It has weights in files of their own.
    pub fn of_bytes(name: &Path, model: Vec<u8>) -> Result<Self> {
        if let Some(part) = parts(&model).into_iter().next() {
            let reason = "are a file of their own, and a model in memory has no folder to find it in".to_owned();
            let hint = "save the model with its weights into one folder, and give the path of the file";
            return Err(EvalError::Weights { path: name.into(), location: part.location, reason, hint });
        }
        Ok(Self::in_folder(model, PathBuf::new()))
    }

    /// A model in memory whose other files, if it has any, are in `folder`, where ONNX Runtime finds them by itself.
    pub fn in_folder(model: Vec<u8>, folder: PathBuf) -> Self {
        Self { model, weights: BTreeMap::new(), folder }
    }

    /// All files of the model as one stream of bytes.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn each_chunk(&self, mut take: impl FnMut(&[u8])) -> Result<()> {
        take(&self.model);
        for file in self.weights.values() {
            let io = |source| DataError::Io { action: "read the weights", path: file.clone(), source };
            let mut reader = std::fs::File::open(file).map_err(io)?;
            let mut chunk = vec![0; 1 << 20];
            loop {
                match std::io::Read::read(&mut reader, &mut chunk).map_err(io)? {
                    0 => break,
                    count => take(&chunk[..count]),
                }
            }
        }
        Ok(())
    }

    /// The size of all files together.
    pub fn size(&self) -> usize {
        let sizes = self.weights.values().filter_map(|file| file.metadata().ok());
        self.model.len() + sizes.map(|metadata| metadata.len() as usize).sum::<usize>()
    }

    /// The model for ONNX Runtime, and the folder in which it looks for weights.
    pub fn place(self) -> (Vec<u8>, PathBuf) {
        let inside = std::fs::canonicalize(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let plain = |(location, file): (&String, &PathBuf)| {
            file.starts_with(&inside) && self.folder.join(location).exists() // it finds them by itself
        };
        if self.weights.iter().all(plain) {
            return (self.model, self.folder);
        }
        let mut common = self.weights.values().filter_map(|file| file.parent()).map(Path::to_owned);
        let first = common.next().unwrap_or_default();
        let root = common.fold(first, |root, folder| {
            root.components().zip(folder.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
        });
        let place = |location: &str| {
            let file = self.weights.get(location)?.strip_prefix(&root).ok()?;
            Some(file.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/"))
        };
        (relocate(&self.model, &place), root)
    }
}

/// The folders that a model's files may be in: its own, that of its link's target, and so on.
fn folders(path: &Path) -> Vec<PathBuf> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (mut at, mut found) = (absolute(path), Vec::new());
    for _ in 0..40 {
        // more links than an operating system follows
        let folder = at.parent().unwrap_or(&at).to_owned();
        let next = std::fs::read_link(&at).map(|target| folder.join(target));
        found.push(folder);
        match next {
            Ok(target) => at = target,
            Err(_) => break,
        }
    }
    found
}

type Refusal = (String, &'static str);

/// The first of `folders` that has the file, links resolved.
fn find(location: &str, end: u64, folders: &[PathBuf]) -> std::result::Result<(String, PathBuf), Refusal> {
    let relative = Path::new(location);
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        let reason = "lie outside of the model's folder, where nothing is read from".to_owned();
        return Err((reason, "put the file beside the model, and save the model with its plain name"));
    }
    let found = folders.iter().map(|folder| folder.join(relative)).find(|file| file.is_file());
    let Some(file) = found.and_then(|file| std::fs::canonicalize(file).ok()) else {
        let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let reason = format!("are not there: no such file in {}", places.join(" or "));
        return Err((reason, "such a model is two files or more; copy or download all of them into one folder"));
    };
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    if size < end {
        let reason = format!("are cut off: the file has {size} bytes, and the model reads {end}");
        return Err((reason, "copy or download the file again; `git lfs pull` where it came with a repository"));
    }
    Ok((location.to_owned(), file))
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::scoring::Message;
    use std::os::unix::fs::symlink;

    /// A model with a tensor in each of these files.
    fn model(locations: &[&str]) -> Vec<u8> {
        let entry = |key: &str, value: &str| Message::default().bytes(1, key.as_bytes()).bytes(2, value.as_bytes());
        let graph = locations.iter().fold(Message::default(), |graph, location| {
            let tensor = Message::default().message(13, entry("location", location));
            graph.message(5, tensor.message(13, entry("length", "4")).int(14, 1))
        });
        Message::default().message(7, graph).into_bytes()
    }

    #[test]
    fn weights_are_found_behind_links_and_read_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["blobs", "snapshot/onnx", "elsewhere"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("blobs/0"), model(&["model.onnx_data"])).unwrap();
        std::fs::write(root.join("blobs/1"), "data").unwrap();
        symlink("../../blobs/0", root.join("snapshot/onnx/model.onnx")).unwrap();
        symlink("../../blobs/1", root.join("snapshot/onnx/model.onnx_data")).unwrap();
        let (bytes, folder) = Source::read(&root.join("snapshot/onnx/model.onnx")).unwrap().place();
        assert_eq!((bytes, folder), (model(&["1"]), root.join("blobs")));

        // a link to a model whose weights are beside the model itself
        std::fs::write(root.join("snapshot/m.onnx"), model(&["w/a", "b"])).unwrap();
        std::fs::create_dir(root.join("snapshot/w")).unwrap();
        std::fs::write(root.join("snapshot/w/a"), "data").unwrap();
        std::fs::write(root.join("snapshot/b"), "data").unwrap();
        symlink("../snapshot/m.onnx", root.join("elsewhere/m.onnx")).unwrap();
        let (bytes, folder) = Source::read(&root.join("elsewhere/m.onnx")).unwrap().place();
        assert_eq!((bytes, folder), (model(&["w/a", "b"]), root.join("snapshot")));
    }

    #[test]
    fn a_plain_folder_is_left_to_onnx_runtime() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("m.onnx"), model(&["w"])).unwrap();
        std::fs::write(dir.path().join("w"), "data").unwrap();
        let (bytes, folder) = Source::read(&dir.path().join("m.onnx")).unwrap().place();
        assert_eq!((bytes, folder), (model(&["w"]), dir.path().to_owned()));
    }

    #[test]
    fn files_that_are_missing_short_or_outside_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        std::fs::write(dir.path().join("short"), "dat").unwrap();
        for (location, what) in [
            ("absent", "are not there: no such file in"),
            ("short", "are cut off: the file has 3 bytes, and the model reads 4"),
            ("../m.onnx", "lie outside of the model's folder"),
            ("/etc/passwd", "lie outside of the model's folder"),
        ] {
            std::fs::write(&path, model(&[location])).unwrap();
            let message = Source::read(&path).err().unwrap().to_string();
            let start = format!("cannot load {}: its weights in `{location}` {what}", path.display());
            assert!(message.starts_with(&start) && message.contains("\n  hint: "), "{message}");
        }
    }
}
