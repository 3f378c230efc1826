"""Fine-tune a language model on one or several tasks together.

CUDA_VISIBLE_DEVICES=0 python train_multitask.py --do_train --do_eval --predict_with_generate \\
    --model_name_or_path t5-small --task_names rte boolq wic mnli --max_steps 5000 --learning_rate 5e-5 \\
    --lr_scheduler_type constant --eval_strategy steps --eval_steps 500 --save_strategy steps --save_steps 500 \\
    --load_best_model_at_end --metric_for_best_model eval_exact_match --greater_is_better True --save_name mtl

Results: results/<save_name>/, one row per task; README.md explains the files.
"""

from src.cli import run_as_script


def main() -> int:
    from src.training.experiment import Experiment
    from src.training.flags import MultitaskArguments, parse
    from src.training.run import run_experiment

    return run_experiment(Experiment.from_flags(*parse(MultitaskArguments, __doc__)))


if __name__ == "__main__":
    run_as_script(main)
