"""A table that holds every subset of a few language tasks, truly trained on a pretrained language model.

    make bench-real                                    # all of it, with rows from the hub
    python -m tests.bench_real --data_dir FOLDER       # with local rows, <task>/train.jsonl and validation.jsonl
    python -m tests.bench_real untrained               # what the model scores before any training
    python -m tests.bench_real estimate                # the same table from gradients, beside the true one
    python -m tests.bench_real instructions            # a table of five instructions of sst2; two are held out

The sweep is the project's own (train_sample_tasks.py) and goes on where it was broken off. Results: data/benchmarks/.
"""

import argparse
import functools
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
INSTRUCTIONS = 5  # of one task, that are trained on
ROWS = {"train": 400, "validation": 200, "test": 200}  # validation is cut from the training split, test from validation
SETTINGS = {
    "model_name_or_path": MODEL, "chat_template": "none", "train_lora": True, "lora_rank": 8,
    "lora_target_modules": "all-linear", "per_device_train_batch_size": 8, "learning_rate": 5e-4, "max_steps": 60,
    "max_source_length": LONGEST, "max_target_length": 64, "bf16": True, "do_predict": True,
    "predict_with_generate": False, "score_choices": True,
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


def run(script: list[str], but: tuple[str, ...] = (), **other) -> int:
    """One command of this project under SETTINGS, without those named in `but`, and with others; its exit code."""
    words = []
    for name, value in (SETTINGS | other).items():
        if name not in but:
            words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return subprocess.run([sys.executable, *script, *words], check=False).returncode


def sweep(args, subsets: list[tuple[str, ...]], script: str = "train_sample_tasks.py", *, save_name: str,
          seed: int = SEED, **other) -> int:
    """Train these subsets, or what is left of them."""
    wanted = args.rows / f"subsets-{save_name}-{seed}.txt"
    wanted.write_text("".join(" ".join(members) + "\n" for members in subsets), encoding="utf-8")
    return run([script], subsets_file=wanted, seed=seed, save_name=save_name, task_set_name=f"{save_name}-{seed}",
               device=args.device, jobs_per_device=args.jobs_per_device, **args.places, **other)


def table(args) -> int:
    everything, again = orders(args.tasks)
    train = functools.partial(sweep, args, task_names=args.tasks)
    code = train(everything[:args.only], save_name=args.save_name)
    if args.only is not None:
        return code
    for size in (2, len(args.tasks)):  # alone with as many passes over the rows as in pairs, and as in all
        steps = SETTINGS["max_steps"] // size
        code = code or train(everything[:len(args.tasks)], save_name=f"{args.save_name}-alone-{steps}", max_steps=steps)
    for seed in (SEED + 1, SEED + 2):
        code = code or train(again, save_name=args.save_name, seed=seed)
    return code


def untrained(args) -> int:
    return run(["train_multitask.py"], ("train_lora", "lora_rank", "lora_target_modules", "learning_rate",
                                        "per_device_train_batch_size"),
               task_names=args.tasks, save_name=f"{args.save_name}-untrained", do_eval=True, disable_tqdm=True,
               **args.places)


def estimate(args) -> int:
    """All subsets from the gradients of a model that was trained on all; and beside the truth.

    Gradients are of a quarter of the rows, as each costs as much as several of them in a training.
    """
    start, steps = f"{args.save_name}-start", SETTINGS["max_steps"]
    given = {"task_names": args.tasks, "lr_scheduler_type": "constant", "seed": SEED, "disable_tqdm": True,
             "use_cpu": args.device == ["cpu"], "do_predict": False, **args.places}
    code = run(["train_multitask.py"], do_train=True, do_eval=True, save_name=start, run_name=start,
               **given | {"save_strategy": "steps", "save_steps": steps})
    code = code or run(["-m", "src.estimate"], **given | {
        "model_name_or_path": f"saved/{start}-s{SEED}/checkpoint-{steps}", "do_train": False, "downsample": 100,
        "save_name": args.save_name, "min_task_num": 1, "max_task_num": len(args.tasks)})
    return code or subprocess.run(
        [sys.executable, "-m", "src.estimate", "compare", "--save_name", args.save_name, "--results_dir",
         args.results_dir], check=False).returncode


def instructions(args) -> int:
    """Instructions of one task: alone, in pairs, all; scored under those that no training saw, too."""
    held_out = list(range(INSTRUCTIONS, len(load_task(args.tasks[0], DEFAULT_TASK_DIR).templates)))
    subsets = orders([f"{args.tasks[0]}_{i}" for i in range(INSTRUCTIONS)])[1]
    return sweep(args, subsets, "train_sample_instructions_lora.py", save_name=f"{args.save_name}-{args.tasks[0]}",
                 dataset=args.tasks[0], num_tasks=INSTRUCTIONS, eval_template_idx=held_out)


PARTS = {"table": table, "untrained": untrained, "estimate": estimate, "instructions": instructions}


def main() -> int:
    parser = OneLineErrors(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, default="table", help="what to do (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS),
                        help="names of tasks; instructions are of the first (default: %(default)s)")
    parser.add_argument("--data_dir", default="", help="folder of local rows (default: rows come from the hub)")
    parser.add_argument("--device", nargs="+", default=["cpu"], help="as in train_sample_tasks.py (default: cpu)")
    parser.add_argument("--jobs_per_device", default="1", help="subsets at a time (default: %(default)s)")
    parser.add_argument("--results_dir", default="data/benchmarks", help="folder of the table (default: %(default)s)")
    parser.add_argument("--save_name", default="smollm2", help="name of the table (default: %(default)s)")
    parser.add_argument("--only", type=int, help="only the first so many subsets, under the first seed (default: all)")
    args = parser.parse_args()
    args.rows = Path(DEFAULT_CACHE_DIR, "bench_real")
    args.places = {"data_dir": args.rows, "results_dir": args.results_dir}
    write_rows(args.tasks, args.data_dir, args.rows)
    return PARTS[args.part](args)


if __name__ == "__main__":
    raise SystemExit(main())
