"""A table that holds every subset of a few language tasks, truly trained on a pretrained language model.

    make bench-real                                    # all of it, with rows from the hub
    python -m tests.bench_real --data_dir FOLDER       # with local rows, <task>/train.jsonl and validation.jsonl
    python -m tests.bench_real --tasks sst2 mnli --untrained     # what the model scores before any training

The sweep is the project's own (train_sample_tasks.py) and goes on where it was broken off. Results: data/benchmarks/.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

from src import DEFAULT_CACHE_DIR, DEFAULT_TASK_DIR
from src.cli import OneLineErrors
from src.tasks.catalogue import load_task
from src.tasks.rows import Selection, find_rows

MODEL = "data/models/smollm2-135m-instruct"
TASKS = ("sst2", "yelp_review_full", "xsum", "e2e_nlg_cleaned", "common_gen")
SEED = 42
LONGEST = 96  # tokens of a prompt, template included; of longer ones the row's text is shortened
ROWS = {"train": 400, "validation": 200, "test": 200}  # validation is cut from the training split, test from validation
SETTINGS = {
    "model_name_or_path": MODEL, "chat_template": "none", "train_lora": True, "lora_rank": 8,
    "lora_target_modules": "all-linear", "batch_size": 8, "lr": 5e-4, "max_steps": 60, "max_source_length": LONGEST,
    "max_target_length": 64, "bf16": True, "do_predict": True, "predict_with_generate": False, "score_choices": True,
    "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    "metric_for_best_model": "eval_loss", "greater_is_better": False, "logging_steps": 10,
}


def orders(tasks: list[str]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """All subsets: alone, pairs, all, all but one, the rest; and those that are trained under more seeds."""
    sizes = [1, 2, len(tasks), len(tasks) - 1, *range(3, len(tasks) - 1)]
    by_size = {size: list(itertools.combinations(tasks, size)) for size in sizes}
    return [members for size in by_size for members in by_size[size]], [
        members for size in sizes[:3] for members in by_size[size]]


def write_rows(tasks: list[str], data_dir: str, folder: Path) -> None:
    """The rows of each task, drawn by the seed, as jsonl files below `folder`."""
    for name in tasks:
        if (folder / name / "test.jsonl").exists():
            continue
        task = load_task(name, DEFAULT_TASK_DIR)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, roles in (("train", ("train", "validation")), ("validation", ("test",))):
            source = find_rows(task, split, data_dir, DEFAULT_CACHE_DIR)
            rows = Selection(task, split, source, None, None, SEED).load()
            random.Random(f"{name} {split} {SEED}").shuffle(rows)
            kept = [row for _, row in rows if task.bare.is_labelled(row)]
            for role in roles:
                some, kept = kept[:ROWS[role]], kept[ROWS[role]:]
                (folder / name / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some),
                                                             encoding="utf-8")
                print(f"{name}: {len(some)} {role} rows from {source.source}")


def flags(*but: str, **other) -> list[str]:
    return [word for name, value in (SETTINGS | other).items() if name not in but for word in (f"--{name}", str(value))]


def main() -> int:
    parser = OneLineErrors(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="names of tasks (default: %(default)s)")
    parser.add_argument("--data_dir", default="", help="folder of local rows (default: rows come from the hub)")
    parser.add_argument("--device", nargs="+", default=["cpu"], help="as in train_sample_tasks.py (default: cpu)")
    parser.add_argument("--jobs_per_device", default="1", help="subsets at a time (default: %(default)s)")
    parser.add_argument("--results_dir", default="data/benchmarks", help="folder of the table (default: %(default)s)")
    parser.add_argument("--save_name", default="smollm2", help="name of the table (default: %(default)s)")
    parser.add_argument("--only", type=int, help="only the first so many subsets, under the first seed (default: all)")
    parser.add_argument("--untrained", action="store_true", help="only score the model as it is")
    args = parser.parse_args()
    rows = Path(DEFAULT_CACHE_DIR, "bench_real")
    write_rows(args.tasks, args.data_dir, rows)
    places = ["--data_dir", str(rows), "--results_dir", args.results_dir]
    if args.untrained:
        return subprocess.run([
            sys.executable, "train_multitask.py", *flags("lr", "batch_size", "train_lora", "lora_rank",
                                                         "lora_target_modules"), *places,
            "--do_eval", "True", "--task_names", *args.tasks, "--save_name", f"{args.save_name}-untrained",
            "--disable_tqdm", "True"], check=False).returncode
    everything, again = orders(args.tasks)
    alone, steps = everything[:len(args.tasks)], SETTINGS["max_steps"]
    sweeps = [(args.save_name, SEED, everything[:args.only], steps)]
    if args.only is None:
        sweeps += [(args.save_name, SEED + more, again, steps) for more in (1, 2)]
        # alone with as many passes over the rows as in pairs, and as in all
        sweeps += [(f"{args.save_name}-alone-{steps // size}", SEED, alone, steps // size) for size in (2, len(alone))]
    for save_name, seed, subsets, steps in sweeps:
        wanted = rows / f"subsets-{save_name}-{seed}.txt"
        wanted.write_text("".join(" ".join(members) + "\n" for members in subsets), encoding="utf-8")
        code = subprocess.run(
            [sys.executable, "train_sample_tasks.py", *flags(max_steps=steps), *places, "--save_name", save_name,
             "--task_names", *args.tasks, "--subsets_file", str(wanted), "--seed", str(seed),
             "--task_set_name", f"{save_name}-{seed}", "--device", *args.device,
             "--jobs_per_device", args.jobs_per_device], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
