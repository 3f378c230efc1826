"""Train on many sampled subsets of one task's instructions with LoRA, one child process per subset, and resume.

python train_sample_instructions_lora.py --num_tasks 10 --dataset rte --model_name_or_path t5-base \\
    --num_samples 50 --min_task_num 3 --max_task_num 3 --max_steps 1000 --eval_steps 200 --save_steps 200 \\
    --runs 2 --downsample 1000 --lora_rank 4 --lora_alpha 32 --current_cluster_dir none \\
    --task_set_name sample_rte_lora --save_name sample_rte_lora --device 1

The children are train_multi_instruction.py. Completed subsets: sampled_tasks/<task_set_name>.txt, an instruction being
<dataset>_<index>. Results: results/<save_name>/. --dry_run shows what would be done.
"""

from src.cli import InputError, run_as_script
from src.sweep.flags import parse, sweep_parser
from src.sweep.scheduler import Items, run_sweep
from src.tasks.catalogue import load_task

CHILD = "train_multi_instruction.py"


def main() -> int:
    parser = sweep_parser(__doc__, CHILD)
    parser.add_argument("--dataset", required=True, metavar="TASK", help="the task whose instructions are sampled")
    parser.add_argument("--num_tasks", type=int, help="sample from its first so many instructions (default: all)")
    parser.add_argument("--lora_rank", type=int, default=4, help="rank of LoRA; 0 is full fine-tuning (default: 4)")
    parser.add_argument("--lora_alpha", type=float, default=32, help="scale of LoRA: alpha / rank (default: 32)")
    args = parse(parser)
    task = load_task(args.dataset, args.task_dir)
    number = len(task.templates) if args.num_tasks is None else args.num_tasks
    if not 1 <= number <= len(task.templates):
        raise InputError(f"--num_tasks {number}: '{task.name}' has {len(task.templates)} instructions ({task.path})")
    if args.lora_rank < 0:
        raise InputError(f"--lora_rank {args.lora_rank} must be at least 0 (full fine-tuning)")
    if args.lora_rank:
        args.child |= {"train_lora": ["True"], "lora_rank": [str(args.lora_rank)],
                       "lora_alpha": [f"{args.lora_alpha:g}"]}
    hashes = {template.item: template.hash for template in task.templates[:number]}

    def flags(members: tuple[str, ...]) -> list[str]:
        return ["--task_name", task.name, "--template_idx", *(member.rpartition("_")[2] for member in members)]

    return run_sweep(args, Items(hashes, CHILD, flags, task.name))


if __name__ == "__main__":
    run_as_script(main)
