#!/usr/bin/env bash
#SBATCH --job-name=cai-sft
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=16 --time=08:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
#SBATCH --output=%x-%j.out
#
# Stage sft of a run on the nodes of a Slurm job; the stages before it must be finished. See docs/slurm.md.
#
#   sbatch slurm/sft.sh RUN.yaml [key.sub=value …]           from the root of the checkout
#   sbatch --nodes=2 --gpus-per-node=8 slurm/sft.sh RUN.yaml
set -eu
home=${CAI_DIST_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
[ $# -gt 0 ] || { echo "usage: sbatch slurm/sft.sh RUN.yaml [key.sub=value …]" >&2; exit 2; }
[ -f "$home/slurm/ray_cluster.sh" ] || {
  echo "sft.sh: sbatch from the root of the checkout, or set CAI_DIST_HOME" >&2
  exit 2
}
exec bash "$home/slurm/ray_cluster.sh" cai-dist stage sft "$@" cluster.address=auto
