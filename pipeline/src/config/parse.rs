//! TOML and `--set` into tables, and tables into settings; errors name the key and the nearest valid one.

use anyhow::{Result, bail};
use data::Task;
use data::suggest::nearest;
use models::ModelConfig;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// Splits a `--set` argument; the value is TOML, or a bare string (`train.device=cpu`).
pub(crate) fn parse_override(argument: &str) -> Result<(String, Value)> {
    let Some((key, text)) = argument.split_once('=') else {
        bail!(
            "--set {argument}: there is no `=`\n  hint: write --set table.key=value, for example --set optimizer.lr=3e-4"
        );
    };
    let document = format!("value = {text}");
    let key = key.trim();
    if let Some((_, number)) = too_large(&document) {
        return Err(out_of_range(&format!("--set {key}"), &number));
    }
    let document: Result<Table, _> = document.parse();
    let value = document.ok().and_then(|mut t| t.remove("value")).unwrap_or_else(|| Value::String(text.trim().into()));
    Ok((key.to_owned(), value))
}

/// Reads TOML; a number that it has no room for is reported with its key.
pub(crate) fn parse_toml(text: &str) -> Result<Table> {
    text.parse().map_err(|error: toml::de::Error| match too_large(text) {
        Some((key, number)) => out_of_range(&key, &number),
        None => anyhow::anyhow!("{}", error.to_string().trim_end()),
    })
}

/// The first whole number of a TOML document that has no 64 bits, and its key.
fn too_large(text: &str) -> Option<(String, String)> {
    fn find(key: &str, value: &DeValue<'_>) -> Option<(String, String)> {
        match value {
            DeValue::Integer(number) => {
                let fits = i64::from_str_radix(number.as_str(), number.radix()).is_ok();
                (!fits).then(|| (key.to_owned(), number.to_string()))
            }
            DeValue::Array(values) => values.iter().find_map(|value| find(key, value.get_ref())),
            DeValue::Table(table) => inside(key, table),
            _ => None,
        }
    }
    fn inside(above: &str, table: &DeTable<'_>) -> Option<(String, String)> {
        table.iter().find_map(|(key, value)| {
            let key = key.get_ref();
            find(&if above.is_empty() { key.to_string() } else { format!("{above}.{key}") }, value.get_ref())
        })
    }
    inside("", DeTable::parse(text).ok()?.get_ref())
}

fn out_of_range(key: &str, number: &str) -> anyhow::Error {
    let name = key.rsplit('.').next().unwrap_or(key);
    if name.contains("seed") {
        return not_a_seed(key, number);
    }
    anyhow::anyhow!("{key} {number}: whole numbers go from {} up to {}\n  hint: set a smaller one", i64::MIN, i64::MAX)
}

/// The error of a seed that TOML, and with it a run's config, cannot hold; `key` says where it stands.
pub(crate) fn not_a_seed(key: &str, found: impl Display) -> anyhow::Error {
    anyhow::anyhow!("{key} {found}: seeds go up to {}\n  hint: a seed is a whole number from 0 to that", i64::MAX)
}

/// Sees whether a value is a seed.
pub(crate) fn check_seed(key: &str, value: &Value) -> Result<()> {
    match value {
        Value::Integer(0..) => Ok(()),
        other => Err(not_a_seed(key, other)),
    }
}

pub(super) fn set(tables: &mut Table, key: &str, value: Value) -> Result<()> {
    let Some((path, name)) = key.rsplit_once('.') else {
        bail!("`{key}` does not name a table and a key\n  hint: write table.key, for example optimizer.lr");
    };
    let mut inner = tables;
    for table in path.split('.') {
        inner = match inner.entry(table).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => inner,
            other => bail!("`{table}` of {key} must be a table, not {}", other.type_str()),
        };
    }
    inner.insert(name.to_owned(), value);
    Ok(())
}

/// Reads one table; an unknown key is reported as `table.key` with the nearest valid one.
pub(super) fn decode<T: DeserializeOwned>(name: &str, table: Table) -> Result<T> {
    T::deserialize(Value::Table(table)).map_err(|error| {
        let message = error.message();
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        if let (true, [unknown, valid @ ..]) = (message.starts_with("unknown field"), quoted.as_slice()) {
            return anyhow::anyhow!("unknown key {name}.{unknown}\n  hint: {}", suggestion(unknown, valid));
        }
        anyhow::anyhow!("in [{name}]: {}", error.to_string().trim_end())
    })
}

/// Reads `[model]`. Keys that it leaves out and the task knows, such as the size of a position table, are the task's.
pub(super) fn decode_model(mut table: Table, task: &Task) -> Result<ModelConfig> {
    let known = ModelConfig::ARCHITECTURES;
    let arch = match table.remove("arch") {
        Some(Value::String(arch)) => arch,
        Some(other) => bail!("model.arch must be a string, not {}", other.type_str()),
        None => bail!("model.arch is missing\n  hint: one of {}", known.join(", ")),
    };
    let Some(kind) = ModelConfig::kind(&arch) else {
        bail!("unknown model.arch `{arch}`\n  hint: {}", suggestion(&arch, &known))
    };
    for (key, value) in (kind.task_defaults)(task) {
        table.entry(key).or_insert(Value::try_from(value)?);
    }
    decode_settings(kind.name, table)
}

macro_rules! decoders {
    ($($Variant:ident $module:ident $Config:ident $title:literal;)*) => {
        /// The settings of the architecture called `arch`.
        fn decode_settings(arch: &str, table: Table) -> Result<ModelConfig> {
            match arch {
                $(stringify!($module) => decode("model", table).map(ModelConfig::$Variant),)*
                _ => bail!("unknown model.arch `{arch}`"),
            }
        }
    };
}

models::architectures!(decoders);

pub(super) fn suggestion(name: &str, valid: &[&str]) -> String {
    match nearest(name, valid.iter().copied()) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("one of {}", valid.join(", ")),
    }
}
