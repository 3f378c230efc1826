"""Train on many sampled subsets of tasks, one child process (train_multitask.py) per subset, and resume where it ended.

python train_sample_tasks.py --model_name_or_path t5-base \\
    --num_samples 1000 --min_task_num 2 --max_task_num 2 --target_task_group 0 7 \\
    --max_steps 4000 --eval_steps 400 --save_steps 400 --runs 2 --fp16 True \\
    --task_set_name sample_test_dule_0_7 --save_name sample_test_dule_0_7 --device 0

Completed subsets: sampled_tasks/<task_set_name>.txt. Results: results/<save_name>/. --dry_run shows what would be done.
"""

import hashlib
from pathlib import Path

from src.cli import InputError, run_as_script
from src.sweep.flags import parse, sweep_parser
from src.sweep.scheduler import Items, run_sweep
from src.tasks.catalogue import expand_names, load_task, task_names
from src.tasks.task import GROUPS

CHILD = "train_multitask.py"


def main() -> int:
    parser = sweep_parser(__doc__, CHILD)
    parser.add_argument("--target_task_group", type=int, nargs="+", metavar="GROUP", help="sample from the tasks of "
                        "these groups: " + ", ".join(f"{number} {name}" for number, name in enumerate(GROUPS)))
    parser.add_argument("--task_names", nargs="+", metavar="TASK",
                        help="sample from these tasks: names, globs (demo_*), or @file with names")
    args = parse(parser)
    if (args.target_task_group is None) == (args.task_names is None):
        raise InputError("give either --target_task_group or --task_names: what is to be sampled?")
    if args.task_names is not None:
        names = expand_names(args.task_names, args.task_dir)
    else:
        for group in args.target_task_group:
            if group not in range(len(GROUPS)):
                raise InputError(f"--target_task_group {group}: must be 0 to {len(GROUPS) - 1}")
        names = [name for name in task_names(args.task_dir)
                 if load_task(name, args.task_dir).group in args.target_task_group]
        if not names:
            raise InputError(f"--target_task_group: {Path(args.task_dir)} holds no task of these groups")
    try:
        indices = [-1 if index == "none" else int(index) for index in args.child.get("template_idx", ["0"])]
    except ValueError as error:
        raise InputError(f"--template_idx {' '.join(args.child['template_idx'])}: must be indices") from error
    hashes = {}
    for name in names:
        templates = [load_task(name, args.task_dir).template(index).hash for index in indices]
        hashes[name] = hashlib.sha256(" ".join(templates).encode()).hexdigest()[:8]
    return run_sweep(args, Items(hashes, CHILD, lambda members: ["--task_names", *members]))


if __name__ == "__main__":
    run_as_script(main)
