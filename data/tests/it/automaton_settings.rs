//! The settings of the family `automaton`: what is refused, what a user writes, and where labels stand.

use crate::automata::{ids, labels, task};
use data::Task;

#[test]
fn wrong_settings_are_refused_by_name() {
    let parity = r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],output=["e","o"]"#;
    task(parity);
    for (settings, part) in [
        ("automaton", "no automaton is given"),
        (r#"automaton,step=[[0]],output=["x"]"#, "alphabet is missing"),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1]],output=["e","o"]"#, "row of state `1` has 1 columns"),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,2]],output=["e","o"]"#, "state `1` goes to 2 with `1`"),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,-2]],output=["e","o"]"#, "goes to -2"),
        (
            r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],output=["e"]"#,
            "output has 1 labels, but there are 2 states",
        ),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]]"#, "output has 0 labels"),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],output=["",""]"#, "output labels no state"),
        (r#"automaton,alphabet=["0","0"],step=[[0,1],[1,0]],output=["e","o"]"#, "alphabet: `0` is there twice"),
        (r#"automaton,alphabet=["0","<pad>"],step=[[0,1],[1,0]],output=["e","o"]"#, "alphabet: `<pad>`"),
        (r#"automaton,alphabet=["0",""],step=[[0,1],[1,0]],output=["e","o"]"#, "alphabet: a name is empty"),
        (r#"automaton,alphabet=["0","1"],step=[[0,0],[1,0]],output=["e","o"]"#, "no string leads to state `1`"),
        (
            r#"automaton,alphabet=["0","1"],states=["a"],step=[[0,1],[1,0]],output=["e","o"]"#,
            "step has 2 rows, but there are 1 states",
        ),
        (
            r#"automaton,alphabet=["0","1"],states=["a","a"],step=[[0,1],[1,0]],output=["e","o"]"#,
            "states: `a` is there twice",
        ),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],output=["e","-1"]"#, "output: `-1`"),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],kind=acceptor"#, "accept is missing"),
        (
            r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],kind=acceptor,accept=["x"]"#,
            "accept: there is no state `x`",
        ),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],kind=acceptor,accept=[1]"#, "accept is neither"),
        (
            r#"automaton,alphabet=["0","1"],step=[[0,1],[1,0]],kind=acceptor,accept=[0,0],sampler=accepted"#,
            "no string is accepted",
        ),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[1,-1]],output=["e","o"]"#, "\"uniform\" draws letters"),
        (r#"automaton,alphabet=["0","1"],step=[[0,1],[-1,-1]],output=["e","o"],sampler=walk"#, "no letter leads on"),
        (
            r#"automaton,alphabet=["0","1"],step=[[1,-1],[-1,-1]],output=["e","o"],sampler=accepted"#,
            "test_lengths: no sequence has a length of 41..100",
        ),
        ("automaton,group=S9", "9 is not between 1 and 6"),
        ("automaton,group=M11", "`M11` is no group"),
        ("automaton,group=S6xZ2", "it has 1440 elements"),
        ("automaton,group=S3,step=[[0]]", "step and group both"),
        (r#"automaton,group=S3,output=["x"]"#, "output goes with `step`"),
        ("automaton,generators=[[1,1]]", "[1, 1] is no permutation"),
        ("automaton,generators=[[2,1],[2,3,1]]", "[2, 3, 1] is no permutation of 1..2"),
        ("automaton,group=S3,only_generators=true", "only_generators goes with"),
        ("automaton,blocks=0", "blocks = 0 is not between"),
        ("automaton,blocks=3", "\"uniform\" draws letters"),
        ("automaton,blocks=3,sampler=flip_flop", "for 5 letters"),
        ("automaton,group=S3,sampler=blocks", "goes with `blocks`"),
        ("automaton,group=Z2,emit=often", "emit = \"often\" is none of"),
        ("automaton,group=Z2,emit=after:7", "there is no such letter"),
        ("automaton,group=Z2,bos=1", "invalid type"),
        ("automaton,group=Z2,bos=\"1\"", "bos: `1` is a letter as well"),
        ("automaton,group=Z2,score_bos=true", "score_bos goes with"),
        ("automaton,group=Z2,blank=\"1\",emit=slot", "blank: `1` is a letter"),
        ("automaton,group=Z2,train_lengths=9..1", "runs backwards"),
        ("automaton,group=Z2,train_lengths=x", "`x` is no number"),
        ("automaton,group=Z2,train_lengths=0..5", "is not between 1 and 100000"),
        ("automaton,group=Z2,val_examples=0", "val_examples = 0"),
        ("automaton,group=Z2,ignore=1.5", "ignore = 1.5"),
    ] {
        let error = Task::by_name(settings).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{settings}"));
        assert!(error.contains(part) && error.contains("\n  hint: "), "{settings}: {error}");
    }
}

#[test]
fn a_users_own_automaton_is_twelve_lines() {
    let text = r#"
        family = "automaton"
        alphabet = ["a", "b"]
        states = ["none", "one", "two"]
        start = "none"
        step = [
          [0, 1],
          [1, 2],
          [2, 0],
        ]
        output = ["0", "1", "2"]
        emit = "each"
        train_lengths = "1..30"
        test_lengths = "31..200"
    "#;
    let config: data::TaskConfig = toml::from_str(text).unwrap();
    assert!(
        config.name.contains(r#",alphabet=["a","b"],"#) && config.name.contains(",step=[[0,1],[1,2],[2,0]],"),
        "{}",
        config.name
    );
    let own = config.task().unwrap();
    assert_eq!(task(&own.name).parameters, own.parameters);
    assert_eq!(labels(&own, &ids(&own, "a b b a b a"), 0).join(" "), "0 1 2 2 0 0");
    let again: data::TaskConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert_eq!((own.family.train_max_length(), own.family.chance(7)), (30, Some(1.0 / 3.0)));
}

#[test]
fn labels_stand_where_emit_says() {
    let of = |emit: &str, input: &str| {
        let task =
            task(&format!(r#"automaton,alphabet=["a","b"],step=[[0,1],[1,0]],output=["e","o"],bos="^",emit={emit}"#));
        labels(&task, &ids(&task, input), 0).join(" ")
    };
    assert_eq!(of("each", "^ b a b"), "-1 o o e");
    assert_eq!(of("each,score_bos=true", "^ b a b"), "e o o e");
    assert_eq!(of("after:a", "^ b a b a"), "-1 -1 o -1 e");
    assert_eq!(of("end", "^ b a b b"), "-1 -1 -1 -1 o");
    assert_eq!(of("slot", "^ b a b b E"), "-1 -1 -1 -1 -1 o");
    assert_eq!(of("slot,blank=?,score_bos=true", "^ b ?"), "e -1 o");
}
