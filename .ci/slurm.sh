#!/usr/bin/env bash
# A grid through a real Slurm: starts a one-node cluster of its own in a folder, submits a grid, waits for its jobs and
# for the report behind them, and submits again, when nothing may be left to do.
#
#   slurm.sh PIPELINE GRID WORK_DIR
#
# Installs slurmctld, slurmd and munge from Debian where they are missing and that is possible; skipped with a message where
# it is not.
set -euo pipefail
pipeline=$(realpath "$1")
grid=$(realpath "$2")
mkdir -p "$3"
work=$(realpath "$3")

skip() {
  echo "skipped: the grid through Slurm: $1"
  exit 0
}
missing() { for program in munged slurmctld slurmd sbatch; do command -v "$program" >/dev/null || return 0; done; return 1; }
export PATH="$PATH:/usr/sbin"
if missing; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "it is not installed, and only root could with apt"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    slurmctld slurmd slurm-client munge; } >"$work/install.log" 2>&1 || true
  missing && skip "slurmctld, slurmd and munge cannot be installed (see $work/install.log)"
fi
[ "$(id -u)" = 0 ] || skip "slurmd starts as root only"

# Sockets and spool folders want a short path that only root can write to.
cluster=$(mktemp -d /run/slurm-test.XXXXXX)
node=$(hostname -s)
cat >"$cluster/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$cluster/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=slot
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MinJobAge=3600
MailProg=/bin/true
ReturnToService=2
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) Gres=slot:$(nproc) State=UNKNOWN
PartitionName=test Nodes=$node Default=YES MaxTime=INFINITE State=UP
EOF
echo "Name=slot Count=$(nproc) Flags=CountOnly" >"$cluster/gres.conf"
mkdir "$cluster/state" "$cluster/spool"
export SLURM_CONF="$cluster/slurm.conf"
daemons=()
stop() {
  kill "${daemons[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$cluster"
}
trap stop EXIT

# A key, a socket and a daemon for this cluster alone.
head -c 1024 /dev/urandom >"$cluster/munge.key"
chmod 400 "$cluster/munge.key"
munged --foreground --force --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" \
  --pid-file="$cluster/munge.pid" --seed-file="$cluster/munge.seed" --log-file="$cluster/munge.log" 2>"$work/munge.log" &
daemons+=($!)
for _ in $(seq 50); do [ -S "$cluster/munge.socket" ] && break || sleep 0.1; done
slurmctld -D 2>>"$work/slurmctld.err" &
daemons+=($!)
slurmd -D -N "$node" 2>>"$work/slurmd.err" &
daemons+=($!)
for _ in $(seq 60); do
  [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && break || sleep 0.5
done
[ "$(sinfo --noheader --format=%T 2>/dev/null || true)" = idle ] || {
  tail -n 5 "$work"/slurmctld.log "$work"/slurmd.log "$work"/*.err >&2 || true
  skip "its daemons do not come up here"
}

cd "$work"
grid_jobs() { "$pipeline" grid "$grid" --launcher slurm --partition test --gres slot:1 --time 10 --json --quiet; }
report=$(grid_jobs | python3 -c 'import json, sys; print(json.load(sys.stdin)["jobs"]["report"])')
grid_jobs | python3 -c 'import json, sys; jobs = json.load(sys.stdin)["jobs"]; assert jobs["arrays"] == [] and jobs["report"] is None, jobs'
for _ in $(seq 600); do
  state=$(scontrol show job "$report" | grep -o 'JobState=[A-Z]*')
  case $state in JobState=PENDING | JobState=RUNNING | JobState=COMPLETING | JobState=CONFIGURING) sleep 0.5 ;; *) break ;; esac
done
[ "$state" = JobState=COMPLETED ] || {
  echo "the report's job ended as $state" >&2
  tail -n 20 runs/sweeps/*/slurm/*.out >&2
  exit 1
}
"$pipeline" grid "$grid" --dry-run --json | python3 -c '
import json, sys
cells = json.load(sys.stdin)["cells"]
assert cells and all(cell["status"] == "done" for cell in cells), cells
print(f"{len(cells)} jobs done by Slurm")'
ls runs/sweeps/*/report.html
grid_jobs | python3 -c 'import json, sys; assert "jobs" not in json.load(sys.stdin), "jobs that are done were submitted again"'
