"""Estimate what training on each subset would give, from one training on all items; and compare with true trainings.

python -m src.estimate --task_names rte boolq wic mnli --model_name_or_path t5-base --max_steps 1000 \\
    --learning_rate 5e-5 --save_name mtl            all pairs -> results/mtl_estimated/, in the form of true results
python -m src.cluster --save_name mtl_estimated --metric loss
python -m src.estimate compare --save_name mtl      beside the true results/mtl/

Takes the flags of train_multitask.py (--task_names) or of train_multi_instruction.py (--task_name, --template_idx).
The sweep's finished runs in results/<save_name>/ tell how long a training the small fits stand for (--calibrate).
An estimate says most about trainings that start where its gradients are taken. With --do_train False that is the model
as given, which should be the one that the sweep starts from: best one that was trained on all items.
"""

import sys

from src.cli import InputError, run_as_script
from src.files import with_file


def main(arguments: list[str] | None = None) -> int:
    arguments = with_file(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["compare"]:
        from src.estimate import compare

        return compare.main(arguments[1:])
    from src.estimate.estimate import Estimate
    from src.estimate.flags import ALWAYS, EstimateArguments
    from src.training import flags
    from src.training.experiment import Experiment

    one_task = any(argument.partition("=")[0] == "--task_name" for argument in arguments)
    kind = flags.InstructionArguments if one_task else flags.MultitaskArguments
    *groups, options = flags.parse(kind, __doc__, [*ALWAYS, *arguments], (EstimateArguments,))
    for name in ("eval_task_names", "eval_template_idx"):
        if getattr(groups[0], name):
            raise InputError(f"--{name}: scores of items that are not trained are not estimated")
    return Estimate(Experiment.from_flags(*groups), options, arguments).run()


if __name__ == "__main__":
    run_as_script(main)
