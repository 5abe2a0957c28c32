#!/usr/bin/env bash
# Bring Ray up on every node of this Slurm job, run one command against it, take Ray down again. See docs/slurm.md.
#
#   ray_cluster.sh COMMAND [ARGUMENT …]       inside a batch script (slurm/ppo.sh and the others call it)
#
# Exit code: that of the command. 75 ("interrupted, everything is saved") puts the job back into the queue, where the same
# command goes on. 42: a node did not come up. `cai-dist run|stage …` is checked first: 2 before anything is started.
#
# Environment, all optional; sbatch passes it on:
#   CAI_DIST_HOME     the checkout, on a disk that every node sees              (default: the folder of sbatch)
#   VENV              the virtual environment, likewise                         (default: .venv of the checkout)
#   CAI_MAX_REQUEUES  how often the job goes back into the queue                (default: 20)
#   RAY_LOGS          folder for Ray's logs, one folder in it for each job      (default: runs/slurm)
#   RAY_WAIT          seconds to wait for the nodes                             (default: 180)
#   RAY_STORE_BYTES   size of each node's object store                          (default: 30% of its share of memory)
#   RAY_HEAD_ADDRESS  address of the first node, where its name leads to another network than the nodes should use
#   RAY_TMPDIR        short path of a folder on each node for sockets and spilled objects    (default: /tmp)
#   RAY_FLAT=1        test clusters whose "nodes" share one host: a loopback address for each
set -uo pipefail

fail() { # CODE MESSAGE
  echo "ray_cluster.sh: $2" >&2
  exit "$1"
}

[ $# -gt 0 ] || fail 2 "no command given"
cd "${SLURM_SUBMIT_DIR:?run this inside a Slurm job}" || exit 2
home=${CAI_DIST_HOME:-$PWD}
venv=${VENV:-$home/.venv}
# How Slurm has spread a total over the nodes is not known here, and a step of some of them would ask for all.
[ -z "${SLURM_GPUS:-}" ] || fail 2 "sbatch --gpus=$SLURM_GPUS: ask for GPUs by the node, with --gpus-per-node"
[ -x "$venv/bin/ray" ] || fail 2 "no Ray in the virtual environment $venv: make venv, or set VENV"
export PATH=$venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive RAY_USAGE_STATS_ENABLED=0

checked=''
case "$1 ${2:-}" in # a mistake of the user ends the job here, before anything is started
  "cai-dist run") checked=$(cai-dist check "${@:3}") || exit ;;
  "cai-dist stage") checked=$(cai-dist check "${@:4}") || exit ;;
esac
[ -z "$checked" ] || printf '%s\n' "$checked"

job=$SLURM_JOB_ID
restarts=${SLURM_RESTART_COUNT:-0}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
logs=${RAY_LOGS:-$PWD/runs/slurm}/$job
mkdir -p "$logs" || fail 2 "cannot make the folder $logs"

# Ray's CPUs are places for workers, not cores. Of a run that asks for more of them than the job has cores, each node gets
# its part and one place more, so that the last one finds a node, too.
places() { # CPUS NODES < what cai-dist check has printed
  local asked place each
  read -r asked place < <(sed -n 's/^asks for: \([0-9]*\) CPUs at once ([a-z]*), \([0-9]*\) in one place.*/\1 \2/p')
  each=${asked:-0}
  [ "$2" -gt 1 ] && each=$(((each + $2 - 1) / $2 + ${place:-0}))
  echo $((each > $1 ? each : $1))
}

say() { echo "$(date +%T) [$job.$restarts] $*"; }

# ---- addresses, ports, tokens

if [ -n "${RAY_FLAT:-}" ]; then
  address=127.0.1.1
else
  address=${RAY_HEAD_ADDRESS:-$(getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }')}
  # This script runs on the first node, and many machines call themselves a loopback address.
  case "$address" in 127.*) address=$(hostname -I | awk '{ print $1 }') ;; esac
  [ -n "$address" ] || fail 42 "no address for node $head: set RAY_HEAD_ADDRESS"
