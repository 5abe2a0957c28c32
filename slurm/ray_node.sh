#!/usr/bin/env bash
# The Ray of one node of a Slurm job: ray_cluster.sh starts this by srun, once on each node.
#
#   ray_node.sh head|worker
#
# Ends with Ray, on USR2 (ray_cluster.sh) or on TERM (Slurm); then ends every process that this Ray has started, keeps its
# logs in the job's folder ($CAI_RAY_LOGS) and removes its files from the node.
set -uo pipefail

role=$1
index=0
[ "$role" = worker ] && index=$((SLURM_PROCID + 1))
exec >>"$CAI_RAY_LOGS/$SLURMD_NODENAME.log" 2>&1 || exit 1
echo "$(date +%T) [$CAI_RAY_CLUSTER] Ray on $SLURMD_NODENAME"

mark=$CAI_RAY_CLUSTER.$index
folder=${RAY_TMPDIR:-/tmp}/cai-$mark # short: a socket's path has 107 bytes at most
mkdir -m 700 "$folder" || exit 1

# This node's share of the job's memory in MiB; where the job has asked for none, the share of the node's CPUs.
share() {
  if [ "${SLURM_MEM_PER_NODE:-0}" -gt 0 ]; then
    echo "$SLURM_MEM_PER_NODE"
  elif [ "${SLURM_MEM_PER_CPU:-0}" -gt 0 ]; then
    echo $((SLURM_MEM_PER_CPU * SLURM_CPUS_ON_NODE))
  else
    awk -v cpus="$SLURM_CPUS_ON_NODE" -v all="$(nproc --all)" \
      '/^MemTotal:/ { print int($2 / 1024 * (cpus < all ? cpus / all : 1)) }' /proc/meminfo
  fi
}

# 30% of the share, as Ray would take of a whole machine; not more than there is of shared memory, not less than Ray needs.
store_bytes() {
  local megabytes shared
  megabytes=$(($(share) * 3 / 10))
  shared=$(df --output=avail -m /dev/shm | tail -n 1)
  [ "$megabytes" -gt $((shared * 9 / 10)) ] && megabytes=$((shared * 9 / 10))
  [ "$megabytes" -lt 100 ] && megabytes=100
  echo $((megabytes * 1048576))
}

options=("--num-cpus=$CAI_RAY_PLACES" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}" "--node-name=$SLURMD_NODENAME"
  "--object-store-memory=${RAY_STORE_BYTES:-$(store_bytes)}" "--temp-dir=$folder/r" --disable-usage-stats
  # Random ports: jobs, and in tests nodes, may share a host.
  --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0
  --log-style=record --log-color=false --block)
if [ "$role" = head ]; then
  options+=(--head "--node-ip-address=${RAY_ADDRESS%:*}" "--port=${RAY_ADDRESS##*:}" --include-dashboard=false
    "--ray-client-server-port=$CAI_RAY_CLIENT_PORT")
else
  options+=("--address=$RAY_ADDRESS")
  [ -n "${RAY_FLAT:-}" ] && options+=("--node-ip-address=127.0.1.$((index + 1))")
fi

# Whether Ray has come up since the log's last headline: it goes on after a requeue.
up() { tac "$CAI_RAY_LOGS/$SLURMD_NODENAME.log" | sed "/\[$CAI_RAY_CLUSTER\] Ray on/q" | grep 'Ray runtime started' >/dev/null; }

# All processes of this Ray, whoever their parent is by now: they carry the mark in their environment.
processes() { grep -lszxF "CAI_RAY_NODE=$mark" /proc/[0-9]*/environ | cut -d / -f 3; }

end_processes() {
  local pid
  for _ in 1 2 3 4 5; do
    for pid in $(processes); do kill -9 "$pid" 2>/dev/null; done
    [ -z "$(processes)" ] && break
    sleep 0.2
  done
}

# shellcheck disable=SC2317
clean_up() {
  local code=$?
  trap '' TERM USR2
  exec 2>/dev/null # "Killed"
  end_processes
  cp -r "$folder"/r/session_2*/logs "$CAI_RAY_LOGS/$SLURMD_NODENAME.$CAI_RAY_CLUSTER"
  rm -rf "$folder"
  exit "$code"
}
trap clean_up EXIT

told=''
trap 'told=yes' TERM USR2
# Ray gives its own start half a minute, which a slow disk or a busy machine may exceed: then once more, until RAY_WAIT.
# What ends at once will end at once again.
while [ $SECONDS -lt "${RAY_WAIT:-180}" ]; do
  begun=$SECONDS
  # SPT_NOENV: Ray's workers would write their titles over their environment.
  env "CAI_RAY_NODE=$mark" SPT_NOENV=1 ray start "${options[@]}" &
  wait $!
  [ -n "$told" ] && exit 0
  if [ $((SECONDS - begun)) -lt 20 ] || up; then break; fi
  end_processes
  rm -rf "$folder/r"
done
touch "$CAI_RAY_LOGS/$CAI_RAY_CLUSTER.failed.$SLURMD_NODENAME" # ray_cluster.sh looks for it
exit 1 # what Ray ends by itself is a failure, whatever it calls it
