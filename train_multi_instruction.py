"""Fine-tune a sequence-to-sequence model on one task under none, one or several instruction templates.

CUDA_VISIBLE_DEVICES=0 python train_multi_instruction.py --do_train --do_eval --predict_with_generate \\
    --model_name_or_path t5-base --task_name rte --template_idx 0 1 2 --max_steps 5000 --learning_rate 5e-5 \\
    --lr_scheduler_type constant --eval_strategy steps --eval_steps 500 --save_strategy steps --save_steps 500 \\
    --load_best_model_at_end --metric_for_best_model eval_exact_match --greater_is_better True

Results: results/<save_name>/, one row per template; README.md explains the files.
"""

from src.cli import run_as_script


def main() -> int:
    from src.training.flags import InstructionArguments, parse

    data_args, model_args, result_args, training_args = parse(InstructionArguments, __doc__)

    from src.tasks.catalogue import load_task
    from src.tasks.task import instruction_items
    from src.training.experiment import default_save_name, run_experiment

    indices = data_args.indices()
    items = instruction_items(load_task(data_args.task_name, data_args.task_dir), indices)
    save_name = default_save_name([data_args.task_name], indices, model_args.model_name_or_path)
    return run_experiment(items, save_name, data_args, model_args, result_args, training_args)


if __name__ == "__main__":
    run_as_script(main)
