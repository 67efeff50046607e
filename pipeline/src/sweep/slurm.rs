//! Handing a sweep to Slurm: a job array with one cell a task, and a job for the report behind it.

use crate::report::repeat::quoted;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Slurm's default limit is 1001 tasks of an array.
const MOST_TASKS: usize = 1000;

/// What is asked of Slurm.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// `--partition`
    pub partition: Option<String>,
    /// `--gres`
    pub gres: Option<String>,
    /// `--time`
    pub time: Option<String>,
    /// Tasks that run at the same time; as many as there is room for if not set.
    pub at_once: Option<u16>,
}

/// The jobs that were submitted.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The arrays.
    pub arrays: Vec<String>,
    /// The report.
    pub report: String,
}

/// Submits the cells with these indices, then the report. `sweep` is the command that takes `--cell`, `report` the one
/// that writes the report; scripts and logs go into `folder`.
///
/// # Errors
/// There is no `sbatch`, or it refuses.
pub fn submit(
    name: &str,
    indices: &[usize],
    sweep: &[String],
    report: &[String],
    folder: &Path,
    resources: &Resources,
) -> Result<Submitted> {
    let mut arrays = Vec::new();
    for (part, indices) in indices.chunks(MOST_TASKS).enumerate() {
        let list: Vec<String> = indices.iter().map(usize::to_string).collect();
        let command =
            format!("set -- {}\nshift \"$SLURM_ARRAY_TASK_ID\"\nexec {} --cell \"$1\"", list.join(" "), line(sweep));
        let path = write_script(folder, &format!("array-{}", part + 1), &command)?;
        let at_once = resources.at_once.map(|n| format!("%{n}")).unwrap_or_default();
        let mut options = vec![
            format!("--job-name={name}"),
            format!("--array=0-{}{at_once}", indices.len() - 1),
            format!("--output={}", folder.join("%A_%a.out").display()),
        ];
        let asked = [("partition", &resources.partition), ("gres", &resources.gres), ("time", &resources.time)];
        options.extend(asked.iter().filter_map(|(key, value)| Some(format!("--{key}={}", value.as_ref()?))));
        arrays.push(sbatch(&options, &path)?);
    }
    // Behind all cells, failed or not: a report of what there is is better than none.
    let mut options = vec![
        format!("--job-name={name}-report"),
        format!("--dependency=afterany:{}", arrays.join(":")),
        format!("--output={}", folder.join("%j-report.out").display()),
    ];
    options.extend(resources.partition.iter().map(|partition| format!("--partition={partition}")));
    let path = write_script(folder, "report", &format!("exec {}", line(report)))?;
    let submitted = sbatch(&options, &path);
    let report =
        submitted.with_context(|| format!("the cells are submitted as {}, their report is not", arrays.join(", ")))?;
    Ok(Submitted { arrays, report })
}

fn line(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn write_script(folder: &Path, name: &str, command: &str) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.sh"));
    data::files::write_bytes(&path, format!("#!/bin/sh\n{command}\n").as_bytes())?;
    Ok(path)
}

/// Submits a script; returns the job's id.
fn sbatch(options: &[String], script: &Path) -> Result<String> {
    let ran = Command::new("sbatch").arg("--parsable").args(options).arg(script).output();
    let ran = ran.context("cannot run sbatch\n  hint: submit on a machine of the cluster, or use --launcher local")?;
    if !ran.status.success() {
        bail!("sbatch refused {}: {}", script.display(), String::from_utf8_lossy(&ran.stderr).trim());
    }
    // `id` or `id;cluster`
    let id = String::from_utf8_lossy(&ran.stdout).trim().split(';').next().unwrap_or_default().to_owned();
    if id.is_empty() {
        bail!("sbatch named no job for {}", script.display());
    }
    Ok(id)
}
