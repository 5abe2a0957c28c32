#!/usr/bin/env bash
#SBATCH --job-name=cai-pipeline
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=16 --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
#SBATCH --output=%x-%j.out
#
# A whole run, in one job or in one job for each stage. See docs/slurm.md.
#
#   sbatch slurm/pipeline.sh RUN.yaml [key.sub=value …]                  all stages in one job
#   sbatch slurm/pipeline.sh --stage NAME RUN.yaml [key.sub=value …]     one stage; those before it must be finished
#   bash slurm/pipeline.sh --chain RUN.yaml [key.sub=value …] [-- SBATCH-OPTION …]
#       submit a job for each stage, each after the one before it (afterok), and print their numbers
#
# From the root of the checkout.
set -euo pipefail

home=${CAI_DIST_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
usage() {
  echo "usage: sbatch slurm/pipeline.sh [--stage NAME] RUN.yaml [key.sub=value …]" >&2
  echo "       bash slurm/pipeline.sh --chain RUN.yaml [key.sub=value …] [-- SBATCH-OPTION …]" >&2
  exit 2
}

# The script of a stage, which knows its time limit.
job_of() { # STAGE -> script
  case "$1" in
    sft) script=("$home/slurm/sft.sh") ;;
    preference) script=("$home/slurm/pm.sh") ;;
    ppo) script=("$home/slurm/ppo.sh") ;;
    *) script=("$home/slurm/pipeline.sh" --stage "$1") ;;
  esac
}

chain() {
  local run=() options=() submitted=() checked stages stage script job after
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    run+=("$1")
    shift
  done
  [ ${#run[@]} -gt 0 ] || usage
  [ $# -gt 0 ] && options=("${@:2}")
  checked=$("${VENV:-$home/.venv}/bin/cai-dist" check "${run[@]}" cluster.address=auto)
  stages=$(sed -n 's/^stages: //p' <<<"$checked")
  [ -n "$stages" ] || { echo "pipeline.sh: cai-dist check names no stages" >&2; exit 1; }
  for stage in ${stages//->/ }; do
    job_of "$stage"
    after=()
    [ ${#submitted[@]} -gt 0 ] && after=("--dependency=afterok:${submitted[-1]}" --kill-on-invalid-dep=yes)
    job=$(sbatch --parsable "--job-name=cai-$stage" "${options[@]}" "${after[@]}" "${script[@]}" "${run[@]}") || {
      echo "pipeline.sh: sbatch has refused the job of stage $stage" >&2
      [ ${#submitted[@]} -eq 0 ] || scancel "${submitted[@]}"
      exit 2
    }
    job=${job%%;*} # JOB;CLUSTER
    echo "$stage: job $job${submitted[0]:+ after ${submitted[-1]}}"
    submitted+=("$job")
  done
}

[ $# -gt 0 ] || usage
[ -f "$home/slurm/ray_cluster.sh" ] || {
  echo "pipeline.sh: start it from the root of the checkout, or set CAI_DIST_HOME" >&2
  exit 2
}
case "$1" in
  --chain) chain "${@:2}" ;;
  --stage)
    [ $# -gt 2 ] || usage
    exec bash "$home/slurm/ray_cluster.sh" cai-dist stage "${@:2}" cluster.address=auto
    ;;
  *) exec bash "$home/slurm/ray_cluster.sh" cai-dist run "$@" cluster.address=auto ;;
esac
