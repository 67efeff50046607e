//! How long training a job will take, judged by the runs that are there.

use super::file::Job;
use crate::config::Config;
use crate::run::RunDir;
use crate::train::metrics;
use anyhow::Result;
use std::path::Path;

/// The speed of the runs that were trained.
pub struct Pace {
    known: Vec<(String, Config, f64)>,
}

/// A predicted time and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Seconds of training, its evaluations included.
    pub seconds: f64,
    /// The run that it was taken from.
    pub from: String,
    /// Whether that run is of another size, so that the time is scaled by arithmetic.
    pub scaled: bool,
}

impl Pace {
    /// Reads how fast the runs of a folder trained.
    ///
    /// # Errors
    /// The runs folder cannot be read.
    pub fn read(runs: &Path) -> Result<Self> {
        let mut known = Vec::new();
        for run in RunDir::all(runs)? {
            let curve = metrics::read(&run.metrics());
            let (Ok(config), Ok(curve)) = (Config::load(&run.config(), &[]), curve) else { continue };
            let last = curve.iter().filter(|row| row.step > 0).max_by_key(|row| row.step);
            if let Some(row) = last.filter(|row| row.seconds > 0.0) {
                known.push((run.handle().to_owned(), config, row.seconds / row.step as f64));
            }
        }
        known.reverse(); // the newest first
        Ok(Self { known })
    }

    /// The time of `steps` steps: as of a run of the same model, task and batch; or, scaled by the work in a step, of the
    /// run of the same architecture whose step is the nearest in work.
    pub fn predict(&self, job: &Job, steps: u64) -> Option<Prediction> {
        let ours = &job.config;
        let same = |config: &Config| {
            (&config.model, &config.task.name, config.train.batch_size)
                == (&ours.model, &ours.task.name, ours.train.batch_size)
        };
        let made = |(from, _, seconds): &(String, Config, f64), factor: f64, scaled| Prediction {
            seconds: seconds * factor * steps as f64,
            from: from.clone(),
            scaled,
        };
        if let Some(run) = self.known.iter().find(|(_, config, _)| same(config)) {
            return Some(made(run, 1.0, false));
        }
        let factor = |config: &Config| work(ours) / work(config);
        let related = self.known.iter().filter(|(_, config, _)| config.model.arch() == ours.model.arch());
        let nearest = related.min_by(|a, b| factor(&a.1).ln().abs().total_cmp(&factor(&b.1).ln().abs()))?;
        Some(made(nearest, factor(&nearest.1), true))
    }

    /// The time of `steps` steps where no run says anything: 5 ms and the arithmetic of a step at 50 GFLOP/s. Within a factor of
    /// three of small Transformers, RNN and LSTM on two cores of an "Intel(R) Xeon(R) Processor" (model 207).
    pub fn by_arithmetic(job: &Job, steps: u64) -> Prediction {
        const OVERHEAD: f64 = 5e-3;
        const PER_SECOND: f64 = 50e9;
        let weights = match job.config.model.arch() {
            "rnn" => 2.0,
            "gru" => 6.0,
            "lstm" => 8.0,
            _ => 12.0,
        }; // of a layer, in multiples of width²
        // Six operations per token and weight, forward and backward; sequences are half as long as the longest.
        let seconds = OVERHEAD + 0.5 * 6.0 * weights * work(&job.config) / PER_SECOND;
        Prediction { seconds: seconds * steps as f64, from: "arithmetic".into(), scaled: false }
    }
}

/// The arithmetic in a step, up to a factor: tokens × layers × width².
fn work(config: &Config) -> f64 {
    let length = config.task.task().map_or(1, |task| task.family.train_max_length());
    let width = config.model.hidden_size() as f64;
    config.train.batch_size as f64 * f64::from(length) * config.model.num_layers() as f64 * width * width
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(width: usize, arch: &str) -> Config {
        let text = format!("[task]\nname = 'counting_samesymbol'\n[model]\narch = '{arch}'\nhidden_size = {width}");
        Config::parse(&text, &[]).unwrap()
    }

    #[test]
    fn time_is_that_of_the_same_model_or_scaled_from_its_architecture() {
        let pace = Pace { known: vec![("a".into(), config(64, "rnn"), 0.5)] };
        let predict = |config| pace.predict(&Job { name: "job".into(), config }, 10);
        let same = predict(config(64, "rnn")).unwrap();
        assert_eq!((same.seconds, same.scaled), (5.0, false));
        let wider = predict(config(128, "rnn")).unwrap();
        assert_eq!((wider.seconds, wider.scaled), (20.0, true));
        assert_eq!(predict(config(64, "lstm")), None);
        // 5 ms a step, and an LSTM has four times the weights of an RNN.
        let arithmetic = |arch| Pace::by_arithmetic(&Job { name: "job".into(), config: config(512, arch) }, 1000);
        let [rnn, lstm] = ["rnn", "lstm"].map(|arch| arithmetic(arch).seconds - 5.0);
        assert!(rnn > 0.0 && (lstm / rnn - 4.0).abs() < 1e-9, "{rnn} {lstm}");
    }
}
