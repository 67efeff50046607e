use crate::{DataError, Origin, Outside, Task, suggest::nearest};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use toml::{Table, Value};

/// The `[task]` table of a config: a preset or a family, settings of it, and the dataset to make.
///
/// ```toml
/// [task]
/// name = "counting_samesymbol"   # a preset, or family = "modular"
/// last_number = 1000             # any setting of its family
/// train_examples = 20_000        # main examples of the training split
/// data_seed = 0
/// ```
///
/// Name and settings become one complete name: see [`Task`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskConfig {
    /// The name, as for [`Task::by_name`].
    pub name: String,
    /// Main training examples to generate where the dataset does not exist yet.
    pub train_examples: usize,
    /// Seed of the dataset.
    pub data_seed: u64,
}

impl TaskConfig {
    /// A task with its published number of training examples.
    ///
    /// # Errors
    /// As [`Task::by_name`].
    pub fn new(name: &str) -> Result<Self, DataError> {
        let task = Task::by_name(name)?;
        Ok(Self { train_examples: task.train_examples, name: task.name, data_seed: 0 })
    }

    /// The `[task]` table of a whole config, as runs keep it; `None` where there is none or it is not a config.
    pub fn of_config(text: &str) -> Option<Self> {
        let task = text.parse::<Table>().ok()?.remove("task")?;
        Self::deserialize(task).ok()
    }

    /// The size and seed of its dataset.
    pub fn origin(&self) -> Origin {
        Origin { train: self.train_examples, seed: self.data_seed }
    }

    /// The task.
    ///
    /// # Errors
    /// As [`Task::by_name`]; a config that was read has been checked already.
    pub fn task(&self) -> Result<Task, DataError> {
        Task::by_name(&self.name)
    }
}

impl<'de> Deserialize<'de> for TaskConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = Table::deserialize(deserializer)?;
        let mut take = |key: &str| {
            let value = table.remove(key).map(usize::deserialize).transpose();
            value.map_err(|e| D::Error::custom(format!("{key}: {}", e.message())))
        };
        let (train_examples, data_seed) = (take("train_examples")?, take("data_seed")?);
        let base = match (table.remove("name"), table.remove("family")) {
            (Some(_), Some(_)) => {
                return Err(D::Error::custom("there is a `name` and a `family`\n  hint: a name says the family"));
            }
            (None, None) => {
                let known = ["name", "family", "train_examples", "data_seed"];
                if let Some(key) = table.keys().find(|key| nearest(key, known).is_some()) {
                    let known = known.map(|key| format!("`{key}`")).join(", ");
                    return Err(D::Error::custom(format!("unknown field `{key}`, expected one of {known}")));
                }
                return Err(D::Error::custom(
                    "missing field `name`\n  hint: `pipeline data list` shows every name; or set `family`",
                ));
            }
            (Some(base), None) | (None, Some(base)) => base,
        };
        let Value::String(base) = base else { return Err(D::Error::custom("`name` and `family` are strings")) };
        let mut task = Task::with_settings(&base, table).map_err(D::Error::custom)?;
        if let Some((key, value)) = task.family.outside().and_then(Outside::tie) {
            let tied = Table::from_iter([(key.to_owned(), value.into())]);
            task = Task::with_settings(&task.name, tied).map_err(D::Error::custom)?;
        }
        Ok(Self {
            train_examples: train_examples.unwrap_or(task.train_examples),
            data_seed: data_seed.unwrap_or(0) as u64,
            name: task.name,
        })
    }
}
