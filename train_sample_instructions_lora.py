"""Train on many sampled subsets of one task's instructions with LoRA, one child process per subset, and resume.

python train_sample_instructions_lora.py --num_tasks 10 --dataset rte --model_name_or_path t5-base \\
    --num_samples 50 --min_task_num 3 --max_task_num 3 --max_steps 1000 --eval_steps 200 --save_steps 200 \\
    --runs 2 --downsample 1000 --lora_rank 4 --lora_alpha 32 --current_cluster_dir none \\
    --task_set_name sample_rte_lora --save_name sample_rte_lora --device 1

The children are train_multi_instruction.py. Completed subsets: sampled_tasks/<task_set_name>.txt, an instruction being
<dataset>_<index>. Results: results/<save_name>/. --dry_run shows what would be done.
"""

from src.cli import run_as_script
from src.sweep.agenda import instruction_items
from src.sweep.flags import parse, sweep_parser
from src.sweep.run import run_sweep


def main() -> int:
    parser = sweep_parser(__doc__, "train_multi_instruction.py")
    parser.add_argument("--dataset", required=True, metavar="TASK", help="the task whose instructions are sampled")
    parser.add_argument("--num_tasks", type=int, help="sample from its first so many instructions (default: all)")
    parser.add_argument("--lora_rank", type=int, default=4, help="rank of LoRA; 0 is full fine-tuning (default: 4)")
    parser.add_argument("--lora_alpha", type=float, default=32, help="scale of LoRA: alpha / rank (default: 32)")
    args = parse(parser)
    return run_sweep(args, instruction_items(args))


if __name__ == "__main__":
    run_as_script(main)
