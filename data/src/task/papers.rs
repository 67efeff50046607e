//! The papers that presets are from.

/// Beginnings of presets' names up to the `/`, and the paper that a preset is from.
const PAPERS: [(&str, &str); 13] = [
    ("abacus", "McLeish et al. 2024, arXiv 2405.17399"),
    ("bhatt", "Bhattamishra et al. 2020, arXiv 2009.11264"),
    ("chomsky", "Delétang et al. 2023, arXiv 2207.02098"),
    ("crasp", "Yang et al. 2025, arXiv 2506.16055"),
    ("flipflop", "Liu et al. 2023, arXiv 2306.00946"),
    ("h3", "Fu et al. 2023, arXiv 2212.14052"),
    ("huang", "Huang et al. 2025, arXiv 2410.02140"),
    ("mad", "Poli et al. 2024, arXiv 2403.17844"),
    ("mamba", "Gu and Dao 2023, arXiv 2312.00752"),
    ("mqar", "Arora et al. 2023, arXiv 2312.04927"),
    ("ram", "Jelassi et al. 2024, arXiv 2402.01032"),
    ("word", "Merrill et al. 2024, arXiv 2404.08819"),
    ("", "Chang and Bisk 2024, arXiv 2405.20131"),
];

/// The paper of the preset with this name.
pub(super) fn paper_of(preset: &str) -> Option<&'static str> {
    let group = preset.split_once('/').map_or("", |(group, _)| group);
    PAPERS.iter().find(|(name, _)| *name == group).map(|(_, paper)| *paper)
}
