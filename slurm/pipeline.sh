#!/usr/bin/env bash
#SBATCH --job-name=cai-pipeline
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=16 --gpus-per-node=8 --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@300
#SBATCH --output=%x-%j.out
#
# All six stages of a run on the nodes of a Slurm job. Usage and what has been tried: see ppo.sh.
set -eu
cd "${SLURM_SUBMIT_DIR:-$PWD}"
[ $# -gt 0 ] || { echo "usage: sbatch slurm/pipeline.sh RUN.yaml [key.sub=value …]" >&2; exit 2; }
exec bash slurm/with_ray.sh cai-dist run "$@" cluster.address=auto
