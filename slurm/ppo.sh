#!/usr/bin/env bash
#SBATCH --job-name=cai-ppo
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=16 --gpus-per-node=8 --time=12:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@300
#SBATCH --output=%x-%j.out
#
# Stage 5 (PPO) of a run on the nodes of a Slurm job; the stages before it must be finished.
#
#   sbatch slurm/ppo.sh RUN.yaml [key.sub=value …]           from the root of the checkout
#   sbatch --nodes=2 --gpus-per-node=4 slurm/ppo.sh RUN.yaml
#
# Five minutes before the end of its time the job is told to stop (USR1), saves, and queues itself again.
#
# Tried: with Slurm 22.05 and two slurmd on one CPU-only machine (RAY_FLAT=1, no GPUs): pipeline.sh ran all six stages of a
# tiny micro-world run over both nodes, ppo.sh repeated stage 5 of it, exit codes 2 and 3 came through, and a job told to stop
# by USR1 was requeued and went on. Not tried: a real cluster, several hosts, GPUs, the end of a time limit.
set -eu
cd "${SLURM_SUBMIT_DIR:-$PWD}"
[ $# -gt 0 ] || { echo "usage: sbatch slurm/ppo.sh RUN.yaml [key.sub=value …]" >&2; exit 2; }
exec bash slurm/with_ray.sh cai-dist stage ppo "$@" cluster.address=auto
