"""A stand-in for the training scripts: the same flags, results and exit codes, no training.

Each start and end is a line in `trace`; two at work on one subset at once would leave a line `overlap`.
`--behave` says what else it does: fail, refuse (exit 2), hang, sleep:<seconds>, stubborn (ignores TERM), kill, silent.
With `--behave_only A`, only where A is among the tasks.
"""

import argparse
import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from src.cli import die_with_parent
from src.identity import WITHOUT_EFFECT
from src.results import COLUMNS, Results

die_with_parent()
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--task_names", nargs="+")
parser.add_argument("--behave", default="well")
parser.add_argument("--behave_only")
parser.add_argument("--check")
parser.add_argument("--splits", nargs="+", default=["valid"])
parser.add_argument("--run_name")
for name in ("save_name", "results_dir", "output_dir"):
    parser.add_argument(f"--{name}", required=True)
for name in ("seed", "runs"):
    parser.add_argument(f"--{name}", type=int, required=True)
args, others = parser.parse_known_args()
if args.check:
    settings = {}
    for word in others:
        if word.startswith("--"):
            name = word[2:]
            if name == "nonsense":
                print("error: unknown argument '--nonsense'", file=sys.stderr)
                sys.exit(2)
        elif name not in WITHOUT_EFFECT:
            settings[name] = float(word) if re.fullmatch(r"[\d.e-]+", word) else word
    print("checked: " + json.dumps({"settings": settings, "config_hash": "hash", "splits": args.splits, "metrics": {
        name: ["exact_match"] for name in args.task_names}, "content": dict.fromkeys(args.task_names, "hash")}))
    sys.exit(0)
behave = args.behave if args.behave_only in (None, *args.task_names) else "well"


def trace(word: str) -> None:
    with Path("trace").open("a") as file:
        file.write(f"{word} {args.run_name} {os.getpid()} {' '.join(args.task_names)} "
                   f"[{os.environ.get('CUDA_VISIBLE_DEVICES')}]\n")


Path("locks").mkdir(exist_ok=True)
alone = os.open(Path("locks", args.run_name), os.O_CREAT)
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    trace("overlap")
trace("start")
print("the child speaks", flush=True)
if behave == "refuse":
    print("error: --nonsense is no flag", file=sys.stderr)
    sys.exit(2)
if behave == "fail":
    raise RuntimeError("out of luck")
if behave == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behave in ("hang", "stubborn"):
    if os.fork() == 0:  # like a data loader: must end with its group
        time.sleep(1000)
    time.sleep(1000)
if behave == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if behave.startswith("sleep:"):
    time.sleep(float(behave[6:]))
results = Results(args.results_dir, args.save_name)
for seed in range(args.seed, args.seed + args.runs):
    run_id = f"{args.run_name}-s{seed}"
    Path(args.output_dir, run_id, "checkpoint-1").mkdir(parents=True, exist_ok=True)
    if behave != "silent":
        rows = [{**dict.fromkeys(COLUMNS, ""), "run_id": run_id, "status": "completed", "seed": seed, "item": item,
                 "trained_on": " ".join(args.task_names), "split": split, "metric": "exact_match", "value": 0.5}
                for item in args.task_names for split in args.splits]
        results.write_run(run_id, rows, {"run_id": run_id})
trace("end")
