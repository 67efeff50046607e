//! Our generators against the data files published with the paper: enumerated files byte for byte, sampled ones by
//! rule, order and distribution. The files are read from `../shared/reference/data` where that is there; hashes of the
//! enumerated ones are part of this test.

use data::{Dataset, Example, Split, Task, text};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// The published files that can be enumerated: their length in bytes and their FNV-1a hash.
const ENUMERATED: [(&str, &str, Split, usize, u64); 11] = {
    const ADDTABLE: Split = Split::Auxiliary(data::Auxiliary::Addtable);
    [
        ("counting_samesymbol", "counting_samesymbol", Split::OodTest, 912269, 0x2174ffd0d6f34f7a),
        ("counting_samesymbol_padhelper", "counting_samesymbol_padhelper", Split::OodTest, 2143394, 0x053d3b7d3b88f691),
        ("counting_samesymbol_mod10", "counting_samesymbol_mod10", Split::Val, 78630, 0x4af19b9a9395b135),
        ("counting_samesymbol_mod10", "counting_samesymbol_mod10", Split::OodTest, 38355, 0xd403634945efb173),
        ("counting_samesymbol_mod10bos", "counting_samesymbol_mod10bos", Split::Val, 81930, 0x50dbfcd6cf0bb325),
        ("counting_samesymbol_mod10bos", "counting_samesymbol_mod10bos", Split::OodTest, 38905, 0xb1c1422a4d0b3fd3),
        (
            "counting_samesymbol_shiftedstart3",
            "counting_samesymbol_shiftedstart3",
            Split::Val,
            28306,
            0x16969486dbf50db7,
        ),
        (
            "counting_samesymbol_shiftedstart3",
            "counting_samesymbol_shiftedstart3",
            Split::OodTest,
            921614,
            0x227375ab26711e07,
        ),
        ("counting_samesymbol_plain3_addbigram", "counting_samesymbol_plain3", Split::Val, 5580, 0x53e1afb53670bde1),
        (
            "counting_samesymbol_plain3_addbigram",
            "counting_samesymbol_plain3",
            Split::OodTest,
            40818,
            0x58830668685d62f7,
        ),
        ("counting_samesymbol_shiftedstart_addtable", "addtable", ADDTABLE, 141048, 0x578ff578ba540586),
    ]
};

fn task(name: &str) -> Task {
    Task::by_name(name).unwrap()
}

fn published(folder: &str, split: Split) -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/data");
    let path = root.join(folder).join(format!("{}.txt", split.name()));
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
    }
    path.exists().then_some(path)
}

/// The examples of a published file.
fn read(name: &str, folder: &str, split: Split) -> Option<Dataset> {
    published(folder, split).map(|path| Dataset::read_pairs(&path, Some(&task(name))).unwrap())
}

fn generate(name: &str, split: Split, seed: u64) -> Dataset {
    let task = task(name);
    let rows = task.rows(split, 100_000).unwrap();
    Dataset::generated(&task, split, seed, rows).unwrap()
}

#[test]
fn enumerated_files_are_equal_byte_for_byte() {
    for (name, folder, split, length, hash) in ENUMERATED {
        let vocabulary = task(name).vocabulary;
        let line = |e| text::to_line(e, &vocabulary) + "\n";
        let ours: String = generate(name, split, 7).iter().map(line).collect();
        let fnv1a = ours.bytes().fold(0xcbf29ce484222325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3));
        assert_eq!((ours.len(), fnv1a), (length, hash), "{name} {}: {fnv1a:#x}", split.name());
        if let Some(path) = published(folder, split) {
            assert!(std::fs::read_to_string(path).unwrap() == ours, "{name} {}", split.name());
        }
    }
}

/// Every line of every published file is labelled by our rule.
#[test]
fn every_published_line_is_labelled_by_rule() {
    let folders = [
        ("counting_samesymbol", 300, 1225),
        ("counting_samesymbol_padhelper", 300, 1225),
        ("counting_diffsymbol_mod10", 300, 2500),
        ("counting_samesymbol_mod10", 300, 50),
        ("counting_samesymbol_mod10bos", 300, 50),
        ("counting_samesymbol_shiftedstart3", 50, 1225),
        ("counting_selective", 1275, 1275),
        ("counting_selective_10items2", 2000, 1470),
        ("counting_selective_10items2bos", 2000, 1470),
    ];
    for (name, val, ood) in folders {
        let task = task(name);
        for (split, lines) in [(Split::Val, val), (Split::OodTest, ood)] {
            let Some(dataset) = read(name, name, split) else { return };
            assert_eq!(dataset.len(), lines, "{name} {}", split.name());
            for (i, e) in dataset.iter().enumerate() {
                let checked = task.check_labels(e.input_ids, e.labels);
                checked.unwrap_or_else(|why| panic!("{name} {} line {}: {why}", split.name(), i + 1));
            }
        }
    }
}

