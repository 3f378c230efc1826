"""Training speed against a bare PyTorch loop on the same batches, per-example gradients, and what the cache saves.

    python tests/bench_training.py [--tasks rte] [--data_dir DIR] [--d_model 512 --layers 6] [--steps 15]

Prints ratios of steps per CPU second within one run; single figures depend on the machine. Without --data_dir the rows
are those of the tests, 500 a split of each of the 29 tasks of the catalogue. The model has random weights and the shape
of t5-small (60M parameters).
"""

import argparse
import contextlib
import itertools
import os
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

from src.estimate.gradients import TARGET, Gradients, Projection  # noqa: E402
from src.tasks.catalogue import load_task  # noqa: E402
from src.tasks.rows import select_rows  # noqa: E402
from src.training.flags import ModelArguments, MultitaskArguments, TrainingArguments  # noqa: E402
from src.training.model import load_family  # noqa: E402
from src.training.tokenised import Preparer, mix  # noqa: E402
from src.training.trainer import Trainer  # noqa: E402


def make_rows(folder: Path, tasks: list[str], count: int) -> None:
    """`count` rows a split: the made-up ones of the tests, over and over."""
    for task in tasks:
        (folder / task).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = (ROOT / f"tests/rows/{task}/{split}.jsonl").read_text().splitlines()
            (folder / task / f"{split}.jsonl").write_text("\n".join(itertools.islice(itertools.cycle(lines), count)))


def make_model(args, vocabulary: int):
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=vocabulary, d_model=args.d_model, d_kv=64, d_ff=4 * args.d_model, num_layers=args.layers,
        num_heads=args.d_model // 64, decoder_start_token_id=0))


def bare_loop(model, batches) -> float:
    """CPU seconds of the plainest training loop over `batches`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    model.train()
    start = time.process_time()
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - start


def gradient_loop(model, family, batches) -> float:
    """CPU seconds of taking and projecting each example's gradient of the whole target, over the same batches."""
    gradients = Gradients(model, family)
    projection = Projection(gradients.parameters, 400, 0)
    unpadded = []
    for batch in batches:
        rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        unpadded.append([{"input_ids": ids[mask.bool()].tolist(), "labels": labels[labels != -100].tolist()}
                         for ids, mask, labels in rows])
    start = time.process_time()
    for batch in unpadded:
        projection(gradients(batch, TARGET)[0])
    return time.process_time() - start


class Timer(transformers.TrainerCallback):
    """CPU seconds of the training loop, from its first step on."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = time.process_time() - self.start


def our_loop(model, family, data_args, rows, steps: int, folder: str) -> float:
    args = TrainingArguments(output_dir=folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=5e-5,
                             lr_scheduler_type="constant", save_strategy="no", disable_tqdm=True, seed=0,
                             logging_steps=500)
    trainer, timer = Trainer(model, family, args, data_args, rows), Timer()
    trainer.add_callback(timer)
    trainer.train()
    return timer.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=sorted(path.name for path in (ROOT / "tests/rows").iterdir()),
                        help="tasks of the mix (default: the whole catalogue)")
    parser.add_argument("--data_dir", help="folder of local rows (default: made up)")
    parser.add_argument("--model_name_or_path", default=str(ROOT / "data/models/tiny-t5"), help="its tokenizer is used")
    parser.add_argument("--d_model", type=int, default=512, help="width of the model (default: 512)")
    parser.add_argument("--layers", type=int, default=6, help="encoder and decoder layers, each (default: 6)")
    parser.add_argument("--steps", type=int, default=15, help="training steps of 8 rows each (default: 15)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, in turn; medians are printed (default: 3)")
    parser.add_argument("--padded", type=int, default=2,
                        help="steps that really pad to 512/128, and whose gradients are taken (default: 2)")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BrokenPipeError):
        data_dir = args.data_dir or f"{folder}/rows"
        if not args.data_dir:
            make_rows(Path(data_dir), args.tasks, 500)
        family = load_family(ModelArguments(args.model_name_or_path), f"{folder}/cache")
        data_args = MultitaskArguments(task_names=args.tasks)
        for attempt in ("first", "again"):
            start, count = time.perf_counter(), 0
            preparer = Preparer(family, f"{folder}/cache", 512, 128)
            entries, both = [], ["train", "validation"]
            for name in args.tasks:
                task = load_task(name, ROOT / "data/tasks")
                selected = select_rows(task, both, data_dir, f"{folder}/cache", seed=0, downsample=500)
                entries.append(preparer.prepare(selected["train"], task.template(0)))
                count += entries[-1].counts["rows"] + preparer.prepare(selected["validation"],
                                                                       task.template(0)).counts["rows"]
            print(f"cache, {attempt:5s}: {len(args.tasks)} tasks, {count} rows in "
                  f"{1000 * (time.perf_counter() - start):.0f} ms")
        rows = mix(entries)
        vocabulary = max(len(family.tokenizer), 32128)
        parameters = make_model(args, vocabulary).num_parameters()
        print(f"model: {parameters / 1e6:.0f}M parameters; {args.steps} steps of 8 rows")

        ratios, padded, gradients = [], [], []
        for _ in range(args.rounds):
            # The very batches of the trainer: the same seed gives the same order.
            model = make_model(args, vocabulary)
            order = TrainingArguments(output_dir=folder, per_device_train_batch_size=8, seed=0, max_steps=args.steps)
            loader = iter(Trainer(model, family, order, data_args, rows).get_train_dataloader())
            batches = [dict(next(loader)) for _ in range(args.steps)]
            bare_loop(make_model(args, vocabulary), batches[:2])  # warms up
            bare = bare_loop(model, batches) / args.steps
            ours = our_loop(make_model(args, vocabulary), family, data_args, rows, args.steps, folder) / args.steps
            ratios.append(bare / ours)
            few = batches[:args.padded]
            gradients.append(gradient_loop(make_model(args, vocabulary), family, few) / bare_loop(model, few))
            full = []
            for batch in few:
                length, target = 512 - batch["input_ids"].shape[1], 128 - batch["labels"].shape[1]
                pad = torch.nn.functional.pad
                full.append({"input_ids": pad(batch["input_ids"], (0, length), value=family.filler),
                             "attention_mask": pad(batch["attention_mask"], (0, length)),
                             "labels": pad(batch["labels"], (0, target), value=-100)})
            padded.append(bare_loop(make_model(args, vocabulary), full) / len(full) / ours)
            print(f"  bare loop {bare:.3f}, our training {ours:.3f} CPU s a step: {ratios[-1]:.2f} of the bare loop's "
                  f"speed, {padded[-1]:.1f} times that of a bare loop padded to 512/128; "
                  f"gradients of the examples {gradients[-1]:.1f} steps")
        print(f"median: {median(ratios):.2f} of the bare loop, {median(padded):.1f} times the padded loop, gradients "
              f"of a batch's examples {median(gradients):.1f} steps of the bare loop")


if __name__ == "__main__":
    main()
