//! Grids that are handed to Slurm, against programs that answer as Slurm's do.
//!
//! A process of its own: these tests write scripts and run what they wrote, which the system refuses (`ETXTBSY`) for as
//! long as a child that another test is just starting has inherited the open file.
#![cfg(all(feature = "train", unix))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "it/common.rs"]
mod common;

use common::{Ran, check_failure, command, repository};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A folder with a grid of five jobs, and with Slurm's programs: `sbatch` writes down what it is called with and gives
/// numbers from 101 on, unless the file `refuse` names one.
struct Cluster {
    dir: tempfile::TempDir,
    work: PathBuf,
}

impl Cluster {
    fn new(work: &str, max_array_size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join(work);
        fs::create_dir_all(work.join("bin")).unwrap();
        let grid = format!(
            "tasks = ['counting_samesymbol_mod10bos']\nseeds = [1, 2, 3, 4, 5]\n[set]\ntask.train_examples = 100\n\
             [eval]\nlengths = '1..9'\n[[architecture]]\nconfig = '{}'\n",
            repository("configs/rnn.toml")
        );
        fs::write(work.join("toy.toml"), grid).unwrap();
        let cluster = Self { dir, work };
        cluster.program(
            "sbatch",
            "n=$(( $(wc -l < calls) + 101 ))\n\
             case \" $* \" in *' --array='*) kind=array;; *) kind=single;; esac\n\
             if [ -e refuse ] && [ \"$(cat refuse)\" = $n ]; then echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; fi\n\
             for last; do :; done\n\
             echo \"$n $* $(sed -n 's/^set -- /cells /p' \"$last\")\" >> calls\n\
             echo 'Welcome to cluster 7'\necho \"$n;alpha\"\necho\n",
        );
        cluster.program(
            "scontrol",
            &format!("echo 'Configuration data as of 2026-11-28'\necho 'MaxArraySize            = {max_array_size}'"),
        );
        fs::write(cluster.work.join("calls"), "").unwrap();
        cluster
    }

