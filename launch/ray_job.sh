#!/usr/bin/env bash
# Run a pipeline as a job of a Ray cluster that is already up, follow its output, end with its exit code.
#
#   launch/ray_job.sh RUN.yaml [key.sub=value …]
#
# RAY_API_SERVER_ADDRESS   the dashboard of the cluster, default http://127.0.0.1:8265 (`ray start --head` must have been
#                          given --include-dashboard=true)
# RAY_AUTH_MODE, RAY_AUTH_TOKEN   as the cluster was started with; set them explicitly
# CAI_DIST_HOME            the checkout as the cluster's nodes see it, with its .venv (default: this one)
#
# Nothing is uploaded: all nodes must see the same checkout, virtual environment and data (a shared disk). `ray job submit`
# is not used because it answers every failure with exit code 1. Ctrl-C stops the job: the run saves and can go on.
#
# Tried: against Ray 2.60 on one CPU-only machine: a run of the micro-world whose stages were finished before (exit code 0)
# and a run file with a mistake (2). Not tried: several hosts, GPUs, Ctrl-C, a whole run from its start.
set -eu
here=${CAI_DIST_HOME:-$(cd "$(dirname "$0")/.." && pwd)}
[ $# -gt 0 ] || { echo "usage: launch/ray_job.sh RUN.yaml [key.sub=value …]" >&2; exit 2; }
exec "${VENV:-$here/.venv}/bin/python" - "$here" "${VENV:-$here/.venv}" "$@" <<'PYTHON'
import os, shlex, sys, time

from ray.job_submission import JobStatus, JobSubmissionClient

here, venv, *arguments = sys.argv[1:]
run = shlex.join([f"{venv}/bin/cai-dist", "run", *arguments, "cluster.address=auto"])
passed = {name: os.environ[name] for name in ("CAI_DIST_DATA", "CAI_DIST_CACHE") if name in os.environ}
address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")


def submit():
    """A cluster that has just come up refuses jobs for some seconds: try for a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client = JobSubmissionClient(address)
            return client, client.submit_job(
                entrypoint=f"cd {shlex.quote(here)} && exec {run}",
                runtime_env={"env_vars": {"OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1", **passed}},
            )
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"ray_job.sh: {address} takes no job: {' '.join(str(error).split())[:300]}")
            time.sleep(2)


client, job = submit()
print(f"job {job}: {run}", flush=True)

shown, over = 0, (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
while True:
    try:
        status = client.get_job_status(job)
        log = client.get_job_logs(job)
        sys.stdout.write(log[shown:])
        sys.stdout.flush()
        shown = len(log)
        if status in over:
            break
        time.sleep(1)
    except KeyboardInterrupt:
        print("\nstopping the job", flush=True)
        client.stop_job(job)

info = client.get_job_info(job)
if info.driver_exit_code is None:
    print(f"job {job}: {status.value}: {info.message}", file=sys.stderr)
sys.exit(1 if info.driver_exit_code is None else info.driver_exit_code)
PYTHON
