"""What a sweep costs per subset, beside the training itself: `python tests/bench_sweep.py` (about two minutes).

1. Scheduler and ledger: wall and CPU time of a sweep of trivial children over the same commands run one after another.
2. Start of a real child (tiny T5, two steps): afresh, and forked from the warm forkserver.
3. Merging the results of trivial children: its share of the sweep's time. `--runs 10000` for as many (ten minutes).
"""

import argparse
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timed(*command) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command with its children, and what it printed."""
    wall, used = time.perf_counter(), cpu()
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stdout + run.stderr)
    return time.perf_counter() - wall, cpu() - used, run.stdout


def scheduler(number: int = 100) -> None:
    sweep = [sys.executable, ROOT / "tests" / "sweep_stub.py", 40, "--num_samples", number, "--device", "cpu",
             "--warm_start", "False", "--task_set_name"]
    idle = timed(*sweep, "idle", "--num_samples", 1)
    commands = [line for line in timed(*sweep, "bare", "--dry_run")[2].splitlines() if "stub_child.py" in line]
    bare = [timed(*shlex.split(command))[:2] for command in commands]
    whole = timed(*sweep, "swept")
    wall, used = ((whole[i] - idle[i] - sum(child[i] for child in bare)) / (number - 1) for i in (0, 1))
    print(f"scheduler and ledger, per subset: {wall * 1000:.1f} ms, CPU {used * 1000:.1f} ms (limit: 50 ms)")


def start(warm: bool, number: int) -> None:
    data = ROOT / "data"
    sweep = [sys.executable, ROOT / "train_sample_tasks.py", "--task_names", "demo_*", "--device", "cpu",
             "--model_name_or_path", data / "models" / "tiny-t5", "--data_dir", data / "splits" / "default",
             "--task_dir", data / "tasks", "--max_steps", 2, "--eval_steps", 2, "--save_steps", 2, "--downsample", 16,
             "--warm_start", warm, "--task_set_name", f"warm_{warm}"]
    first, second = timed(*sweep, "--num_samples", 1), timed(*sweep, "--num_samples", 1 + number)
    wall, used = ((second[i] - first[i]) / (number - 1) for i in (0, 1))  # less the start of the sweep, paid once
    print(f"a child of two steps, {'forked' if warm else 'afresh'}: {wall:.2f} s, CPU {used:.2f} s"
          + (" (limit: CPU 1 s)" if warm else ""))


MERGING = """
import runpy, sys, time
from src.results import Results
whole, spent, began = Results.merge, [], time.perf_counter()
def merge(self):
    before = time.perf_counter()
    try:
        return whole(self)
    finally:
        spent.append(time.perf_counter() - before)
Results.merge = merge
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    took = time.perf_counter() - began
    print(f"{len(spent)} merges of {sum(spent):.2f} s in {took:.0f} s: {sum(spent) / took:.2%} (limit: 2 %)")
"""


def merging(number: int) -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    out = timed(sys.executable, "-c", MERGING, ROOT / "tests" / "sweep_stub.py", 160, "--num_samples", number,
                "--device", "cpu", "--jobs_per_device", 2, "--task_set_name", "merged")[2]
    print(f"results of {number} runs: {out.splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="runs whose results are merged (default: 1000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        scheduler()
        start(False, 4)
        start(True, 20)
        merging(args.runs)


if __name__ == "__main__":
    main()
