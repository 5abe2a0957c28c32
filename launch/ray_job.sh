#!/usr/bin/env bash
# Run a pipeline as a job of a Ray cluster that is already up: `cai-dist job`, from the checkout's own environment.
#
#   launch/ray_job.sh RUN.yaml [key.sub=value …]          submit and follow; ends with the run's own exit code
#   launch/ray_job.sh --no-wait RUN.yaml [key.sub=value …]  submit and print the job's name
#   launch/ray_job.sh status|logs|stop ID, list
#
# RAY_API_SERVER_ADDRESS          the dashboard of the cluster, default http://127.0.0.1:8265
# RAY_AUTH_MODE, RAY_AUTH_TOKEN   as the cluster was started with; set them explicitly
# CAI_DIST_HOME                   the checkout as the cluster's nodes see it, with its .venv (default: this one)
# VENV                            another virtual environment for this command than .venv
#
# Ctrl-C stops the job: the run saves, and the same command goes on. All options: docs/ray-job.md
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || { sed -n '4,6s/^# *//p' "$0" >&2; exit 2; }
case $1 in status | logs | stop | list | submit) command=$1; shift ;; *) command=submit ;; esac
exec "${VENV:-$here/.venv}/bin/python" -m cai_dist job "$command" "$@"
