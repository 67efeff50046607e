//! The presets against the paper's table of tasks; examples by hand; the syntax of names.

use data::{Split, Task, TaskConfig};
use std::collections::HashSet;

fn task(name: &str) -> Task {
    Task::by_name(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Vocabulary size, max_position_embeddings and max_seq_len of every task.
fn sizes(name: &str) -> (usize, usize, usize) {
    if let Some(rest) = name.strip_prefix("counting_selective") {
        return match rest {
            "" => (54, 128, 128),
            "_padhelper" => (54, 128, 210),
            "_10items" | "_10items2" => (11, 128, 128),
            "_10items_padhelper" | "_10items_padhelper2" => (11, 128, 210),
            "_10items2bos" => (12, 128, 128),
            "_modular_4items" => (5, 130, 130),
            _ => panic!("{name}"),
        };
    }
    if let Some((symbols, rest)) = name.split_once("symbol_mod") {
        let letters = if symbols.ends_with("diff") { 28 } else { 3 };
        let modulus: usize = rest[..2].parse().unwrap();
        let (positions, tokens) = match rest {
            "10" | "11" | "10bos" => (128, 128),
            "10_100_200" => (256, 256),
            "10_padhelper" => (128, 210),
            "13" => (140, 140),
            "14" => (150, 150),
            "15" => (160, 160),
            "16" | "17" => (180, 180),
            "18" => (190, 190),
            "19" => (200, 200),
            "20" => (210, 210),
            _ => panic!("{name}"),
        };
        return (modulus + letters, positions, tokens);
    }
    match name {
        "debug" => (6, 128, 128),
        "counting_raspL" => (160, 256, 256),
        "counting_diffsymbol" => (128, 128, 128),
        "counting_diffsymbol_addbigram" | "counting_diffsymbol_shiftedstart" => (129, 128, 128),
        "counting_samesymbol_shiftedstart3__tr25_te50__" => (53, 64, 64),
        "counting_samesymbol_shiftedstart3__tr25_te200__" | "counting_samesymbol_shiftedstart3__tr50_te200__" => {
            (203, 256, 256)
        }
        _ if name.ends_with("blkseq") || name.ends_with("nullseq") => (104, 128, 128),
        "counting_samesymbol_blankhelper" => (104, 128, 210),
        _ if name.contains("padhelper") => (103, 128, 210),
        _ => (103, 128, 128),
    }
}

#[test]
fn all_68_tasks_have_the_published_vocabularies_and_sizes() {
    let names: HashSet<&str> = Task::names().filter(|name| !name.contains('/')).collect();
    assert_eq!((names.len(), Task::names().filter(|name| !name.contains('/')).count()), (68, 68));
    for name in Task::names().filter(|name| name.contains('/')) {
        assert_eq!(task(name).name, name);
    }
    let count = |prefix: &str| names.iter().filter(|n| n.starts_with(prefix)).count();
    let counts = ["counting_samesymbol", "counting_diffsymbol", "counting_selective", "counting_raspL", "debug"];
    assert_eq!(counts.map(count), [43, 15, 8, 1, 1]);
    for name in names {
        let task = task(name);
        assert_eq!(task.name, name);
        assert_eq!((task.vocabulary.len(), task.max_position_embeddings, task.max_seq_len), sizes(name), "{name}");
    }
}

#[test]
fn vocabularies_in_order() {
    let tail = |name: &str, n: usize| {
        let task = task(name);
        let tokens = task.vocabulary.tokens();
        tokens[tokens.len() - n..].join(" ")
    };
    assert_eq!(tail("counting_samesymbol", 3), "100 <pad> a");
    assert_eq!(tail("counting_samesymbol_blankhelper", 3), "<pad> a <blk>");
    assert_eq!(tail("counting_samesymbol_plain3_addbigram_blkseq", 3), "<pad> a <b>");
    assert_eq!(tail("counting_selective_10items2bos", 4), "8 9 <bos> <pad>");
    assert_eq!(tail("counting_raspL", 5), "155 <pad> < <eos> <sos>");
    assert_eq!(tail("debug", 6), "<pad> a b 1 2 3");
    let nullseq = task("counting_samesymbol_shiftedstart4_addbigram_nullseq").vocabulary;
    assert_eq!((nullseq.id("<null>"), nullseq.id("7"), nullseq.id("a")), (Some(0), Some(8), Some(103)));
    let dead = task("counting_diffsymbol_shiftedstart");
    assert_eq!(
        (dead.vocabulary.id("a"), dead.vocabulary.id("z"), dead.vocabulary.token(102)),
        (Some(103), Some(128), Some("a"))
    );
    for split in Split::ALL {
        let examples = dead.examples(split, 0);
        assert!((0..600).all(|i| !examples(i).input_ids.contains(&102)));
    }
}

/// An example as tokens and labels, both joined with blanks.
fn shown(task: &Task, split: Split, index: usize) -> (String, String) {
    let e = task.examples(split, 0)(index);
    let token = |id: u16| task.vocabulary.token(id).unwrap();
    let inputs: Vec<&str> = e.input_ids.iter().map(|id| token(*id)).collect();
    let labels: Vec<&str> = e.labels.iter().map(|l| u16::try_from(*l).map_or("-1", token)).collect();
    (inputs.join(" "), labels.join(" "))
}

#[test]
fn examples_by_hand() {
    let first = |name: &str, split, index| shown(&task(name), split, index);
    let numbers = |range: std::ops::RangeInclusive<u32>| range.map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let repeat = |token: &str, n| vec![token; n].join(" ");

    let (input, labels) = first("counting_samesymbol", Split::OodTest, 0);
    assert_eq!((input, labels), (repeat("a", 51) + " 1", numbers(1..=51) + " 52"));
    let (input, labels) = first("counting_samesymbol_padhelper", Split::OodTest, 1);
    assert!(input.ends_with("a <pad> a <pad> 2") && labels.ends_with("-1 50 -1 51 53"), "{input}: {labels}");
    let (input, labels) = first("counting_samesymbol_shiftedstart2_padhelper", Split::OodTest, 1);
    assert!(input.starts_with("2 <pad> a <pad> a") && labels.starts_with("-1 2 -1 3 -1 4"), "{input}: {labels}");
    let (input, labels) = first("counting_samesymbol_shiftedstart", Split::OodTest, 1);
    assert_eq!((input, labels), ("1 ".to_owned() + &repeat("a", 51), "-1 ".to_owned() + &numbers(2..=52)));
    let shifted4 = "counting_samesymbol_shiftedstart4_addbigram_blkseq";
    assert_eq!(first(shifted4, Split::Val, 49), ("50 a".into(), "-1 51".into()));
    assert_eq!(first("counting_samesymbol_mod10bos", Split::Val, 1), ("0 a a".into(), "-1 1 2".into()));
    assert_eq!(first("counting_samesymbol_mod10", Split::Val, 11).1, "1 2 3 4 5 6 7 8 9 10 1 2");
    assert_eq!(first("debug", Split::OodTest, 0), ("a b b a a".into(), "1 1 2 2 3".into()));

    let aux = |name: &str, index| {
        let task = task(name);
        shown(&task, Split::Auxiliary(task.auxiliary.as_ref().unwrap().kind), index)
    };
    assert_eq!(aux("counting_samesymbol_addbigram", 9), (numbers(1..=99), numbers(2..=100)));
    let plain_null = aux("counting_samesymbol_plain2_addbigram_nullseq", 0);
    assert_eq!(plain_null, ("1 ".to_owned() + &repeat("<null>", 99), numbers(1..=100)));
    assert_eq!(aux(shifted4, 49), ("50 ".to_owned() + &repeat("<b>", 50), numbers(50..=100)));
    assert_eq!(aux("counting_samesymbol_shiftedstart3_addtablelarge", 99), ("2 1".into(), "2 3".into()));
    let helped = aux("counting_samesymbol_padhelper_addtable", 4949);
    assert_eq!(helped, ("99 <pad> 1 <pad>".into(), "-1 99 -1 100".into()));
}

#[test]
fn the_label_rules_on_sequences_of_the_paper() {
    let labels = |name: &str, input: &str| {
        let task = task(name);
        let ids: Vec<u16> = input.split(' ').map(|t| task.vocabulary.id(t).unwrap()).collect();
        let labels = task.family.labels(&ids).unwrap_or_else(|e| panic!("{name}: {e}"));
        let label = |l: &i16| u16::try_from(*l).map_or("-1", |l| task.vocabulary.token(l).unwrap());
        labels.iter().map(label).collect::<Vec<_>>().join(" ")
    };
    for (name, input, expected) in [
        ("counting_samesymbol", "a a a 4", "1 2 3 7"),
        ("counting_samesymbol_blankhelper", "a <blk> a <blk> 4", "-1 1 -1 2 6"),
        ("counting_samesymbol_shiftedstart3", "7 a a a", "-1 8 9 10"),
        ("counting_samesymbol_shiftedstart3_padhelper", "7 <pad> a <pad>", "-1 7 -1 8"),
        ("counting_samesymbol_plain2_addbigram_nullseq", "1 a a", "-1 2 3"),
        ("counting_diffsymbol_mod10", "x y a", "1 2 3"),
        ("counting_selective", "a b b a b", "1 1 2 2 3"),
        ("counting_selective_10items", "7 4 7 7", "0 0 1 2"),
        ("counting_selective_10items2bos", "<bos> 7 4 7", "-1 0 0 1"),
        ("counting_selective_modular_4items", "2 2 2 2 2 0", "0 1 2 3 0 0"),
        ("counting_raspL", "<sos> 3 5 < 3 4 5", "3 5 < 3 4 5 <eos>"),
        ("counting_raspL", "<sos> 0 1 < 0 1 <eos> <sos> 7", "0 1 < 0 1 <eos> <sos> 7 -1"),
    ] {
        assert_eq!(labels(name, input), expected, "{name}: {input}");
    }
}

#[test]
fn sequences_of_no_task() {
    for (name, input, part) in [
        ("counting_samesymbol", "3 a a", "starts with a number"),
        ("counting_samesymbol", "a 4 a", "not of the form"),
        ("counting_samesymbol", "a a 99", "past the last number 100"),
        ("counting_samesymbol_padhelper", "a a <pad>", "helper tokens"),
        ("counting_samesymbol_shiftedstart3", "a a", "does not start with a number"),
        ("counting_samesymbol_mod10bos", "a a", "does not start with `0`"),
        ("counting_selective_10items2bos", "1 2", "`<bos>`"),
        ("counting_selective_10items", "1 1 1 1 1 1 1 1 1 1 1", "`1` occurs 11 times"),
        ("counting_raspL", "<sos> 5 3 <", "token 2 does not continue"),
        ("counting_raspL", "<sos> 3 5 < 4", "token 4 does not continue"),
        ("debug", "a a a a", "at most three times"),
    ] {
        let task = task(name);
        let ids: Vec<u16> = input.split(' ').map(|t| task.vocabulary.id(t).unwrap()).collect();
        let error = task.family.labels(&ids).unwrap_err();
        assert!(error.contains(part), "{name}: {input}: {error}");
    }
}

/// Train, val and ood_test examples where the paper's code makes a million (or its own number) of main ones.
#[test]
fn split_sizes_and_proportions() {
    for (name, expected) in [
        ("counting_samesymbol", [1_000_000, 300, 1225]),
        ("counting_samesymbol_shiftedstart", [1_000_000, 600, 2450]),
        ("counting_samesymbol_shiftedstart2", [1_000_000, 300, 1225]),
        ("counting_samesymbol_shiftedstart3", [1_000_000, 50, 1225]),
        ("counting_samesymbol_shiftedstart3__tr25_te50__", [38_461 * 26, 26, 1250]),
        ("counting_samesymbol_shiftedstart3__tr25_te100__", [13_157 * 76, 76, 3750]),
        ("counting_samesymbol_shiftedstart3__tr50_te100__", [19_607 * 51, 51, 2500]),
        ("counting_samesymbol_shiftedstart3__tr25_te200__", [5_681 * 176, 176, 8750]),
        ("counting_samesymbol_shiftedstart3__tr50_te200__", [6_622 * 151, 151, 7500]),
        ("counting_samesymbol_shiftedstart4_addbigram_blkseq", [200_000, 300, 300]),
        ("counting_samesymbol_plain_addbigram", [1_100_000, 10, 50]),
        ("counting_samesymbol_plain2_addbigram_nullseq", [1_100_000, 10, 49]),
        ("counting_samesymbol_plain3_addbigram", [200_000, 10, 49]),
        ("counting_samesymbol_plain3_nobos_addbigram", [200_000, 10, 49]),
        ("counting_samesymbol_padhelper_addtable", [1_099_000, 300, 1225]),
        ("counting_samesymbol_shiftedstart3_addtablelarge", [1_499_950, 50, 1225]),
        ("counting_samesymbol_mod10", [1_000_000, 300, 50]),
        ("counting_samesymbol_mod13", [15_384 * 65, 260, 66]),
        ("counting_diffsymbol_mod13", [15_384 * 65, 260, 1980]),
        ("counting_diffsymbol_mod16", [1_000_000, 240, 2800]),
        ("counting_diffsymbol_mod10_padhelper", [1_000_000, 300, 50]),
        ("counting_samesymbol_mod10_100_200", [1_000_000, 300, 100]),
        ("counting_selective", [999_600, 1275, 2550]),
        ("counting_selective_10items", [1_000_000, 2000, 2989]),
        ("counting_selective_10items2", [1_000_000, 2000, 2989]),
        ("counting_selective_modular_4items", [1_000_000, 2000, 3000]),
        ("counting_raspL", [1_000_000, 300, 5565]),
        ("debug", [8, 8, 8]),
    ] {
        let task = task(name);
        let rows = Split::ALL.map(|split| task.rows(split, task.train_examples).unwrap());
        assert_eq!(rows, expected, "{name}");
    }
    let error = task("counting_samesymbol_mod10").rows(Split::Train, 3).unwrap_err().to_string();
    assert!(error.contains("at least 50"), "{error}");
    let other = Split::Auxiliary(data::Auxiliary::Addtable);
    let error = task("counting_samesymbol_addbigram").rows(other, 0).unwrap_err().to_string();
    assert!(error.contains("it has train, val, ood_test, addbigram_test"), "{error}");
}

#[test]
fn auxiliary_data_keeps_its_proportion_and_is_spread_evenly() {
    for name in Task::names() {
        let task = task(name);
        let Some(auxiliary) = &task.auxiliary else { continue };
        let examples = task.examples(Split::Train, 0);
        let is_main = |i: usize| task.family.length(&examples(i).input_ids).is_ok();
        let rows = task.rows(Split::Train, 10_000).unwrap();
        let main = (0..rows).filter(|i| is_main(*i)).count();
        let per_main = auxiliary.examples as f64 / task.train_examples as f64;
        assert_eq!(main, 10_000, "{name}");
        assert_eq!(rows - main, (10_000.0 * per_main).round() as usize, "{name}");
        let early = (0..rows / 10).filter(|i| !is_main(*i)).count();
        assert!(early.abs_diff((rows - main) / 10) <= 1, "{name}: {early} of {} in the first tenth", rows - main);
    }
    // few of the table's 4950 sums are spread over all of it
    let task = task("counting_samesymbol_shiftedstart3_addtablelarge");
    let examples = task.examples(Split::Train, 0);
    let sums: HashSet<i16> = (0..600).map(examples).filter(|e| e.length == 2).map(|e| e.labels[1]).collect();
    assert!(sums.len() > 60, "{}", sums.len());
}

#[test]
fn names_with_settings() {
    let small = task("modular,train_max=14,modulus=7,bos=true");
    assert_eq!(small.name, "modular,bos=true,modulus=7,train_max=14");
    assert_eq!(small.vocabulary.tokens()[7..].join(" "), "7 <pad> a");
    assert_eq!(shown(&small, Split::Val, 8).1, "-1 1 2 3 4 5 6 7 1 2");
    assert_eq!(task(&small.name).parameters, small.parameters);
    assert_eq!(task("counting_samesymbol_mod10,modulus=10").name, "counting_samesymbol_mod10,modulus=10");
    assert_eq!(task("counting_samesymbol_mod10bos,bos=true").name, "counting_samesymbol_mod10bos");

    let large = task("counting_samesymbol,last_number=1000");
    assert_eq!((large.vocabulary.len(), large.max_position_embeddings, large.max_seq_len), (1003, 1001, 1000));
    assert_eq!(large.family.track(0, 0, 2000).max_length(), 1000);
    assert_eq!(task("counting_diffsymbol,helper=blk,last_number=30,train_max=10,val_cells=20").vocabulary.len(), 59);
}

#[test]
fn names_that_say_nothing() {
    for (name, part) in [
        ("counting_samesymbol_mod10boss", "did you mean `counting_samesymbol_mod10bos`?"),
        ("modula", "did you mean `modular`?"),
        ("modular,modulo=7", "there is no setting `modulo`\n  hint: did you mean `modulus`?"),
        ("modular,helpr=pad", "hint: did you mean `helper`?"),
        ("modular,modulus", "`modulus` is not a setting\n  hint: write key=value"),
        ("modular,modulus=0", "modulus = 0 is not between 1 and 30000"),
        ("modular,modulus=-1", "modulus"),
        ("modular,modulus=seven", "invalid type: string \"seven\""),
        ("modular,helper=blank", "unknown variant `blank`, expected one of `none`, `pad`, `blk`"),
        ("modular,train_max=100000000", "train_max = 100000000 is not between"),
        ("counting,train_max=100", "train_max = 100 is not between 1 and 99"),
        ("counting,train_max=3,last_number=5", "val_cells = 300 leaves nothing of the 9 pairs"),
        ("counting,last_number=40000", "last_number = 40000 is not between"),
        ("shifted_start,train=fixed_end,train_max=99,first_start=1,ood=to_last_number", "no sequence is longer"),
        ("plain,ood_max=101", "ood_max = 101 is not between 51 and 100"),
        ("selective_modular,modulus=11", "modulus = 11 is not between 2 and 10"),
        ("debug,auxiliary=addtable", "needs number words"),
        ("modular,max_seq_len=10", "max_seq_len = 10 is less than the 50 tokens"),
        ("modular,max_position_embeddings=50", "max_position_embeddings = 50 does not reach"),
        ("modular,train_examples=0", "train_examples must be at least 1"),
    ] {
        let error = Task::by_name(name).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("\n  hint: "), "{name}: {error}");
    }
    assert!("vall".parse::<Split>().unwrap_err().to_string().contains("did you mean `val`?"));
    assert_eq!("addtable_test".parse::<Split>().unwrap().name(), "addtable_test");
}

#[test]
fn the_task_table_of_a_config() {
    let read = |text: &str| toml::from_str::<TaskConfig>(text);
    let config = read("family = 'modular'\nmodulus = 7\ntrain_examples = 100\n").unwrap();
    assert_eq!((config.name.as_str(), config.train_examples, config.data_seed), ("modular,modulus=7", 100, 0));
    assert_eq!(read(&toml::to_string(&config).unwrap()).unwrap(), config);
    let config = read("name = 'counting_samesymbol_plain3_addbigram'\nlast_number = 1000").unwrap();
    assert_eq!((config.task().unwrap().vocabulary.len(), config.train_examples), (1003, 100_000));
    let config = read("name = 'modular,modulus=7'\nbos = true").unwrap();
    assert_eq!(config.name, "modular,bos=true,modulus=7");
    for (text, part) in [
        ("", "missing field `name`"),
        ("nam = 'debug'", "unknown field `nam`, expected one of `name`"),
        ("name = 'debug'\nfamily = 'debug'", "a `name` and a `family`"),
        ("name = 'debug'\nmodulus = 7", "there is no setting `modulus`"),
        ("family = 'modular'\nmodulu = 7", "did you mean `modulus`?"),
        ("name = 'debug'\ntrain_examples = -1", "train_examples"),
        ("name = 3", "strings"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}
