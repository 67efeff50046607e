//! Random bytes as checkpoints of PyTorch and as the config beside them. Coverage guidance would need a nightly or C++
//! toolchain; instead, mutations start from valid files, include pieces of the formats, and repair checksums.
//!
//! `FUZZ_SECONDS=60 cargo test --release -p models --test fuzz -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use data::stream_rng;
use models::original::Original;
use models::{Cpu, Model, StateDict, Weights};
use rand::{Rng, RngExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Instructions of pickles, and pieces of zip archives, safetensors and JSON.
const PIECES: [&[u8]; 32] = [
    b"\x80\x02",
    b"}q\x00",
    b"]q\x01",
    b"(",
    b")",
    b"t",
    b"R",
    b"Q",
    b"u",
    b"s",
    b"e",
    b"a",
    b"\x85",
    b"\x86",
    b"h\x00",
    b"\x94",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00",
    b"J\xff\xff\xff\xff",
    b"X\xff\xff\xff\xff",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\"data_offsets\":[0,18446744073709551615]",
    b"\"shape\":[4294967296,4294967296]",
    b"NaN",
    b"/*",
];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=6) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(1..=40)).min(bytes.len());
        match rng.random_range(0..8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 if at < bytes.len() => bytes[at] = rng.random(),
            3 => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, PIECES[rng.random_range(0..PIECES.len())].iter().copied())),
            5 => {
                let piece = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            6 => {
                let from = rng.random_range(0..other.len());
                let piece = &other[from..(from + 40).min(other.len())];
                drop(bytes.splice(at..end, piece.iter().copied()));
            }
            7 if rng.random_bool(0.05) => bytes.truncate(at),
            _ => {
                // A piece over what is there, so that offsets stay right.
                let piece = PIECES[rng.random_range(0..PIECES.len())];
                for (to, from) in bytes.iter_mut().skip(at).zip(piece) {
                    *to = *from;
                }
            }
        }
    }
}

/// A zip archive with one member under each name, stored, with the right checksums.
fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let offset = file.len() as u32;
        let crc = crc32(content).to_le_bytes();
        let size = (content.len() as u32).to_le_bytes();
        let length = (name.len() as u16).to_le_bytes();
        let common = [&b"\x14\0\0\0\0\0\0\0\0\0"[..], &crc, &size, &size, &length, b"\0\0"].concat();
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), content].concat());
        let attributes = [0; 10];
        directory.extend(
            [b"PK\x01\x02\x14\0", &common[..], &attributes[..], &offset.to_le_bytes(), name.as_bytes()].concat(),
        );
    }
    let count = (members.len() as u16).to_le_bytes();
    let (size, start) = ((directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes());
    file.extend(directory);
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &start, b"\0\0"].concat());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints")
}

/// The pickle of a file without zip, which begins after three others and ends before a list of keys: enough of it to be
/// put into an archive.
fn pickles() -> Vec<Vec<u8>> {
    let legacy = std::fs::read(fixtures().join("training_legacy.pt")).unwrap();
    let start = legacy.windows(2).enumerate().filter(|(_, w)| *w == b"\x80\x02").nth(3).unwrap().0;
    vec![legacy[start..].to_vec(), b"\x80\x02}q\x00X\x0e\x00\x00\x00encoder.weightq\x01Nsh\x00h\x00s.".to_vec()]
}

fn model() -> Model<Cpu> {
    let config = Original::read(&std::fs::read(fixtures().join("config.json")).unwrap()).unwrap();
    config.model.init(13, 0, &Default::default())
}

