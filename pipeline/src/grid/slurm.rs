//! Handing a grid to Slurm: an array with a task for every job of the grid, and a Slurm job for the report behind it.
//!
//! `jobs.jsonl` in the grid's folder has a line for every Slurm job, written as soon as Slurm has named it: what was
//! submitted is known regardless of what comes after it, and is not submitted again while it waits or runs.

use crate::cli::shell::quoted;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tasks of an array where Slurm does not say how many there may be; its default `MaxArraySize` is 1001.
const USUAL_TASKS: usize = 1000;

/// Options for Slurm.
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

/// The part of a grid that Slurm has.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The arrays that were submitted now.
    pub arrays: Vec<String>,
    /// Earlier arrays that have jobs waiting or running.
    pub earlier: Vec<String>,
    /// How many jobs were left to these.
    pub queued: usize,
    /// The report.
    pub report: Option<String>,
    /// Why Slurm could not be asked about earlier arrays.
    pub unknown: Option<String>,
}

/// A job of the grid, as a task of an array.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its index in the grid, for `--job`.
    pub index: usize,
    /// Tells the job and its settings from all others.
    pub key: String,
}

/// A line of `jobs.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Submission {
    /// As Slurm names it.
    id: SlurmId,
    /// The keys of the jobs of the grid in it, by the index of the task; none for the report.
    #[serde(rename = "cells")] // the key that files of earlier versions have
    keys: Vec<String>,
}

/// The number of a job of Slurm's, and its cluster where several share their users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SlurmId {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

/// Slurm's answer about an earlier submission.
enum Queue {
    /// The tasks that wait or run.
    Tasks(BTreeSet<usize>),
    /// It could not be asked.
    Unknown(String),
}

