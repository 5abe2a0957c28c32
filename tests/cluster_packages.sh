#!/usr/bin/env bash
# What `make test-cluster` needs beyond the virtual environment: Slurm's daemons, and `ip` for network namespaces.
set -eu
missing=
for command in slurmctld slurmd sbatch munged ip; do command -v "$command" >/dev/null || missing+=" $command"; done
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || {
  echo "make test-cluster: missing:$missing; install slurmctld, slurmd, slurm-client, munge and iproute2" >&2; exit 2; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  slurmctld slurmd slurm-client munge iproute2 iputils-ping >/dev/null
