#!/usr/bin/env bash
# Bring Ray up on every node of this Slurm allocation, run one command against it, take Ray down again.
#
#   with_ray.sh COMMAND [ARGUMENT …]          inside a batch script (slurm/ppo.sh and the others call it)
#
# Exit code: that of the command. 75 ("interrupted, everything is saved") puts the job back into the queue; the same
# command then goes on where it stopped. 42: the nodes did not come up in time.
#
# Environment, all optional:
#   VENV              the virtual environment, on a disk that every node sees     (default: .venv of the submit directory)
#   RAY_LOGS          folder for the output of Ray's own processes                (default: runs/ray-logs)
#   RAY_WAIT          seconds to wait for the nodes                               (default: 180)
#   RAY_STORE_BYTES   size of each node's object store                            (default: Ray decides)
#   RAY_FLAT=1        test clusters whose "nodes" share one host: one loopback address for each
#
# Tried: see the header of ppo.sh.
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:?run this inside a Slurm allocation}" || exit 2
# shellcheck source=/dev/null
source "${VENV:-$PWD/.venv}/bin/activate" || exit 2
[ $# -gt 0 ] || { echo "with_ray.sh: no command given" >&2; exit 2; }

job=$SLURM_JOB_ID
nodes=$SLURM_JOB_NUM_NODES
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
logs=${RAY_LOGS:-$PWD/runs/ray-logs}
mkdir -p "$logs"

export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive RAY_USAGE_STATS_ENABLED=0
# Ray listens on every interface. The token must be there for all of its processes, so it is made before any starts.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
# Notice a dead node within about 15 s.
export RAY_health_check_initial_delay_ms=5000 RAY_health_check_period_ms=2000
export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3

own_address=()
if [ -n "${RAY_FLAT:-}" ]; then
  address=127.0.0.2
  # SLURM_PROCID is expanded on the worker, not here.
  # shellcheck disable=SC2016
  own_address=('--node-ip-address=127.0.0.$((3 + SLURM_PROCID))')
else
  address=$(getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }')
fi
[ -n "$address" ] || { echo "with_ray.sh: no address for node $head" >&2; exit 42; }
export RAY_ADDRESS=$address:$((20000 + job % 10000))

options=("--num-cpus=$cpus" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --log-style=record --log-color=false)
[ -n "${RAY_STORE_BYTES:-}" ] && options+=("--object-store-memory=$RAY_STORE_BYTES")

say() { echo "$(date +%T) [$job.${SLURM_RESTART_COUNT:-0}] $*"; }

steps() { squeue --noheader --steps --jobs "$job" --format %i | grep -E '\.[0-9]+$' | sort -t. -k2 -rn; }

# KILL, because TERM makes `ray start --block` drain for half a minute. Again and again, because a step that outlives the
# kill by a minute would drain its node. `ray stop` is never used: it ends every Ray process that it can see.
stop_ray() {
  local step
  for _ in $(seq 20); do
    [ -z "$(steps)" ] && break
    for step in $(steps); do scancel --signal=KILL "$step" 2>/dev/null; done
    sleep 0.7
  done
  local waiting
  waiting=$(jobs -p)
  # shellcheck disable=SC2086
  [ -n "$waiting" ] && kill -9 $waiting 2>/dev/null
  wait 2>/dev/null
}

driver=
# Called by the traps.
# shellcheck disable=SC2317
forward() {
  say "got $1"
  [ -n "$driver" ] && kill "-$1" "$driver" 2>/dev/null
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

srun --overlap -N1 -n1 -w "$head" -c "$cpus" -o "$logs/$job-head.log" --open-mode=append \
  ray start --head "--node-ip-address=$address" "--port=${RAY_ADDRESS##*:}" --include-dashboard=false "${options[@]}" \
  --block &
if [ "$nodes" -gt 1 ]; then
  srun --overlap "-N$((nodes - 1))" "-n$((nodes - 1))" -x "$head" -c "$cpus" -o "$logs/$job-worker%t.log" --open-mode=append \
    bash -c "exec ray start --address=$RAY_ADDRESS ${own_address[*]} ${options[*]} --block" &
fi

python - "$nodes" "${RAY_WAIT:-180}" <<'PYTHON'
import os, sys, time
from ray._raylet import GcsClient

wanted, limit, alive, start = int(sys.argv[1]), float(sys.argv[2]), 0, time.monotonic()
while time.monotonic() - start < limit:
    try:
        infos = GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info(timeout=2)
        alive = sum(info.state == 0 for info in infos.values())
        if alive >= wanted:
            print(f"Ray is up on {alive} nodes after {time.monotonic() - start:.0f} s")
            sys.exit(0)
    except Exception:  # not up yet
        pass
    time.sleep(0.5)
print(f"gave up: Ray is up on {alive} of {wanted} nodes after {limit:.0f} s", file=sys.stderr)
sys.exit(1)
PYTHON
up=$?
if [ "$up" -ne 0 ]; then
  tail -n 5 "$logs/$job"-*.log >&2
  stop_ray
  exit 42
fi

"$@" &
driver=$!
# A signal ends `wait` early: wait until the driver is really gone.
while :; do
  wait "$driver"
  code=$?
  kill -0 "$driver" 2>/dev/null || break
done
say "the command ended with exit code $code"
stop_ray
if [ "$code" -eq 75 ]; then
  say "requeue"
  scontrol requeue "$job" && sleep 120
fi
exit "$code"