/// Submits the jobs that no earlier array has, then the report. `grid` is the command that takes `--job`, `report` the one
/// that writes the report; scripts and logs go into `folder`.
///
/// # Errors
/// There is no `sbatch`, or it refuses.
pub fn submit(
    name: &str,
    tasks: &[Task],
    grid: &[String],
    report: &[String],
    folder: &Path,
    resources: &Resources,
) -> Result<Submitted> {
    let record = folder.join("jobs.jsonl");
    let mut unknown = None;
    // Of every submission that is not over, its tasks that are not.
    let mut live: Vec<(SlurmId, BTreeSet<String>)> = Vec::new();
    for earlier in read_submissions(&record)? {
        let keys: BTreeMap<usize, &String> = earlier.keys.iter().enumerate().collect();
        let tasks = match queued(&earlier.id) {
            Queue::Tasks(tasks) if tasks.is_empty() => continue,
            Queue::Tasks(tasks) => tasks,
            Queue::Unknown(reason) => {
                unknown = Some(reason);
                keys.keys().copied().collect()
            }
        };
        live.push((earlier.id, tasks.iter().filter_map(|task| keys.get(task)).map(|key| (*key).clone()).collect()));
    }
    let (left, queued): (Vec<&Task>, Vec<&Task>) =
        tasks.iter().partition(|task| !live.iter().any(|(_, keys)| keys.contains(&task.key)));
    let earlier: Vec<SlurmId> = live.iter().filter(|(_, keys)| !keys.is_empty()).map(|(id, _)| id.clone()).collect();
    let has_report = live.iter().any(|(_, keys)| keys.is_empty());

    let mut arrays: Vec<SlurmId> = Vec::new();
    let most = most_tasks();
    for (part, tasks) in left.chunks(most.max(1)).enumerate() {
        let list: Vec<String> = tasks.iter().map(|task| task.index.to_string()).collect();
        let command = format!(
            "set -- {}\nshift \"${{SLURM_ARRAY_TASK_ID:-0}}\"\nexec {} --job \"$1\"",
            list.join(" "),
            line(grid)
        );
        let path = write_script(folder, &format!("array-{}", part + 1), &command)?;
        let at_once = resources.at_once.map(|n| format!("%{n}")).unwrap_or_default();
        let mut options = vec![format!("--job-name={name}")];
        // Where there are no arrays, every task is a Slurm job of its own.
        let log = if most == 0 { "%j.out" } else { "%A_%a.out" };
        if most > 0 {
            options.push(format!("--array=0-{}{at_once}", tasks.len() - 1));
        }
        options.push(format!("--output={}", pattern(folder, log)));
        let asked = [("partition", &resources.partition), ("gres", &resources.gres), ("time", &resources.time)];
        options.extend(asked.iter().filter_map(|(key, value)| Some(format!("--{key}={}", value.as_ref()?))));
        let id = sbatch(&options, &path).with_context(|| so_far(&arrays, &record))?;
        remember(&record, &Submission { id: id.clone(), keys: tasks.iter().map(|task| task.key.clone()).collect() })
            .with_context(|| so_far(&[&arrays[..], std::slice::from_ref(&id)].concat(), &record))?;
        arrays.push(id);
    }
    let named = |ids: &[SlurmId]| ids.iter().map(|id| id.id.clone()).collect::<Vec<_>>();
    let mut submitted =
        Submitted { arrays: named(&arrays), earlier: named(&earlier), queued: queued.len(), report: None, unknown };
    if arrays.is_empty() && has_report {
        return Ok(submitted);
    }
    // Behind all jobs, failed or not: a report of what there is is better than none.
    let before = [&earlier[..], &arrays[..]].concat();
    let mut options = vec![
        format!("--job-name={name}-report"),
        format!("--dependency=afterany:{}", named(&before).join(":")),
        format!("--output={}", pattern(folder, "%j-report.out")),
    ];
    options.extend(resources.partition.iter().map(|partition| format!("--partition={partition}")));
    let path = write_script(folder, "report", &format!("exec {}", line(report)))?;
    let id = sbatch(&options, &path)
        .with_context(|| format!("the jobs are submitted as {}, their report is not", named(&before).join(", ")))?;
    remember(&record, &Submission { id: id.clone(), keys: vec![] })?;
    submitted.report = Some(id.id);
    Ok(submitted)
}

/// For an error in the middle: what is submitted anyway, and what to do about it.
fn so_far(submitted: &[SlurmId], record: &Path) -> String {
    if submitted.is_empty() {
        return "nothing was submitted".into();
    }
    let ids: Vec<&str> = submitted.iter().map(|id| id.id.as_str()).collect();
    format!(
        "not all jobs of the grid were submitted; Slurm's jobs {} are, as {} says\n  \
         hint: the same command submits the others; `scancel {}` takes back these",
        ids.join(", "),
        record.display(),
        ids.join(" ")
    )
}

/// How many tasks an array may have: an index is less than `MaxArraySize`. 0 where there are no arrays.
fn most_tasks() -> usize {
    let ran = Command::new("scontrol").args(["show", "config"]).output();
    let said = ran.ok().filter(|ran| ran.status.success()).map(|ran| ran.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    let value = said.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        key.trim().eq_ignore_ascii_case("MaxArraySize").then(|| value.trim().parse().ok())?
    });
    value.unwrap_or(USUAL_TASKS)
}

/// The tasks of a submission that wait or run.
fn queued(slurm: &SlurmId) -> Queue {
    let mut command = Command::new("squeue");
    command.args(["--noheader", "--array", "--format=%K", &format!("--jobs={}", slurm.id)]);
    command.args(slurm.cluster.iter().map(|cluster| format!("--clusters={cluster}")));
    let ran = match command.output() {
        Ok(ran) => ran,
        Err(error) => return Queue::Unknown(format!("cannot run squeue: {error}")),
    };
    let said = String::from_utf8_lossy(&ran.stderr);
    // So it says of jobs that ended a while ago.
    if said.contains("Invalid job id") {
        return Queue::Tasks(BTreeSet::new());
    }
    if !ran.status.success() {
        return Queue::Unknown(format!("squeue failed: {}", said.trim()));
    }
    let lines = String::from_utf8_lossy(&ran.stdout).into_owned();
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("CLUSTER"));
    Queue::Tasks(lines.flat_map(indices).collect())
}

