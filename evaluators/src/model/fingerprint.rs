//! Fingerprints, which show that files or options have changed.

use crate::Result;
use crate::model::external::Source;
use crate::model::proto::only_graph;
use ort::session::ModelMetadata;
use std::path::Path;

/// A fingerprint of the model at `path`, of its file and those with its weights, as 16 hexadecimal digits: models with
/// the same fingerprint are the same.
///
/// # Errors
/// A file cannot be read, or one with weights is missing.
pub fn model_fingerprint(path: &Path) -> Result<String> {
    of_source(&Source::read(path)?)
}

pub(crate) fn of_source(source: &Source) -> Result<String> {
    let mut hash = START;
    source.each_chunk(|chunk| hash = more(hash, chunk.iter().copied()))?;
    Ok(format!("{hash:016x}"))
}

/// 64-bit FNV-1a: shows that files or options have changed, and is the same in every build.
pub(crate) fn fingerprint(bytes: impl Iterator<Item = u8>) -> u64 {
    more(START, bytes)
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

fn more(hash: u64, bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The producer name in the files that `pipeline export` writes.
const PRODUCER: &str = "inductive-counting pipeline";
/// The metadata key where it leaves the fingerprint of the graph.
const GRAPH_FINGERPRINT: &str = "graph_fingerprint";

/// Whether `pipeline export` wrote the file with this metadata, and its graph, of this fingerprint, is still the same:
/// tools that quantise or rewrite a model keep the metadata, and some of them the producer, too.
pub(crate) fn is_own_export(metadata: &ModelMetadata<'_>, graph: Option<u64>) -> bool {
    let said = metadata.custom(GRAPH_FINGERPRINT);
    metadata.producer().as_deref() == Some(PRODUCER)
        && graph.is_some_and(|graph| said.is_some_and(|said| said == format!("{graph:016x}")))
}

/// Whether an earlier version of `pipeline export` wrote the file: it left no fingerprint, so a changed graph cannot be
/// detected.
pub(crate) fn is_earlier_export(metadata: &ModelMetadata<'_>) -> bool {
    metadata.producer().as_deref() == Some(PRODUCER) && metadata.custom(GRAPH_FINGERPRINT).is_none()
}

/// The fingerprint of the graph in a serialized `ModelProto`; `None` where it has not exactly one.
pub(crate) fn graph_fingerprint(model: &[u8]) -> Option<u64> {
    only_graph(model).map(|graph| fingerprint(graph.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graph_is_found_between_the_other_fields() {
        // ir_version 10, a fixed64 and a fixed32 of no meaning, graph "abc", metadata "xy"
        let model = b"\x08\x0a\x79\x01\x02\x03\x04\x05\x06\x07\x08\x7d\x01\x02\x03\x04\x3a\x03abc\x72\x02xy";
        assert_eq!(graph_fingerprint(model), Some(fingerprint(b"abc".iter().copied())));
        assert_eq!(graph_fingerprint(b"\x3a\x03abc\x3a\x01d"), None, "two graphs are merged by whoever reads them");
        for damaged in [&model[..18], b"\x3a\xff", b"\x3b", b"text", b""] {
            assert_eq!(graph_fingerprint(damaged), None);
        }
    }
}
