"""Train on many sampled subsets of tasks, one child process (train_multitask.py) per subset, and resume where it ended.

python train_sample_tasks.py --model_name_or_path t5-base \\
    --num_samples 1000 --min_task_num 2 --max_task_num 2 --target_task_group 0 7 \\
    --max_steps 4000 --eval_steps 400 --save_steps 400 --runs 2 --fp16 True \\
    --task_set_name groups_0_7 --save_name groups_0_7 --device 0

Completed subsets: sampled_tasks/<task_set_name>.txt. Results: results/<save_name>/. --dry_run shows what would be done.
"""

from src.cli import run_as_script
from src.sweep.agenda import task_items
from src.sweep.flags import parse, sweep_parser
from src.sweep.run import run_sweep
from src.tasks.task import GROUPS


def main() -> int:
    parser = sweep_parser(__doc__, "train_multitask.py")
    parser.add_argument("--target_task_group", type=int, nargs="+", metavar="GROUP", help="sample from the tasks of "
                        "these groups: " + ", ".join(f"{number} {name}" for number, name in enumerate(GROUPS)))
    parser.add_argument("--task_names", nargs="+", metavar="TASK",
                        help="sample from these tasks: names, globs (demo_*), or @file with names")
    args = parse(parser)
    return run_sweep(args, task_items(args))


if __name__ == "__main__":
    run_as_script(main)