fi
# One for Ray and one for its client server, which cannot be switched off. Jobs that share a host have different numbers;
# what else may listen there is stepped over.
ports=$(python - "$job" <<'PYTHON'
import socket, sys
free = []
for step in range(99):
    port = 20000 + (int(sys.argv[1]) + 101 * step) % 10000
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            continue
    free.append(port)
    if len(free) == 2:
        print(*free)
        break
PYTHON
)
[ -n "$ports" ] || fail 42 "no free ports on $head"
# Ray listens on every interface. The token must be there for all of its processes, so it is made before any starts.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_ADDRESS=$address:${ports% *} RAY_AUTH_MODE RAY_AUTH_TOKEN
unset RAY_AUTH_TOKEN_PATH
# Notice a dead node within about 15 s.
export RAY_health_check_initial_delay_ms=5000 RAY_health_check_period_ms=2000
export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3
CAI_RAY_PLACES=$(places "$cpus" "${#nodes[@]}" <<<"$checked")
export CAI_RAY_CLUSTER=$job.$restarts CAI_RAY_LOGS=$logs CAI_RAY_CLIENT_PORT=${ports#* } CAI_RAY_PLACES

# ---- signals and the end

driver='' waiter='' steps=() stopped='' again=yes

# Called by the traps.
# shellcheck disable=SC2317
forward() { # SIGNAL
  say "got $1"
  stopped=$1
  [ "$1" = USR2 ] && again='' # save and end, stay out of the queue
  if [ -n "$driver$waiter" ]; then kill -TERM "${driver:-$waiter}" 2>/dev/null; fi
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM
trap 'forward USR2' USR2

running() { # PID …: whether all of them are
  local pid
  for pid in "$@"; do kill -0 "$pid" 2>/dev/null || return 1; done
}

until_next_look() { # ends early on a signal
  sleep 1 &
  wait $!
}

step_ids() { squeue --noheader --steps --jobs "$job" --format %i 2>/dev/null | grep -E '\.[0-9]+$'; }

# The nodes end Ray on USR2 (ray_node.sh). KILL, again and again, for one that does not: a step that outlives the kill by
# a minute would drain its node. `ray stop` is never used: it ends every Ray process that it can see.
stop_ray() {
  local signal=USR2 try step
  for try in $(seq 60); do
    [ "$try" -gt 45 ] && signal=KILL
    [ "${#steps[@]}" -eq 0 ] && return
    if [ $((try % 5)) -eq 1 ] || [ "$signal" = KILL ]; then # Slurm does not know a step before it has begun
      for step in $(step_ids); do scancel --signal="$signal" "$step" 2>/dev/null; done
    fi
    for step in "${!steps[@]}"; do running "${steps[$step]}" || unset "steps[$step]"; done
    sleep 0.5
  done
  kill -9 "${steps[@]}" 2>/dev/null
  steps=()
}

# shellcheck disable=SC2317
clean_up() {
  local code=$?
  trap '' TERM USR1 USR2
  [ -n "$driver" ] && kill -9 "$driver" 2>/dev/null
  [ -n "$waiter" ] && kill -9 "$waiter" 2>/dev/null
  stop_ray
  exit "$code"
}
trap clean_up EXIT

# ---- Ray

on_nodes() { # SRUN-OPTION … -- ROLE
  # --export: sbatch --export=NONE must not keep the token from the nodes. Totals of the job are no options of a step.
  local gpus=()
  [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ] && gpus=("--gpus-per-node=$SLURM_GPUS_ON_NODE")
  env -u SLURM_NTASKS -u SLURM_NPROCS -u SLURM_NTASKS_PER_NODE -u SLURM_DISTRIBUTION \
    srun --overlap --export=ALL --ntasks-per-node=1 --cpus-per-task="$cpus" --kill-on-bad-exit=0 "${gpus[@]}" \
    "${@:1:$#-2}" bash "$home/slurm/ray_node.sh" "${!#}" &
  steps+=($!)
}

say "Ray on ${#nodes[@]} nodes ($SLURM_JOB_NODELIST) at $RAY_ADDRESS, logs in $logs"
[ "$CAI_RAY_PLACES" -gt "$cpus" ] &&
  say "the run asks for $CAI_RAY_PLACES CPUs on a node of $cpus: workers share cores; sbatch --cpus-per-task=$CAI_RAY_PLACES gives each its own"
on_nodes --nodes=1 --ntasks=1 --nodelist="$head" -- head
head_step=${steps[0]}
others=$((${#nodes[@]} - 1))
[ "$others" -gt 0 ] && on_nodes --nodes="$others" --ntasks="$others" --exclude="$head" -- worker

python - "${RAY_WAIT:-180}" "${steps[*]}" "$logs" "${nodes[@]}" <<'PYTHON' &
import os, socket, sys, time
from pathlib import Path

from ray._raylet import GcsClient  # noqa: TID251

limit, steps, logs, names = float(sys.argv[1]), [int(pid) for pid in sys.argv[2].split()], Path(sys.argv[3]), sys.argv[4:]
start = time.monotonic()


def missing():
    host, _, port = os.environ["RAY_ADDRESS"].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()  # GcsClient would wait for long, and warn
        infos = GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info(timeout=2)
    except Exception:  # not up yet
        return names
    up = {info.node_name for info in infos.values() if info.state == 0}
    return [name for name in names if name not in up]


def ended():
    for pid in steps:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
    return False


def last_line(name):
    try:
        lines = (logs / f"{name}.log").read_text(errors="replace").split("\n")
    except OSError:
        return "it has written nothing"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it has written nothing")


while left := missing():
    failed = [name for name in names if (logs / f"{os.environ['CAI_RAY_CLUSTER']}.failed.{name}").exists()]
    late = time.monotonic() - start > limit
    over = "after its start had ended" if failed or ended() else f"within {limit:.0f} s" if late else ""
    if over:
        # Without the first node none is up: it is the one to look at where none has failed.
        left = failed or left
        first = left[0]
        print(f"ray_cluster.sh: Ray is not up on {', '.join(left)} ({len(names)} nodes) {over}; "
              f"{logs / first}.log: {last_line(first)}", file=sys.stderr)
        sys.exit(42)
    time.sleep(0.5)
print(f"Ray is up on {len(names)} nodes after {time.monotonic() - start:.0f} s")
PYTHON
waiter=$!
while running "$waiter"; do until_next_look; done
wait "$waiter"
code=$?
waiter=

# ---- the command

if [ -n "$stopped" ]; then
  code=75
elif [ "$code" -ne 0 ]; then
  exit 42
else
  "$@" &
  driver=$!
  [ -n "$stopped" ] && kill -TERM "$driver" # it came between the two lines above
  lost='' headless=''
  while running "$driver"; do
    if [ -z "$lost" ] && ! running "${steps[@]}"; then
      lost=yes
      [ -z "$stopped" ] && say "Ray has ended on a node"
    fi
    # Without the first node's Ray there is nothing to wait for: a command that hangs must not hold the nodes.
    [ -z "$headless" ] && ! running "$head_step" && headless=$SECONDS
    [ -n "$headless" ] && [ $((SECONDS - headless)) -gt 120 ] && kill -9 "$driver"
    until_next_look
  done
  wait "$driver"
  code=$?
  driver=
  say "the command ended with exit code $code"
  # Not the command's own failure: Ray went away under it.
  if [ -n "$lost" ]; then case "$code" in 0 | 2 | 8 | 75) ;; *) code=75 ;; esac; fi
fi

# ---- once more?

# A job that the user has cancelled, or that Slurm has put back already, is not ours to put back.
requeue() {
  local state
  state=$(squeue --noheader --jobs "$job" --format %T 2>/dev/null)
  if [ -z "$again" ]; then
    say "interrupted; it stays out of the queue as asked"
  elif [ "$state" != RUNNING ]; then
    say "interrupted; the job is ${state:-over}"
  elif [ "$restarts" -ge "${CAI_MAX_REQUEUES:-20}" ]; then
    say "interrupted, but not put back into the queue: it was $restarts times (CAI_MAX_REQUEUES)"
  elif scontrol requeue "$job"; then
    say "interrupted; back into the queue"
    sleep 60 # Slurm ends this script
  fi
}

stop_ray
[ "$code" -eq 75 ] && requeue
exit "$code"
