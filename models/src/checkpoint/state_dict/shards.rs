//! Checkpoints in several files, with a list of them or without.

use super::contents::Trouble;
use super::disguise::disguise;
use super::safetensors::MAX_HEADER;
use crate::checkpoint::weights::WeightError;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The files of a checkpoint.
#[derive(Default)]
pub(super) struct Files {
    pub(super) paths: Vec<PathBuf>,
    /// Which tensor is in which file, where a list says so.
    pub(super) map: BTreeMap<String, String>,
    /// Second names of tensors, which the list may mention.
    pub(super) aliases: Vec<(String, String)>,
}

/// The files that belong to `path`: itself, all shards that it lists, or all shards that it is one of.
pub(super) fn shards(path: &Path) -> Result<Files, WeightError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.parent().unwrap_or(Path::new(""));
    if let Some((stem, count, ending)) = shard_of(&name) {
        let shard = |i: usize| folder.join(format!("{stem}-{:05}-of-{count:05}.{ending}", i + 1));
        let paths: Vec<PathBuf> = (0..count).map(shard).collect();
        if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
            return Err(missing_shard(path, missing));
        }
        return Ok(Files { paths, ..Default::default() });
    }
    if !name.ends_with(".json") {
        return Ok(Files { paths: vec![path.into()], ..Default::default() });
    }
    let io = |source| WeightError::Io { path: path.into(), source };
    let mut text = Vec::new();
    File::open(path).map_err(io)?.take(MAX_HEADER).read_to_end(&mut text).map_err(io)?;
    if let Some((reason, hint)) = disguise(&text, path).filter(|(reason, _)| !reason.contains("JSON")) {
        return Err(Trouble::foreign(reason, hint).at(path));
    }
    let broken = |e: serde_json::Error| Trouble::damaged(format!("it is broken JSON: {e}")).at(path);
    let list: serde_json::Value = serde_json::from_slice(&text).map_err(broken)?;
    let Some(serde_json::Value::Object(map)) = list.get("weight_map") else {
        let hint = "name the file with the weights, or the list of its shards, such as model.safetensors.index.json";
        return Err(Trouble::foreign("it is JSON without a `weight_map`", hint).at(path));
    };
    let mut files = Files::default();
    for (tensor, shard) in map {
        let shard = shard.as_str().unwrap_or_default();
        // Only a name in the same folder is accepted.
        if Path::new(shard).file_name().is_none_or(|name| name != shard) || shard.ends_with(".json") {
            let reason = format!("it says that {tensor} is in `{shard}`, which is no file beside it");
            return Err(Trouble::foreign(reason, "the shards lie beside the list").at(path));
        }
        files.map.insert(tensor.clone(), shard.to_owned());
    }
    let names: BTreeSet<&String> = files.map.values().collect();
    files.paths = names.into_iter().map(|name| folder.join(name)).collect();
    if let Some(missing) = files.paths.iter().find(|path| !path.is_file()) {
        return Err(missing_shard(path, missing));
    }
    let metadata = list.get("metadata").and_then(serde_json::Value::as_object).into_iter().flatten();
    files.aliases = metadata.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
    Ok(files)
}

fn missing_shard(path: &Path, missing: &Path) -> WeightError {
    let name = missing.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Trouble::foreign(format!("its shard {name} is not beside it"), "copy all shards into one folder").at(path)
}

/// `model-00002-of-00003.safetensors` as (`model`, 3, `safetensors`).
fn shard_of(name: &str) -> Option<(&str, usize, &str)> {
    let (stem, ending) = name.rsplit_once('.')?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let count = Some(count).filter(|count| digits(count) && digits(number))?.parse().ok()?;
    (count > 1).then_some((stem, count, ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_recognised() {
        assert_eq!(shard_of("model-00002-of-00003.safetensors"), Some(("model", 3, "safetensors")));
        assert_eq!(shard_of("pytorch_model-00001-of-00001.bin"), None);
        assert_eq!(shard_of("best-of-3.pt"), None);
    }
}
