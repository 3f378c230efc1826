"""Speed and memory of a decoder-only model: training against bare loops, choices by likelihood against generation.

    python tests/bench_families.py [--model_name_or_path data/models/smollm2-135m-instruct] [--data_dir DIR] [--steps 5]

LoRA on all linear layers, rank 8, batches of 8 rows, no chat template. Three loops do the same steps in turn, on the
same rows, and the median of their ratios is printed: this project's trainer; a bare loop that gives the output layer
the positions of the targets alone; and one with the library's own loss, over all positions. Then one evaluation of the
same rows by the likelihood of their answer choices, and one by generating short answers. CPU seconds; peak memory is
that of a process of each loop's own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402

from src.tasks.catalogue import load_task  # noqa: E402
from src.tasks.rows import select_rows  # noqa: E402
from src.training.flags import ModelArguments, MultitaskArguments, TrainingArguments  # noqa: E402
from src.training.model import load_family, load_model  # noqa: E402
from src.training.tokenised import Preparer  # noqa: E402
from src.training.trainer import Trainer  # noqa: E402
from tests.bench_training import Timer  # noqa: E402

LOOPS = ("trainer", "targets", "library")


class Bench:
    """The model, its rows, and the loops over them."""

    def __init__(self, args, folder: str):
        self.arguments = ModelArguments(args.model_name_or_path, chat_template="none", train_lora=True, lora_rank=8,
                                        lora_target_modules=["all-linear"])
        self.folder, self.steps = folder, args.steps
        self.family = load_family(self.arguments, folder)
        task = load_task(args.task, ROOT / "data/tasks")
        selected = select_rows(task, ["train", "validation"], args.data_dir, folder, seed=0, downsample=8 * args.steps)
        preparer = Preparer(self.family, folder, 96, 16)
        self.rows, self.evaluated = (preparer.prepare(selected[role], task.template(0)) for role in selected)

    def trainer(self, **flags) -> Trainer:
        args = TrainingArguments(output_dir=self.folder, max_steps=self.steps, per_device_train_batch_size=8,
                                 lr_scheduler_type="constant", learning_rate=5e-4, save_strategy="no", seed=0,
                                 disable_tqdm=True, use_cpu=True, logging_steps=500, **flags)
        torch.manual_seed(0)
        data_args = MultitaskArguments(task_names=[self.rows.template.task], max_source_length=96)
        return Trainer(load_model(self.arguments, self.folder, self.family), self.family, args, data_args,
                       self.rows.dataset, {self.rows.template.task: [self.evaluated]})

    def seconds(self, loop: str) -> float:
        """CPU seconds of the steps."""
        trainer = self.trainer()
        if loop == "trainer":
            trainer.add_callback(timer := Timer())
            trainer.train()
            return timer.seconds
        loader = iter(trainer.get_train_dataloader())
        batches = [dict(next(loader)) for _ in range(self.steps)]
        model = trainer.model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, fused=True)
        start = time.process_time()
        for batch in batches:
            labels, kept = batch.pop("labels"), batch.pop("logits_to_keep")
            if loop == "targets":
                logits = model(**batch, logits_to_keep=kept).logits[:, :-1]
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
            else:
                width = batch["input_ids"].shape[1] - labels.shape[1]
                loss = model(**batch, labels=torch.nn.functional.pad(labels, (width, 0), value=-100)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return time.process_time() - start

    def evaluation(self, **flags) -> float:
        trainer = self.trainer(**flags)
        start = time.process_time()
        trainer.evaluate()
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="data/models/smollm2-135m-instruct",
                        help="a decoder-only model (default: %(default)s)")
    parser.add_argument("--data_dir", default="data/splits/default", help="folder of rows (default: %(default)s)")
    parser.add_argument("--task", default="demo_a1", help="task of the rows (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each loop, of 8 rows (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, in turn (default: %(default)s)")
    parser.add_argument("--memory_of", choices=LOOPS, help="only do this loop once and print its peak memory in MiB")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, folder)
        if args.memory_of:
            bench.seconds(args.memory_of)
            print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
            return
        rounds = [{loop: bench.seconds(loop) for loop in LOOPS} for _ in range(args.rounds)]
        of_trainer = {loop: median(r[loop] / r["trainer"] for r in rounds) for loop in LOOPS[1:]}
        print(f"{args.steps} steps in {median(r['trainer'] for r in rounds):.1f} CPU s; steps per CPU second as a "
              f"multiple of a bare loop's: with targets only {of_trainer['targets']:.2f}, with the library's own loss "
              f"{of_trainer['library']:.2f}")
        memory = {loop: json.loads(subprocess.run([sys.executable, *sys.argv, "--memory_of", loop], capture_output=True,
                                                  text=True, check=True).stdout.splitlines()[-1]) for loop in LOOPS}
        print("peak memory: " + ", ".join(f"{loop} {mib:.0f} MiB" for loop, mib in memory.items()))
        ratios = [bench.evaluation(predict_with_generate=True) / bench.evaluation(score_choices=True)
                  for _ in range(args.rounds)]
        print(f"evaluation by choices is {median(ratios):.2f} times as fast as by generated answers")


if __name__ == "__main__":
    main()