/// How much memory this process had at most, in MiB.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn fuzz(name: &str, budget: Duration) -> u64 {
    let model = model();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{}", std::process::id()));
    let json = path.with_extension("json");
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixtures()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    seeds.extend(files.iter().map(|file| std::fs::read(file).unwrap()));
    let pickles = pickles();
    let start = Instant::now();
    let mut runs = 0;
    while start.elapsed() < budget {
        let rng = &mut stream_rng(0, "fuzz", runs);
        let other = &seeds[rng.random_range(0..seeds.len())];
        let mut bytes = if rng.random_bool(0.4) {
            // Checksums that are right let a broken pickle through.
            let mut pickle = pickles[rng.random_range(0..pickles.len())].clone();
            mutate(&mut pickle, other, rng);
            zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 64]), ("a/byteorder", b"big")])
        } else {
            seeds[rng.random_range(0..seeds.len())].clone()
        };
        if rng.random_bool(0.7) {
            mutate(&mut bytes, other, rng);
        }
        for path in [&path, &json] {
            std::fs::write(path, &bytes).unwrap();
        }
        let began = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for path in [&path, &json] {
                if let Ok(fitted) = StateDict::read(path).and_then(|file| file.fit(&model)) {
                    // accepted files hold the whole model
                    fitted.weights.load_into(&mut model.clone()).unwrap();
                }
                let _ = Weights::read(path).map(|weights| weights.num_parameters());
            }
            let _ = Original::read(&bytes);
        }));
        let bad = match (outcome, began.elapsed().as_secs(), peak_mib()) {
            (Err(_), ..) => "panicked",
            (_, 5.., _) => "took seconds",
            (.., Some(1500..)) => "took more than a GiB of memory",
            _ => "",
        };
        if !bad.is_empty() {
            let keep = std::env::temp_dir().join(format!("fuzz-{runs}"));
            std::fs::write(&keep, &bytes).unwrap();
            panic!("run {runs} {bad}; its input is {}", keep.display());
        }
        runs += 1;
    }
    for path in [path, json] {
        std::fs::remove_file(path).unwrap();
    }
    runs
}

#[test]
fn a_moment_of_fuzzing() {
    assert!(fuzz("moment", Duration::from_secs(2)) > 0);
}

#[test]
#[ignore = "runs for FUZZ_SECONDS"]
fn fuzz_for_a_while() {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(60, |s| s.parse().unwrap());
    println!("{} inputs in {seconds} s", fuzz("while", Duration::from_secs(seconds)));
}

/// Small files that claim large sizes.
#[test]
fn small_files_that_ask_for_much_get_little() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bomb-{}.pt", std::process::id()));
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let storage = [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        b"J\xff\xff\xff\x7ftQK\x00(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft(K\x00K\x00t\x89}tR".to_vec(),
    ]
    .concat();
    // A tensor of 2^62 elements in a storage of 64 bytes.
    let large = [b"\x80\x02}".to_vec(), text("encoder.weight"), storage, b"s.".to_vec()].concat();
    // Dicts that hold the one before twice: 2^40 ways to the innermost.
    let mut doubled = b"\x80\x02}r\x00\x00\x00\x00".to_vec();
    for i in 0..12_u32 {
        doubled.extend([b"}r".to_vec(), (i + 1).to_le_bytes().to_vec()].concat());
        for j in 0..40 {
            doubled.extend([text(&format!("k{j}")), b"j".to_vec(), i.to_le_bytes().to_vec(), b"s".to_vec()].concat());
        }
    }
    doubled.push(b'.');
    // One list of pairs, made into a dict again and again.
    let pairs = [b"]q\x00(".to_vec(), b"K\x01K\x02\x86".repeat(100_000), b"e".to_vec()].concat();
    let copies =
        [b"\x80\x02(".to_vec(), pairs, b"ccollections\nOrderedDict\nh\x00\x85R".repeat(10_000), b"t.".to_vec()];
    for (what, pickle) in [("a large tensor", large), ("shared dicts", doubled), ("copies", copies.concat())] {
        std::fs::write(&path, zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 64])])).unwrap();
        let began = Instant::now();
        assert!(StateDict::read(&path).and_then(|file| file.fit(&model())).is_err(), "{what}");
        assert!(Weights::read(&path).is_err(), "{what}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", began.elapsed());
    }
    // And files without an archive: a header of dots, where names may be split.
    let name = "a.".repeat(2_000_000);
    let header = format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}}}");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let began = Instant::now();
    assert!(StateDict::read(&path).and_then(|file| file.fit(&model())).is_err());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    std::fs::remove_file(path).unwrap();
}