/// The numbers of a task or of a range of them: `7`, `0-9,12`, `0-99%4`; 0 for a job without tasks.
fn indices(text: &str) -> Vec<usize> {
    let text = text.trim_matches(['[', ']']);
    let text = text.split('%').next().unwrap_or_default();
    let part = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.parse().ok()?..=to.parse().ok()?)
    };
    let ranges: Option<Vec<_>> = text.split(',').map(part).collect();
    ranges.map_or(vec![0], |ranges| ranges.into_iter().flatten().collect())
}

/// Everything that was submitted. Lines that cannot be read are torn, and left out.
fn read_submissions(record: &Path) -> Result<Vec<Submission>> {
    match fs::read_to_string(record) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", record.display())),
    }
}

fn remember(record: &Path, submission: &Submission) -> Result<()> {
    let write = || -> Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).open(record)?;
        file.write_all(format!("{}\n", serde_json::to_string(submission)?).as_bytes())?;
        let _ = file.sync_all(); // some file systems refuse
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", record.display()))
}

/// A file in `folder` with Slurm's placeholders in its name, and none in the folder's.
fn pattern(folder: &Path, name: &str) -> String {
    format!("{}/{name}", folder.display().to_string().replace('%', "%%"))
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
fn sbatch(options: &[String], script: &Path) -> Result<SlurmId> {
    let ran = Command::new("sbatch").arg("--parsable").args(options).arg(script).output();
    let ran = ran.context("cannot run sbatch\n  hint: submit on a machine of the cluster, or use --launcher local")?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    if !ran.status.success() {
        bail!("sbatch refused {}: {}", script.display(), String::from_utf8_lossy(&ran.stderr).trim());
    }
    job_id(&said).with_context(|| {
        format!(
            "sbatch named no job for {}; it said: {}\n  hint: `squeue --me` shows whether there is one",
            script.display(),
            if said.trim().is_empty() { "nothing" } else { said.trim() }
        )
    })
}

/// The last line that is `id` or `id;cluster`: what sites print before or after it is for people.
fn job_id(said: &str) -> Option<SlurmId> {
    said.lines().rev().find_map(|line| {
        let (id, cluster) = match line.trim().split_once(';') {
            Some((id, cluster)) => (id.trim(), Some(cluster.trim().to_owned())),
            None => (line.trim(), None),
        };
        let is_number = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| SlurmId { id: id.to_owned(), cluster: cluster.filter(|name| !name.is_empty()) })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_id_is_the_last_line_that_is_one() {
        let id = |said| job_id(said).map(|found| (found.id, found.cluster));
        assert_eq!(id("4711\n"), Some(("4711".into(), None)));
        assert_eq!(id("Welcome to cluster 7!\n4711;alpha\n\n"), Some(("4711".into(), Some("alpha".into()))));
        assert_eq!(id("4711\nsbatch: 3 hours are left of your account\n"), Some(("4711".into(), None)));
        assert_eq!(id("Submitted batch job 12x\n"), None);
        assert_eq!(id(""), None);
    }

    #[test]
    fn tasks_are_read_alone_and_as_ranges() {
        assert_eq!(indices("7"), [7]);
        assert_eq!(indices("[0-2,5%4]"), [0, 1, 2, 5]);
        assert_eq!(indices("N/A"), [0]);
    }

    #[test]
    fn placeholders_are_in_the_name_alone() {
        assert_eq!(pattern(Path::new("/a/100%j"), "%A_%a.out"), "/a/100%%j/%A_%a.out");
    }
}