    fn program(&self, name: &str, lines: &str) {
        let path = self.work.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\ncd '{}'\n{lines}\n", self.work.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Jobs that `squeue` knows: lines of a number and a task.
    fn queue(&self, queued: &str) {
        fs::write(self.work.join("queue"), queued).unwrap();
        self.program(
            "squeue",
            "for option; do case $option in --jobs=*) job=${option#--jobs=};; esac; done\n\
             grep -q \"^$job \" queue || { echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }\n\
             echo 'CLUSTER: alpha'\nsed -n \"s/^$job //p\" queue",
        );
    }

    fn submit(&self) -> Ran {
        let mut command = command(&self.work, &["grid", "toy.toml", "--launcher", "slurm", "--json"]);
        let path = format!("{}:{}", self.work.join("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).output().unwrap().into()
    }

    fn jobs(&self) -> Value {
        let ran = self.submit();
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stdout.parse::<Value>().unwrap()["jobs"].clone()
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.work.join("calls")).unwrap().lines().map(str::to_owned).collect()
    }

    fn record(&self) -> String {
        fs::read_to_string(self.work.join("runs/sweeps/toy/slurm/jobs.jsonl")).unwrap()
    }
}

/// The jobs of an array, and the indices of its tasks.
fn array(call: &str) -> (&str, &str) {
    let range = call.split(" --array=").nth(1).unwrap().split(' ').next().unwrap();
    (call.split(" cells ").nth(1).unwrap(), range)
}

#[test]
fn ids_stand_in_the_last_line_that_is_a_number_and_arrays_are_as_large_as_slurm_allows() {
    let cluster = Cluster::new("plain", "3");
    let jobs = cluster.jobs();
    assert_eq!(jobs["arrays"], serde_json::json!(["101", "102"]));
    assert_eq!(jobs["report"], "103");
    let calls = cluster.calls();
    assert_eq!(array(&calls[0]), ("0 1 2", "0-2"));
    assert_eq!(array(&calls[1]), ("3 4", "0-1"));
    assert!(calls[2].contains("--dependency=afterany:101:102"), "{}", calls[2]);
    assert!(cluster.record().lines().count() == 3 && cluster.record().contains("alpha"), "{}", cluster.record());
}

#[test]
fn without_arrays_every_task_is_a_job_of_slurms() {
    let cluster = Cluster::new("plain", "0");
    assert_eq!(cluster.jobs()["arrays"].as_array().unwrap().len(), 5);
    assert!(cluster.calls().iter().all(|call| !call.contains("--array")));
    let script = fs::read_to_string(cluster.work.join("runs/sweeps/toy/slurm/array-5.sh")).unwrap();
    assert!(script.contains("set -- 4\nshift \"${SLURM_ARRAY_TASK_ID:-0}\""), "{script}");
}

#[test]
fn a_folder_with_a_percent_sign_is_no_placeholder() {
    let cluster = Cluster::new("100%j", "1001");
    cluster.jobs();
    let folder = cluster.work.join("runs/sweeps/toy/slurm").display().to_string().replace('%', "%%");
    for (call, name) in cluster.calls().iter().zip(["%A_%a.out", "%j-report.out"]) {
        assert!(call.contains(&format!("--output={folder}/{name}")), "{call}");
    }
}

#[test]
fn what_was_submitted_before_a_refusal_is_known_and_not_submitted_again() {
    for squeue in [true, false] {
        let cluster = Cluster::new("plain", "2");
        if squeue {
            cluster.queue("101 0\n101 1\n");
        }
        fs::write(cluster.work.join("refuse"), "102").unwrap();
        let ran = cluster.submit();
        check_failure(&ran, &["grid"], 1, &["jobs 101 are", "jobs.jsonl", "scancel 101", "QOSMaxSubmitJob"]);
        assert!(cluster.record().contains("\"101\""), "{}", cluster.record());
        fs::remove_file(cluster.work.join("refuse")).unwrap();
        // Without squeue nothing says that the job is over.
        let jobs = cluster.jobs();
        assert_eq!(
            (&jobs["arrays"], &jobs["earlier"]),
            (&serde_json::json!(["102", "103"]), &serde_json::json!(["101"]))
        );
        let calls = cluster.calls();
        assert_eq!((array(&calls[1]).0, array(&calls[2]).0), ("2 3", "4"), "{calls:?}");
        assert!(calls[3].contains("--dependency=afterany:101:102:103"), "{}", calls[3]);
    }
}

#[test]
fn jobs_that_wait_or_run_are_left_to_their_jobs_and_others_are_submitted() {
    let cluster = Cluster::new("plain", "1001");
    cluster.queue("");
    assert_eq!(cluster.jobs()["arrays"], serde_json::json!(["101"]));
    // Two jobs of the array are over, without being done; so is the report.
    cluster.queue("101 [3-4%2]\n101 0\n");
    let jobs = cluster.jobs();
    assert_eq!((&jobs["arrays"], &jobs["report"]), (&serde_json::json!(["103"]), &"104".into()));
    assert_eq!(array(&cluster.calls()[2]).0, "1 2");
    // Everything is queued, the report with it.
    cluster.queue("101 0\n101 3\n101 4\n103 0\n103 1\n104 N/A\n");
    let jobs = cluster.jobs();
    assert_eq!((&jobs["arrays"], &jobs["report"]), (&serde_json::json!([]), &Value::Null));
    assert_eq!(cluster.calls().len(), 4);
    // Nothing is.
    cluster.queue("");
    assert_eq!(cluster.jobs()["arrays"], serde_json::json!(["105"]));
    assert_eq!(array(&cluster.calls()[4]).0, "0 1 2 3 4");
    assert!(cluster.dir.path().exists());
}

#[test]
fn an_answer_without_a_number_is_shown() {
    let cluster = Cluster::new("plain", "1001");
    cluster.program("sbatch", "echo 'Submitted, thank you'");
    let ran = cluster.submit();
    check_failure(&ran, &["grid"], 1, &["sbatch named no job", "Submitted, thank you", "hint:"]);
}
