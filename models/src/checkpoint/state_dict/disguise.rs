//! Files with the extension of another kind.

use std::path::Path;

/// The error for a file whose first bytes show another kind than its extension.
pub fn disguise(head: &[u8], path: &Path) -> Option<(String, String)> {
    let shown = path.display();
    let trimmed = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let lower = trimmed[..trimmed.len().min(200)].to_ascii_lowercase();
    let say = |reason: &str, hint: String| Some((reason.to_owned(), hint));
    let unpack = |with: &str| format!("unpack it first: {with} {shown}");
    if head.is_empty() {
        return say("it is empty", "copy or download it again".into());
    }
    if head.iter().all(|byte| *byte == 0) {
        return say("it holds nothing but zeros", "copy or download it again".into());
    }
    if head.starts_with(b"version https://git-lfs") {
        let hint =
            "`git lfs pull` in its repository fetches the file; a download is at …/resolve/…, not …/raw/…".into();
        return say("it is a pointer of Git LFS, not the file itself", hint);
    }
    if head.starts_with(b"/annex/objects/") || head.starts_with(b"../.git/annex/") {
        return say("it is a pointer of git-annex, not the file itself", "`git annex get` fetches the file".into());
    }
    if [&b"<!doctype"[..], b"<html", b"<head", b"<?xml", b"<error"].iter().any(|tag| lower.starts_with(tag)) {
        let hint = "download the file itself: on Hugging Face and GitHub from …/resolve/… or …/raw/…, not …/blob/…, and \
                    where it is not public, signed in";
        return say("it is a web page that was saved under this name", hint.into());
    }
    let magics: [(&[u8], &str, String); 14] = [
        (b"\x1f\x8b", "it is compressed by gzip", unpack("gunzip -k")),
        (b"\xfd7zXZ", "it is compressed by xz", unpack("unxz -k")),
        (b"\x28\xb5\x2f\xfd", "it is compressed by zstd", unpack("unzstd")),
        (b"BZh", "it is compressed by bzip2", unpack("bunzip2 -k")),
        (b"7z\xbc\xaf", "it is a 7z archive", unpack("7z x")),
        (b"PK\x05\x06", "it is an empty zip archive", "copy or download it again".into()),
        (b"\x89HDF", "it is an HDF5 file, as Keras writes", "save the weights of the PyTorch model".into()),
        (b"\x93NUMPY", "it is a single array of NumPy", "save model.state_dict() with torch.save".into()),
        (b"GGUF", "it is a GGUF file of llama.cpp", "save model.state_dict() with torch.save".into()),
        (b"ggml", "it is a GGML file", "save model.state_dict() with torch.save".into()),
        (b"TFL3", "it is a TensorFlow Lite model", "save the weights of the PyTorch model".into()),
        (b"PAR1", "it is a Parquet file", "name the file with the weights".into()),
        (b"%PDF", "it is a PDF", "name the file with the weights".into()),
        (b"\x89PNG", "it is a picture", "name the file with the weights".into()),
    ];
    if let Some((_, reason, hint)) = magics.into_iter().find(|(magic, ..)| head.starts_with(magic)) {
        return say(reason, hint);
    }
    if head.get(257..262) == Some(b"ustar") {
        let hint = format!(
            "unpack it with tar xf {shown} and name the file in it; an archive of torch.save before PyTorch 0.2 is \
             converted by python -c \"import torch; torch.save(torch.load('{shown}', weights_only=False), 'model.pt')\""
        );
        return say("it is a tar archive", hint);
    }
    if head.starts_with(b"\x80") && head.get(1).is_some_and(|protocol| (2..=5).contains(protocol)) {
        let hint = format!(
            "python -c \"import pickle, torch; torch.save({{k: torch.as_tensor(v) for k, v in \
             pickle.load(open('{shown}', 'rb')).items()}}, 'model.pt')\" converts a dict of arrays; that runs what the \
             file says, so trust it first"
        );
        return say("it is a pickle, but not one of torch.save", hint);
    }
    if shown.to_string().ends_with(".onnx") {
        return say("it is an ONNX model", format!("`pipeline eval --model {shown}` evaluates it as it is"));
    }
    if matches!(trimmed.first(), Some(b'{' | b'[')) {
        return say("it is JSON text without a list of shards", "name the file with the weights".into());
    }
    let is_text = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    if head.len() >= 16 && head.iter().all(is_text) {
        let line = String::from_utf8_lossy(trimmed.split(|b| *b == b'\n').next().unwrap_or_default()).into_owned();
        let begins: String = line.chars().take(60).collect();
        return say(&format!("it is text, which begins with `{begins}`"), "name the file with the weights".into());
    }
    None
}