#[test]
fn different_symbols_differ_in_their_letters_only() {
    let name = "counting_diffsymbol_mod10";
    let letters = |dataset: &Dataset| {
        let mut counts = vec![0; 26];
        dataset.iter().flat_map(|e| e.input_ids).for_each(|id| counts[usize::from(id - 12)] += 1);
        counts
    };
    for split in [Split::Val, Split::OodTest] {
        let ours = generate(name, split, 7);
        let uniform = vec![1.0; 26];
        assert!(chi_square(&letters(&ours), &uniform) < LEVEL, "ours, {}", split.name());
        let Some(theirs) = read(name, name, split) else { return };
        assert!(chi_square(&letters(&theirs), &uniform) < LEVEL, "theirs, {}", split.name());
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs.iter()) {
            assert_eq!((ours.length, ours.labels), (theirs.length, theirs.labels));
        }
    }
}

#[test]
fn selective_files_have_the_same_compositions_in_the_same_order() {
    let name = "counting_selective";
    let id_b = task(name).vocabulary.id("b").unwrap();
    let bs = |ids: &[u16]| ids.iter().filter(|id| **id == id_b).count();
    for split in [Split::Val, Split::OodTest] {
        let Some(theirs) = read(name, name, split) else { return };
        let ours = generate(name, split, 7);
        let composition = |e: data::ExampleRef| (e.length, bs(e.input_ids));
        let both = ours.iter().zip(theirs.iter());
        assert!(both.clone().all(|(ours, theirs)| composition(ours) == composition(theirs)), "{}", split.name());
        // the arrangement: how many b stand in the first half of sequences of 40 and more
        let early = |e: data::ExampleRef| bs(&e.input_ids[..e.input_ids.len() / 2]);
        let long = both.filter(|(e, _)| e.length >= 40);
        let (a, b): (Vec<_>, Vec<_>) = long.map(|(ours, theirs)| (early(ours), early(theirs))).unzip();
        same_distribution("b in the first half", &a, &b);
    }
}

#[test]
fn the_held_out_cells_of_counting() {
    for name in ["counting_samesymbol", "counting_samesymbol_padhelper"] {
        let task = task(name);
        let addon = |e: data::ExampleRef| (e.length, *e.input_ids.last().unwrap());
        let cells = |dataset: &Dataset| dataset.iter().map(addon).collect::<HashSet<_>>();
        let possible = |(c, k): &(u32, u16)| (1..=50).contains(c) && *k >= 1 && c + u32::from(*k) <= 100;
        let ours = cells(&generate(name, Split::Val, 7));
        assert!(ours.len() == 300 && ours.iter().all(possible));
        let Some(theirs) = read(name, name, Split::Val) else { return };
        let (theirs, order): (HashSet<_>, Vec<_>) = (cells(&theirs), theirs.iter().map(addon).collect());
        assert!(theirs.len() == 300 && theirs.iter().all(possible));
        assert!(!order.is_sorted(), "{}: validation cells are in random order", task.name);
        let counts = |cells: &HashSet<(u32, u16)>| cells.iter().map(|(c, _)| *c as usize / 10).collect::<Vec<_>>();
        same_distribution("held-out counts", &counts(&ours), &counts(&theirs));
    }
}

/// P(c, k) ∝ 1 / (100 − c) on the pairs that are not held out.
#[test]
fn training_cells_are_drawn_as_written() {
    let name = "counting_samesymbol";
    let cell = |e: data::ExampleRef| (e.length, *e.input_ids.last().unwrap());
    let val: HashSet<_> = generate(name, Split::Val, 3).iter().map(cell).collect();
    let mut counts = HashMap::new();
    Dataset::generated(&task(name), Split::Train, 3, 300_000)
        .unwrap()
        .iter()
        .for_each(|e| *counts.entry(cell(e)).or_default() += 1);
    let cells: Vec<(u32, u16)> = (1..=50).flat_map(|c| (1..=100 - c as u16).map(move |k| (c, k))).collect();
    let cells: Vec<(u32, u16)> = cells.into_iter().filter(|cell| !val.contains(cell)).collect();
    assert_eq!((cells.len(), counts.len()), (3425, 3425));
    let found: Vec<usize> = cells.iter().map(|cell| counts[cell]).collect();
    let expected: Vec<f64> = cells.iter().map(|(c, _)| 1.0 / f64::from(100 - c)).collect();
    assert!(chi_square(&found, &expected) < LEVEL);
}

