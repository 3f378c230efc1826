"""Inside tests/slurm/cluster.sh: a sweep by two SLURM workers, one of them preempted. Prints what it finds.

`scenario.py preempt`: a job of higher priority takes a GPU away; the worker must come back and all be done.
`scenario.py cancel`: the array is cancelled; no worker may come back, and a sweep on this machine does the rest.
"""

import subprocess
import sys
import time
from pathlib import Path

STUB = Path(__file__).resolve().parent.parent / "sweep_stub.py"
SWEEP = [sys.executable, STUB, "6", "--task_set_name", "x", "--num_samples", "15", "--behave", "sleep:1"]


def output(*command) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.strip()


def completed() -> int:
    path = Path("sampled_tasks/x.txt")
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = [path.read_text() for path in Path("sampled_tasks/x/logs").glob("slurm-*")]
            raise SystemExit("\n".join(["waited in vain", output("scontrol", "show", "jobs"), *logs]))
        time.sleep(0.1)


job = output(*SWEEP, "--launcher", "slurm", "--workers", 2, "--partition", "low", "--gres", "gpu:1", "--time", "5")
print(job)
number = job.partition("SLURM job ")[2].partition(":")[0]
wait_for(lambda: completed() >= 2, 20)
if sys.argv[1] == "preempt":
    output("sbatch", "--partition=high", "--gres=gpu:1", "--output=/dev/null", "--wrap=sleep 3")
    requeued = ["squeue", "-h", "-t", "PD", "-p", "low", "-o", "%A"]
    wait_for(lambda: output(*requeued), 20)
    # SLURM lets a job wait for two minutes before it starts again
    output("scontrol", "update", "StartTime=now", f"JobId={output(*requeued)}")
    wait_for(lambda: completed() == 15 and not output("squeue", "-h"), 60)
    print("restarts:", sum(int(word.partition("=")[2]) for word in output("scontrol", "show", "jobs").split()
                           if word.startswith("Restarts=")))
else:
    output("scancel", number)
    wait_for(lambda: not output("squeue", "-h"), 30)
    time.sleep(5)  # a requeued job would show by now
    print("queue:", output("squeue", "-h") or "empty", "completed:", completed() < 15)
    print(output(*SWEEP, "--ledger", "heartbeat", "--device", "cpu"))
print(output("scontrol", "show", "jobs"))
print("".join(path.read_text() for path in Path("sampled_tasks/x/logs").glob("slurm-*")))
