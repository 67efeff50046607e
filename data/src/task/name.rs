//! Names of tasks: a preset or a family, then settings as `,key=value`. Values are TOML or bare words; brackets and
//! quotes protect the commas in them.

use crate::DataError;
use toml::{Table, Value};

/// The preset or family of a name, and the settings after it.
///
/// # Errors
/// A part is not of the form key=value, a setting is given twice, or a bracket or quote is not closed.
pub(super) fn parse_name(name: &str) -> Result<(&str, Table), DataError> {
    let hint = "write key=value, for example modular,modulus=7";
    let wrong =
        |reason: String, hint: &str| DataError::TaskSetting { task: name.to_owned(), reason, hint: hint.into() };
    let (base, rest) = name.split_once(',').unwrap_or((name, ""));
    let mut settings = Table::new();
    for part in split(rest).map_err(|reason| wrong(reason, hint))?.into_iter().filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| wrong(format!("`{part}` is not a setting"), hint))?;
        let (key, value) = (key.trim(), value.trim());
        if let Some(first) = settings.insert(key.to_owned(), parse_value(value)) {
            let reason = format!("`{key}` is set twice, to {} and to {value}", show(&first));
            return Err(wrong(reason, "leave out one of them"));
        }
    }
    Ok((base.trim(), settings))
}

/// The parts between commas that are in no brackets and no quotes.
///
/// # Errors
/// A bracket or quote is not closed, or closes nothing.
pub(crate) fn split(settings: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut begin, mut open) = (vec![], 0, vec![]);
    let mut quote: Option<char> = None;
    let mut escaped = false;
    let mut in_value = false;
    for (at, c) in settings.char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some('"'), '\\') => escaped = true,
            (Some(end), c) if c == end => quote = None,
            (Some(_), _) => {}
            // an apostrophe within a bare word is one
            (None, '"' | '\'') if !open.is_empty() || in_value => quote = Some(c),
            (None, '[' | '{') => open.push(if c == '[' { ']' } else { '}' }),
            (None, ']' | '}') => {
                let closed = open.pop();
                if closed != Some(c) {
                    return Err(format!("`{c}` closes nothing in `{settings}`"));
                }
            }
            (None, ',') if open.is_empty() => {
                parts.push(&settings[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
        // a quoted value begins right after `=`
        in_value = c == '=' || (in_value && c.is_whitespace());
    }
    match (quote, open.pop()) {
        (Some(c), _) | (None, Some(c)) => Err(format!("`{c}` is missing at the end of `{settings}`")),
        (None, None) => {
            parts.push(&settings[begin..]);
            Ok(parts)
        }
    }
}

/// A value of a setting as typed: TOML, or a bare word.
fn parse_value(text: &str) -> Value {
    let document: Result<Table, _> = format!("value = {text}").parse();
    let value = document.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// A value as it stands in a name: [`parse_name`] reads the same value.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) if is_bare(text) => text.clone(),
        Value::String(text) => quoted(text),
        _ => inner(value),
    }
}

/// A value within brackets.
fn inner(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(values) => format!("[{}]", values.iter().map(inner).collect::<Vec<_>>().join(",")),
        Value::Table(table) => {
            let pairs = table.iter().map(|(key, value)| format!("{}={}", quoted(key), inner(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// Whether a string needs no quotes.
fn is_bare(text: &str) -> bool {
    let is_safe = !text.is_empty() && text == text.trim() && !text.contains([',', '"', '\'', '[', ']', '{', '}']);
    is_safe && parse_value(text).as_str() == Some(text)
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_value_survives_its_name() {
        let table: Table = r#"
            a = ["0", "1"]
            b = [[0, 1], [-1, 2]]
            c = "bare"
            d = "with,comma"
            e = "7"
            f = "a \"quoted\" 'word', [x"
            g = ""
            h = [["a,b", "]", "\\", "'"], []]
            i = 0.5
            j = true
            k = " blank "
            l = "1..40"
            m = "A4_x_Z5"
            n = "x # y"
            o = { p = ["q,r"], "s=" = 1 }
            t = "tab\there"
            u = "it's"
        "#
        .parse()
        .unwrap();
        let name = |table: &Table| {
            let settings = table.iter().map(|(key, value)| format!("{key}={}", show(value)));
            std::iter::once("base".to_owned()).chain(settings).collect::<Vec<_>>().join(",")
        };
        let whole = name(&table);
        let (base, read) = parse_name(&whole).unwrap();
        assert_eq!(base, "base");
        for (key, value) in &table {
            let found = read.get(key);
            assert!(found == Some(value), "{key}: {found:?} is not {value:?}: {whole}");
        }
        assert_eq!(read.len(), table.len());
        assert!(whole.contains(r#"a=["0","1"],b=[[0,1],[-1,2]],c=bare,d="with,comma",e="7","#), "{whole}");
        assert!(whole.contains(r#",l=1..40,m=A4_x_Z5,n=x # y,"#), "{whole}");
        for (key, value) in &table {
            let alone = Table::from_iter([(key.clone(), value.clone())]);
            assert_eq!(parse_name(&name(&alone)).unwrap().1, alone, "{key}");
        }
    }

    #[test]
    fn names_as_people_type_them() {
        let read = |name: &str| parse_name(name).map(|(_, table)| table).map_err(|e| e.to_string());
        assert_eq!(read("x, a = 1 ,b=two").unwrap(), "a = 1\nb = 'two'".parse().unwrap());
        assert_eq!(read(r#"x,a = [ "p", 'q,' ],b= "c,d""#).unwrap(), "a = ['p', 'q,']\nb = 'c,d'".parse().unwrap());
        assert_eq!(read("x,letter=it's,b=1").unwrap(), "letter = \"it's\"\nb = 1".parse().unwrap());
        for (name, part) in [
            ("x,a=[1", "`]` is missing at the end of `a=[1`"),
            ("x,a=[1,b=2", "`]` is missing"),
            ("x,a=1]", "`]` closes nothing"),
            ("x,a=[1},b=2", "`}` closes nothing"),
            ("x,a=\"b,c=2", "`\"` is missing"),
            ("x,a", "`a` is not a setting"),
        ] {
            let error = read(name).unwrap_err();
            assert!(error.contains(part) && error.contains("hint: write key=value"), "{name}: {error}");
        }
    }

    /// The last one was taken, without a word.
    #[test]
    fn a_setting_given_twice_is_named() {
        for (name, what) in [
            ("modular,modulus=7,modulus=8", "`modulus` is set twice, to 7 and to 8"),
            ("x,a=[1, 2],b=3, a = [1]", "`a` is set twice, to [1,2] and to [1]"),
            ("x,a=1,a=1", "`a` is set twice, to 1 and to 1"),
        ] {
            let error = parse_name(name).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("hint: leave out one of them"), "{name}: {error}");
        }
        assert!(crate::Task::by_name("modular,modulus=7,modulus=8").is_err());
    }
}
