"""A task of Super-NaturalInstructions (Wang et al., 2022): <task_dir>/<task>.json with templates and rows."""

import json
import random
from pathlib import Path
from typing import Any

from src.cli import InputError
from src.files import read_text
from src.metrics import colliding
from src.tasks.read import parse_json
from src.tasks.task import SPLITS, Task
from src.tasks.template import NO_INSTRUCTION, Template

NATURAL_INSTRUCTIONS_SEED = 0  # divides a Natural Instructions file's instances into splits, the same for everybody
EXAMPLES = 2  # positive examples that a template shows
MAX_INFERRED_CHOICES = 10  # a Natural Instructions task with at most this many distinct outputs is a classification


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def load_natural_instructions(path: Path) -> Task:
    """A task of Super-NaturalInstructions (Wang et al., 2022).

    Its definitions are the templates; where there are positive examples, the last template shows two beside the first
    definition.
    """
    data = parse_json(read_text(path), path, broken="not a whole JSON file ({}); is it cut off?")
    for key in ("Definition", "Instances"):
        if not isinstance(data, dict) or not data.get(key):
            raise InputError(f"{path}: field '{key}' is missing or empty; a Natural Instructions file has "
                             "Definition, Positive Examples and Instances")
    outputs = set()
    definitions, instances = _as_list(data["Definition"]), _as_list(data["Instances"])
    if not all(isinstance(text, str) for text in definitions):
        raise InputError(f"{path}: Definition must be text or a list of texts")
    for i, instance in enumerate(instances):
        outputs.update(text.strip() for text in _texts(instance, f"{path}: Instances[{i}]")[1:])
    examples = [_texts(example, f"{path}: Positive Examples[{i}]")
                for i, example in enumerate(_as_list(data.get("Positive Examples") or [])[:EXAMPLES])]
    # `Yes` beside `yes` is no choice, but answers written by several people.
    choices = tuple(sorted(outputs)) if len(outputs) <= MAX_INFERRED_CHOICES and not colliding(sorted(outputs)) else ()

    def template(index: int, name: str, source: str) -> Template:
        return Template(path.stem, index, name, source, "{{ output[0] }}", choices, "output")

    sources = [_literal(text.strip()) + "\n\n{{ input }}" for text in definitions]
    names = [f"definition_{i}" for i in range(len(sources))]
    if examples:
        shown = [f"Given: {source.strip()}\nAnswer: {target.strip()}" for source, target, *_ in examples]
        sources.append(_literal("\n\n".join([definitions[0].strip(), "This is how it is done:", *shown,
                                             "Now it is your turn."])) + "\n\nGiven: {{ input }}\nAnswer:")
        names.append("examples")
    return Task(
        name=path.stem, description=definitions[0].strip().partition("\n")[0],
        sources=(), splits={split: split for split in SPLITS}, rows={},
        fields=("input",), metrics=("exact_match",) if len(outputs) <= MAX_INFERRED_CHOICES else ("rougeL",),
        templates=tuple(template(i, name, source) for i, (name, source) in enumerate(zip(names, sources, strict=True))),
        path=path, bare=template(NO_INSTRUCTION, "none", "{{ input }}"), embedded=_divide(instances),
    )


def _literal(text: str) -> str:
    """The text as Jinja shows it: braces in it stay text."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def _texts(pair: Any, where: str) -> list[str]:
    """The input of an instance or example, and its outputs, of which there are one or more."""
    texts = [pair.get("input"), *_as_list(pair.get("output"))] if isinstance(pair, dict) else [None]
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{where} needs 'input' and 'output' that are texts and not empty")
    return texts


def _divide(instances: list[dict]) -> dict[str, list[dict]]:
    """The instances as rows, the same for everybody: three fifths train, a fifth each validation and test."""
    rows = [{"input": instance["input"], "output": _as_list(instance["output"])} for instance in instances]
    random.Random(NATURAL_INSTRUCTIONS_SEED).shuffle(rows)
    first, second = len(rows) * 3 // 5, len(rows) * 4 // 5
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}
