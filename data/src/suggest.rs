//! "Did you mean …?" for names that people type.

/// The candidate most similar to `name`, if any is close enough.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(&name.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_a_typo_and_rejects_noise() {
        assert_eq!(nearest("hiden_size", ["hidden_size", "num_layers"]), Some("hidden_size"));
        assert_eq!(nearest("zzz", ["hidden_size", "num_layers"]), None);
    }
}
