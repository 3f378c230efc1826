"""The same sweep on many machines: workers on SLURM or Ray.

A worker is the very same command without `--launcher`: what keeps workers apart is the ledger, so local sweeps,
SLURM and Ray workers may share one task set.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from src.cli import PARENT, InputError, warn
from src.sweep.ledger import Ledger

# Flags of the command that starts the workers: none of theirs, or each is given its own.
OF_WORKERS = ("--launcher", "--workers", "--partition", "--gres", "--time", "--requeue", "--ledger", "--device",
              "--retry_failed")
SLURM_SCRIPT = """\
#!/bin/bash
#SBATCH --array=1-{workers}
#SBATCH --signal=B:TERM@30
#SBATCH --output={log}
#SBATCH --open-mode=append
{options}
# The end is near, or the job is preempted: stop the worker, which gives up its claim, and queue this job again.
# A job that was cancelled is no longer RUNNING and stays cancelled.
requeue() {{
    kill -TERM $worker; wait $worker
    [ "$(squeue -h -j $SLURM_JOB_ID -o %T | head -1)" = RUNNING ] && scontrol requeue $SLURM_JOB_ID
    exit 143
}}
trap requeue TERM
{command} &
worker=$!
wait $worker
"""


def launch(args: argparse.Namespace, ledger: Ledger) -> int:
    """Have the same command run by workers elsewhere; return the exit code."""
    split = args.command_line.index("--") if "--" in args.command_line else len(args.command_line)
    on_gpu = args.device != ["cpu"]
    command = [sys.executable, sys.argv[0], *_without(OF_WORKERS, args.command_line[:split]), "--ledger", ledger.mode,
               "--device", "all" if on_gpu else "cpu", *args.command_line[split:]]
    if args.launcher == "ray":
        return run_ray(command, args.workers, on_gpu)
    log = ledger.folder.absolute() / "logs" / "slurm-%A_%a.log"
    job = submit_slurm(command, args, log)
    print(f"SLURM job {job}: {args.workers} workers, logs {log}; --status shows how far they are")
    return 0


def _without(flags: Collection[str], words: Sequence[str]) -> list[str]:
    """The words of a command line without `flags` and their values."""
    kept, left_out = [], False
    for word in words:
        left_out = word.partition("=")[0] in flags if word.startswith("--") else left_out
        if not left_out:
            kept.append(word)
    return kept


def submit_slurm(command: list[str], args: argparse.Namespace, log: Path) -> str:
    """Submit an array of workers that run `command`; return the job's id."""
    if not shutil.which("sbatch"):
        raise InputError("--launcher slurm: there is no sbatch on this machine")
    options = {"job-name": args.task_set_name, "partition": args.partition, "gres": args.gres, "time": args.time}
    if not str(log).isprintable() or "\\" in str(log):  # a line break in it would begin an option, or a command
        raise InputError(f"--launcher slurm: the name of this folder cannot stand in a script: {str(Path.cwd())!r}")
    lines = [f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options.items() if value is not None]
    pattern = shlex.quote(str(log.parent).replace("%", "%%") + f"/{log.name}")
    lines.append("#SBATCH --requeue" if args.requeue else "#SBATCH --no-requeue")
    script = SLURM_SCRIPT.format(workers=args.workers, log=pattern, options="\n".join(lines),
                                 command=shlex.join(command))
    result = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True)
    if result.returncode:
        raise InputError(f"--launcher slurm: {' '.join(result.stderr.split())}")
    return result.stdout.strip().partition(";")[0]


def run_ray(command: list[str], workers: int, on_gpu: bool) -> int:
    """Run `command` as Ray tasks on RAY_ADDRESS, or on this box; return the worst exit code.

    A worker whose process or machine died is started again, at most as often as there are workers.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--launcher ray: ray is not installed; pip install -r requirements-cluster.txt") from error
    ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True, include_dashboard=False)

    # max_calls=0: a task with a GPU would otherwise get a fresh process each, which costs half a second
    @ray.remote(num_gpus=1 if on_gpu else 0, num_cpus=0 if on_gpu else 1, max_calls=0, max_retries=0)
    def worker(command: list[str], folder: str) -> int:
        # the same session as Ray's worker, and dies with it: an orphan would be in the way of its successor
        environment = os.environ | {PARENT: str(os.getpid())}
        return subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL).returncode

    folder, restarts = str(Path.cwd()), workers
    running, codes = [worker.remote(command, folder) for _ in range(workers)], []
    while running:
        (ended,), running = ray.wait(running, num_returns=1)
        try:
            codes.append(ray.get(ended))
        except ray.exceptions.RayError as error:
            warn(f"a Ray worker died ({type(error).__name__})")
            if restarts:
                restarts -= 1
                running.append(worker.remote(command, folder))
            else:
                codes.append(1)
    ray.shutdown()
    return max(codes, key=abs)
