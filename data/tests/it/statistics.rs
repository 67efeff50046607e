//! χ² tests of counts against probabilities, at the level 10⁻³, on fixed seeds.

/// Whether the counts of `classes` classes are those of a uniform distribution.
pub(crate) fn uniform(what: &str, counts: &[u64], classes: usize) {
    assert_eq!(counts.len(), classes, "{what}: {counts:?}");
    fits(what, counts, &vec![1.0; classes]);
}

/// Whether counts are those of these weights. Classes of which fewer than 5 are expected are taken together.
pub(crate) fn fits(what: &str, counts: &[u64], weights: &[f64]) {
    assert_eq!(counts.len(), weights.len(), "{what}");
    let (n, total) = (counts.iter().sum::<u64>() as f64, weights.iter().sum::<f64>());
    let mut rare = (0.0, 0.0);
    let mut classes = vec![];
    for (count, weight) in counts.iter().zip(weights) {
        let expected = n * weight / total;
        match expected < 5.0 {
            true => rare = (rare.0 + *count as f64, rare.1 + expected),
            false => classes.push((*count as f64, expected)),
        }
    }
    if rare.1 > 0.0 {
        classes.push(rare);
    }
    let chi2: f64 = classes.iter().map(|(found, expected)| (found - expected).powi(2) / expected.max(1e-9)).sum();
    let freedom = classes.len() as f64 - 1.0;
    assert!(freedom > 0.0, "{what}: one class");
    // Wilson and Hilferty's cube root of χ² is nearly normal; 3.09 is its 99.9 % quantile
    let z = ((chi2 / freedom).cbrt() - 1.0 + 2.0 / (9.0 * freedom)) / (2.0 / (9.0 * freedom)).sqrt();
    assert!(z < 3.09, "{what}: χ² = {chi2:.1} with {freedom} degrees of freedom (z = {z:.2}): {counts:?}");
}