#[test]
fn ten_items_are_drawn_from_the_published_distribution() {
    for name in ["counting_selective_10items2", "counting_selective_10items2bos"] {
        for split in [Split::Val, Split::OodTest] {
            let ours = (1..=5).map(|seed| generate(name, split, seed)).collect::<Vec<_>>();
            let Some(theirs) = read(name, name, split) else { return };
            let order = |d: &Dataset| d.iter().map(|e| e.length).take(theirs.len()).collect::<Vec<_>>();
            assert_eq!(order(&ours[0]), order(&theirs), "{name} {}", split.name());
            type Statistic = fn(&[usize; 10]) -> usize;
            let statistics: [(&str, Statistic); 4] = [
                ("rarest item", |counts| *counts.iter().min().unwrap()),
                ("commonest item", |counts| *counts.iter().max().unwrap()),
                ("missing items", |counts| counts.iter().filter(|n| **n == 0).count()),
                ("item 3", |counts| counts[3]),
            ];
            for (what, statistic) in statistics {
                for lengths in [1..=20, 21..=50, 51..=75, 76..=100] {
                    let values = |d: &Dataset| -> Vec<usize> {
                        let items = d.iter().filter(|e| lengths.contains(&e.length)).map(counts);
                        items.map(|counts| statistic(&counts)).collect()
                    };
                    let ours: Vec<usize> = ours.iter().flat_map(values).collect();
                    let what = format!("{name} {} {lengths:?}: {what}", split.name());
                    same_distribution(&what, &ours, &values(&theirs));
                }
            }
        }
    }
}

fn counts(e: data::ExampleRef) -> [usize; 10] {
    let mut counts = [0; 10];
    e.input_ids.iter().filter(|id| **id < 10).for_each(|id| counts[usize::from(*id)] += 1);
    counts
}

/// The filter of the first design, against drawing and rejecting as the paper's code does.
#[test]
fn ten_items_are_drawn_as_by_rejection() {
    use rand::RngExt;
    let rng = &mut data::stream_rng(11, "rejection", 0);
    let rejection = |smallest: usize, probabilities: &[f64]| probabilities.get(smallest).copied().unwrap_or(0.0);
    // stars and bars: nine bars among n + 9 places
    let mut composition = |n: usize, probabilities: &[f64]| loop {
        let mut bars = rand::seq::index::sample(rng, n + 9, 9).into_vec();
        bars.sort_unstable();
        bars.push(n + 9);
        let parts: Vec<usize> = (0..10).map(|i| if i == 0 { bars[0] } else { bars[i] - bars[i - 1] - 1 }).collect();
        let smallest = *parts.iter().min().unwrap();
        if parts.iter().all(|p| *p <= 10) && rng.random::<f64>() >= rejection(smallest, probabilities) {
            return parts;
        }
    };
    let task = task("counting_selective_10items");
    let smallest_and_item = |parts: &[usize]| parts.iter().min().unwrap() * 11 + parts[4];
    for n in [21, 40, 50] {
        let plain: Vec<usize> =
            (0..3000).map(|_| smallest_and_item(&composition(n, &[0.9995, 0.985, 0.8, 0.2]))).collect();
        let examples = task.examples(Split::Train, 5);
        let ours: Vec<usize> =
            (0..20_000).map(|i| smallest_and_item(&counts(examples(i * 50 + n - 1).as_ref()))).collect();
        same_distribution(&format!("train {n}"), &ours, &plain);
    }
    for n in [51, 80] {
        let plain: Vec<usize> =
            (0..3000).map(|_| smallest_and_item(&composition(100 - n, &[0.99, 0.5, 0.2]))).collect();
        let examples = task.examples(Split::OodTest, 5);
        let missing = |e: Example| counts(e.as_ref()).map(|n| 10 - n);
        let ours: Vec<usize> = (0..20_000).map(|i| smallest_and_item(&missing(examples(i * 49 + n - 51)))).collect();
        same_distribution(&format!("ood {n}"), &ours, &plain);
    }
}

