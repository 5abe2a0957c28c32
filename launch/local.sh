#!/usr/bin/env bash
# Run a pipeline on this machine, with a Ray of its own.
#
#   launch/local.sh RUN.yaml [key.sub=value …]
#
# The settings below matter on machines that are shared: idle OpenMP threads sleep instead of spinning (which can cost a
# factor of ten), and Ray reports no usage. VENV names another virtual environment than .venv.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || { echo "usage: launch/local.sh RUN.yaml [key.sub=value …]" >&2; exit 2; }
export OMP_WAIT_POLICY=passive RAY_USAGE_STATS_ENABLED=0
exec "${VENV:-$here/.venv}/bin/cai-dist" run "$@" cluster.address=local
