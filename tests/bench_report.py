"""The page of a large sweep: `python -m tests.bench_report`.

A sweep is made up, with records of its runs, clustered and planned, and its page written: at most 20 s and 5 MB.
"""

import argparse
import contextlib
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from src.cluster import __main__ as cluster
from src.plan import __main__ as plan
from src.report import __main__ as report
from src.results import COLUMNS, Results

PACKAGES = {"torch": "2.13.0", "transformers": "5.23.0"}


def made_up_run(results: Results, members: tuple[str, ...], scores: dict[str, float], seed: int, **others) -> None:
    """The rows and the record of a run, as a training leaves them, with five evaluations on the way."""
    trained_on, run_id = " ".join(members), f"{'-'.join(members)}"[:60] + f"-s{seed}"
    log = [{"step": 20 * at} | {f"eval_{item}_exact_match": round(score * (1 - 0.5**at), 4)
                                for item, score in scores.items()} for at in range(1, 6)]
    record = {"run_id": run_id, "status": "completed", "seed": seed, "trained_on": trained_on, "config_hash": "c0ffee",
              "command": ["train_multitask.py", "--task_names", *members], "commit": "0123456789abcdef", "dirty": False,
              "python": "3.11.7", "device": "cpu", "packages": PACKAGES, "processes": 1, "seconds": 30.0,
              "arguments": {"max_steps": 100, "learning_rate": 1e-3, "fp16": False, "train_lora": False},
              "training": {"steps": 100, "log": [*log, {"train_runtime": 29.0, "step": 100}, log[-1]]}} | others
    rows = [dict.fromkeys(COLUMNS, "") | {
        "run_id": run_id, "status": record["status"], "seed": seed, "item": item, "trained_on": trained_on,
        "split": "valid", "model": "data/models/tiny-t5", "metric": "exact_match", "value": round(score, 6),
        "steps": 100, "seconds": record["seconds"], "config_hash": "c0ffee"} for item, score in scores.items()]
    results.write_part(run_id, rows, record)


def made_up_scores(members: tuple[str, ...], groups: int, rng: np.random.Generator) -> dict[str, float]:
    """Items of one group help each other, others harm; the group of an item is its number modulo `groups`."""
    group = {item: int(item.rpartition("_")[2]) % groups for item in members}
    return {item: float(np.clip(0.6 + sum(0.08 if group[other] == group[item] else -0.03 for other in members
                                          if other != item) / max(len(members) - 1, 1) + 0.01 * rng.normal(), 0, 1))
            for item in members}


def made_up_sweep(results: Results, items: tuple[str, ...], groups: int, runs: int, seeds: int = 1) -> None:
    """Items alone, all together, and pairs, `runs` runs at most."""
    rng = np.random.default_rng(0)
    subsets = [*((item,) for item in items), items, *itertools.combinations(items, 2)]
    for members in subsets[:runs // seeds]:
        for seed in range(seeds):
            made_up_run(results, members, made_up_scores(members, groups, rng), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", help="keep the results here (default: a temporary folder)")
    args = parser.parse_args()
    folder = args.folder or tempfile.mkdtemp()
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    items = tuple(f"made_up_task_{at}" for at in range(args.items))
    made_up_sweep(Results("results", "large"), items, max(args.items // 10, 3), args.runs, args.seeds)
    Results("results", "large").merge()
    with Path("log").open("w") as log, contextlib.redirect_stdout(log):
        for command in (cluster, plan):
            start = time.perf_counter()
            command.main(["--save_name", "large", *(["--bootstrap", "20"] if command is cluster else [])])
            print(f"{command.__name__} {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    report.main(["--save_name", "large"])
    seconds, size = time.perf_counter() - start, Path("results/large/report.html").stat().st_size
    print(f"page of {args.items} items, {args.runs} runs: {seconds:.1f} s (limit: 20), {size / 1e6:.2f} MB (limit: 5)")


if __name__ == "__main__":
    main()