/// The number of lines and of unseen labelled positions of ood_test, and the longest validation input, of published
/// files.
#[test]
fn what_a_loader_finds() {
    for (name, lines, max_seen_len, unseen) in [
        ("counting_samesymbol", 1225, 51, 20_825),
        ("counting_samesymbol_padhelper", 1225, 51, 20_825),
        ("counting_samesymbol_blankhelper", 1225, 101, 0),
        ("counting_samesymbol_shiftedstart2", 1225, 51, 19_600),
        ("counting_samesymbol_shiftedstart3", 1225, 51, 19_600),
        ("counting_samesymbol_shiftedstart3_padhelper", 1225, 51, 20_825),
        ("counting_samesymbol_shiftedstart4_addbigram_blkseq", 300, 51, 7056),
        ("counting_samesymbol_shiftedstart3__tr50_te100__", 2500, 51, 61_250),
        ("counting_samesymbol_plain3_addbigram", 49, 51, 1176),
        ("counting_samesymbol_mod10", 50, 50, 1275),
        ("counting_samesymbol_mod10bos", 50, 51, 1225),
        ("counting_samesymbol_mod13", 66, 65, 2145),
        ("counting_diffsymbol_mod10", 2500, 50, 63_750),
        ("counting_selective", 2550, 50, 44_200),
        ("counting_selective_10items", 2989, 50, 74_725),
        ("counting_selective_10items2", 2989, 50, 74_725),
        ("counting_selective_10items2bos", 2989, 51, 71_736),
        ("counting_selective_modular_4items", 3000, 64, 192_000),
    ] {
        let task = task(name);
        let ood = generate(name, Split::OodTest, 0);
        let val = generate(name, Split::Val, 0);
        assert_eq!((ood.len(), val.max_seen_len()), (lines, max_seen_len), "{name}");
        assert_eq!(task.max_seen_len(0).unwrap(), max_seen_len);
        assert_eq!(unseen_positions(&ood, max_seen_len), unseen, "{name}");
    }
    for (name, lines, unseen) in [
        ("counting_selective", 1275, 22_100),
        ("counting_selective_10items2", 1470, 36_750),
        ("counting_selective_10items2bos", 1470, 35_280),
    ] {
        let (Some(val), Some(ood)) = (read(name, name, Split::Val), read(name, name, Split::OodTest)) else { return };
        assert_eq!((ood.len(), unseen_positions(&ood, val.max_seen_len())), (lines, unseen), "{name}");
    }
}

fn unseen_positions(dataset: &Dataset, max_seen_len: usize) -> usize {
    let labelled = |e: data::ExampleRef| e.labels.iter().filter(|l| **l >= 0).count();
    dataset.iter().map(|e| labelled(e).saturating_sub(max_seen_len)).sum()
}

/// A standard normal beyond this has probability 10⁻³ (one-sided): the level of every test here.
pub(crate) const LEVEL: f64 = 3.09;

/// How far `found` is from counts in proportion to `weights`, as a standard normal: Pearson's χ² by the cube root of
/// Wilson and Hilferty (PNAS 17, 1931): ((χ²/k)^(1/3) − (1 − 2/9k)) / √(2/9k) with k degrees of freedom.
pub(crate) fn chi_square(found: &[usize], weights: &[f64]) -> f64 {
    let n: usize = found.iter().sum();
    let whole: f64 = weights.iter().sum();
    let term = |(f, w): (&usize, &f64)| {
        let expected = n as f64 * w / whole;
        (*f as f64 - expected).powi(2) / expected
    };
    to_normal(found.iter().zip(weights).map(term).sum(), found.len() - 1)
}

fn to_normal(chi_square: f64, degrees: usize) -> f64 {
    let k = degrees as f64;
    ((chi_square / k).cbrt() - (1.0 - 2.0 / (9.0 * k))) / (2.0 / (9.0 * k)).sqrt()
}

/// The two-sample χ² test; values that are seldom are taken together with their neighbours.
fn same_distribution(what: &str, a: &[usize], b: &[usize]) {
    let highest = a.iter().chain(b).max().copied().unwrap_or(0);
    let histogram = |values: &[usize]| {
        let mut counts = vec![0.0; highest + 1];
        values.iter().for_each(|v| counts[*v] += 1.0);
        counts
    };
    let ratio = b.len() as f64 / a.len() as f64;
    let mut bins: Vec<(f64, f64)> = vec![];
    let (mut rest, mut open) = ((0.0, 0.0), true);
    for (x, y) in histogram(a).into_iter().zip(histogram(b)) {
        rest = (rest.0 + x, rest.1 + y);
        open = (rest.0 + rest.1) * ratio / (1.0 + ratio) < 5.0; // expected of the second sample
        if !open {
            bins.push(std::mem::take(&mut rest));
        }
    }
    if let (true, Some(last)) = (open, bins.last_mut()) {
        *last = (last.0 + rest.0, last.1 + rest.1);
    }
    if bins.len() < 2 {
        return; // a constant
    }
    let scale = ratio.sqrt();
    let chi_square = bins.iter().map(|(x, y)| (x * scale - y / scale).powi(2) / (x + y)).sum();
    let normal = to_normal(chi_square, bins.len() - 1);
    assert!(normal < LEVEL, "{what}: {normal:.2} standard deviations, {bins:?}");
}

#[test]
fn the_test_of_distributions_finds_a_difference() {
    let draws = |seed, limit: usize| {
        use rand::RngExt;
        let mut rng = data::stream_rng(seed, "test", 0);
        (0..2000).map(|_| rng.random_range(0..limit)).collect::<Vec<_>>()
    };
    same_distribution("the same", &draws(0, 10), &draws(1, 10));
    assert!(std::panic::catch_unwind(|| same_distribution("others", &draws(0, 10), &draws(1, 11))).is_err());
}
