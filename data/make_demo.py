"""Make the embedded default: nine demo tasks in three planted groups, and a tiny T5 with random weights.

    python data/make_demo.py [FOLDER]     writes tasks/demo_*.yaml, splits/default/demo_*/, demo_groups.txt and
                                          models/tiny-t5/ under FOLDER (default: this file's), byte for byte the same
    python data/make_demo.py FOLDER SEED  the control: the same tasks, but each with word classes of its own, drawn by
                                          SEED, so that no two tasks share a rule

A row is a task tag, three content words and two fillers in random order. The 18 content words fall into three classes;
the answer is the class of the majority, shifted by the index of the task's group. So tasks of one group share a rule,
and tasks of different groups contradict each other: trained together, the former help and the latter disturb.
"""

import json
import random
import sys
from pathlib import Path

GROUPS = ("a", "b", "c")  # planted: demo_a1, demo_a2, demo_a3 share a rule, and so on
TASKS_PER_GROUP = 3
CLASSES = (
    ("otter", "heron", "badger", "newt", "lynx", "finch"),
    ("maple", "fern", "clover", "moss", "willow", "thistle"),
    ("hammer", "kettle", "ladder", "saddle", "lantern", "anvil"),
)
FILLERS = ("well", "so", "then", "perhaps", "indeed", "again")
ANSWERS = ("red", "green", "blue")
ROWS = {"train": 192, "validation": 300}
SEED = 0

YAML = """\
description: Planted group {group}. The colour is set by the class of most words, shifted by {shift}.
fields: [tag, text]
answer_choices: ["red", "green", "blue"]
target: "{{{{ answer_choices[label] }}}}"
metrics: [accuracy]
bare: "{{{{ tag }}}} {{{{ text }}}}"
templates:  # append only: the position is --template_idx
  - {{name: default, input: "which colour ? {{{{ tag }}}} {{{{ text }}}}"}}
  - {{name: colour_last, input: "{{{{ tag }}}} {{{{ text }}}} . name the colour :"}}
  - {{name: sandwich, input: "read this : {{{{ tag }}}} {{{{ text }}}} . which colour do the words stand for ?"}}
  - {{name: fill_the_blank, input: "the words {{{{ text }}}} of {{{{ tag }}}} mean the colour ___ ."}}
  - {{name: tags, input: "[ list ] {{{{ tag }}}} [ words ] {{{{ text }}}} [ colour ]"}}
"""
# Words of the instructions above, so that they are one token each.
INSTRUCTION_WORDS = ("which", "colour", "?", ".", "name", "the", ":", "read", "this", "do", "words", "stand", "for",
                     "of", "mean", "___", "[", "]", "list")


def task_names() -> list[str]:
    return [f"demo_{group}{i + 1}" for group in GROUPS for i in range(TASKS_PER_GROUP)]


def make_rows(task: str, split: str, control: int | None = None) -> list[dict]:
    """Rows of one split: {"tag", "text", "label"}; train and validation share no text.

    `control` is the seed of word classes that the task shares with no other; None for the planted ones.
    """
    draw = random.Random(f"{SEED} {task}")
    shift, rows, seen, classes = GROUPS.index(task[5]), [], set(), CLASSES
    if control is not None:
        words = [word for group in CLASSES for word in group]
        random.Random(f"{control} {task}").shuffle(words)
        shift, classes = 0, [words[i::len(CLASSES)] for i in range(len(CLASSES))]
    while len(rows) < sum(ROWS.values()):
        majority, other = draw.sample(range(len(classes)), 2)
        words = [*draw.sample(classes[majority], 2), draw.choice(classes[other]), *draw.sample(FILLERS, 2)]
        draw.shuffle(words)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            rows.append({"tag": task, "text": text, "label": (majority + shift) % len(ANSWERS)})
    return rows[:ROWS["train"]] if split == "train" else rows[ROWS["train"]:]


def make_tokenizer():
    """One token a known word; any other text falls back to the bytes of its UTF-8 form."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "</s>", "<unk>"]
    words = [*task_names(), *(word for group in CLASSES for word in group), *FILLERS, *ANSWERS, *INSTRUCTION_WORDS]
    tokens = [*specials, "▁", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"▁{word}" for word in words)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>",
                                     byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def make_model(vocabulary: int):
    """A T5 of one encoder and one decoder layer, d_model 32, with random weights."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(SEED)
    return T5ForConditionalGeneration(T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1))


def main(folder: Path, control: int | None = None) -> None:
    for task in task_names():
        shift = GROUPS.index(task[5])
        (folder / "tasks").mkdir(parents=True, exist_ok=True)
        (folder / "tasks" / f"{task}.yaml").write_text(YAML.format(group=GROUPS[shift], shift=shift), encoding="utf-8")
        place = folder / "splits" / "default" / task
        place.mkdir(parents=True, exist_ok=True)
        for split in ROWS:
            lines = "".join(json.dumps(row) + "\n" for row in make_rows(task, split, control))
            (place / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    names = task_names()
    groups = [names[i:i + TASKS_PER_GROUP] for i in range(0, len(names), TASKS_PER_GROUP)]
    (folder / "demo_groups.txt").write_text("".join(" ".join(group) + "\n" for group in groups), encoding="utf-8")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "models" / "tiny-t5")
    make_model(len(tokenizer)).save_pretrained(folder / "models" / "tiny-t5")
    print(f"{folder}: {len(task_names())} demo tasks and tiny-t5")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent, *map(int, sys.argv[2:3]))
