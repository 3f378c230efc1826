"""The way of a row: local file or hub -> rendered under a template -> tokenised -> cached Arrow file -> mixed.

What is tokenised is written to <cache_dir>/tokenised/ under a key made of everything that changes it: the rows'
source and selection, the template's text, the tokenizer and the lengths. Runs, scripts and sweeps share these files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.cli import InputError, warn
from src.files import locked, remove_stale, sync, temporary_beside, write_whole
from src.identity import short_hash
from src.metrics import colliding, metric_names
from src.tasks.rows import Selection, render_rows
from src.tasks.shorten import shorten
from src.tasks.template import LEFT_OUT, Rendered, Template
from src.training.families import Family

if TYPE_CHECKING:
    import datasets

BATCH = 1000  # rows rendered and tokenised at once
FORMAT = 5  # counted up when what is stored changes, so that older files are not taken for new ones
GENERATION_MARGIN = 5  # tokens generated beyond the longest answer choice: a longer output could not match it anyway


@dataclass(frozen=True)
class Prepared:
    """The selected rows of a task under one template, tokenised. `key` is a hash of all that decides them.

    `dataset` has the columns input_ids (all that the model reads), labels (all that it should write), references
    (accepted answers), choices (token ids of the row's answer choices, as far as they tell one from another) and gold
    (the position of the target among them); `counts` has rows, input_tokens, target_tokens, shortened_inputs (texts of
    the row), cut_inputs, cut_targets (at the end), longest_target (tokens), without_gold (rows whose target is none of
    their answer choices), and for each reason of LEFT_OUT the rows left out.
    """

    template: Template
    role: str
    key: str
    source: str
    dataset: "datasets.Dataset"
    counts: dict[str, int]
    metrics: tuple[str, ...]
    longest_choice: int  # tokens of the longest answer choice or gold answer; 0 for free text

    def generation_length(self, cap: int) -> int:
        """Most new tokens worth generating under the user's `cap`."""
        return min(cap, self.longest_choice + GENERATION_MARGIN) if self.longest_choice else cap


def _read(data: Path, meta: Path) -> "tuple[datasets.Dataset, dict[str, int]] | None":
    """Rows and counts as `Preparer` has written them; None where they are not there, or not whole."""
    import datasets

    if not meta.exists():
        return None
    try:
        counts = json.loads(meta.read_text(encoding="utf-8"))
        dataset = datasets.Dataset.from_file(str(data))
        if len(dataset) != counts["rows"]:
            raise ValueError(f"{len(dataset)} rows of {counts['rows']}")
        return dataset, counts
    except (OSError, ValueError, LookupError, TypeError) as error:
        warn(f"{data}: not whole ({' '.join(str(error).split())}); made again")
        return None


class Preparer:
    """Renders and tokenises selections, or finds the result in the cache."""

    def __init__(self, family: Family, cache_dir: str | Path, max_source_length: int, max_target_length: int,
                 overwrite_cache: bool = False):
        self.family = family
        self.folder = Path(cache_dir) / "tokenised"
        self.max_source_length, self.max_target_length = max_source_length, max_target_length
        self.overwrite_cache = overwrite_cache
        self._written: set[str] = set()  # --overwrite_cache builds each file once, not once for each run

    def prepare(self, selection: Selection, template: Template) -> Prepared:
        """Return `selection` under `template`, tokenised; evaluation rows sorted by input length, longest first:
        batches hold rows of like length, and one that does not fit into memory shows at once.

        Raises:
            InputError: a row cannot be rendered (names task, field and row number), or there are none.
        """
        key = short_hash([FORMAT, selection.key, template.hash, template.item, self.family.tokenizer_hash,
                          self.family.key, self.family.ends, self.max_source_length, self.max_target_length], 16)
        data = self.folder / f"{template.item}-{selection.role}-{key}.arrow"
        meta = data.with_suffix(".json")
        found = None if self.overwrite_cache and key not in self._written else _read(data, meta)
        if found is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--cache_dir: cannot create {self.folder}: {error.strerror}") from error
            remove_stale(self.folder)
            with locked(data.with_suffix(".lock")):
                if self.overwrite_cache or (found := _read(data, meta)) is None:  # else another process has written it
                    self._write(selection, template, data, meta)
                    found = _read(data, meta)
            self._written.add(key)
        dataset, counts = found
        if selection.role != "train":
            lengths = [len(ids) for ids in dataset["input_ids"]]
            longest_first = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
            dataset = dataset.select(longest_first, keep_in_memory=True)
        choices = template.answer_choices
        longest = counts["longest_target"] if choices else 0
        if choices and not isinstance(choices, str):
            longest = max(longest, self._longest_choice(selection, template))
        return Prepared(template, selection.role, key, selection.rows.source, dataset, counts,
                        metric_names(selection.task.metrics, choices), longest)

    def check(self, selection: Selection, template: Template, rendered: list[Rendered]) -> int:
        """Tokenise rows without keeping them; how many tokens are read of them. Raise InputError as `prepare` does."""
        inputs = self.family.prompts([row.input for row in rendered]) if rendered else []
        targets = self.family.targets([row.target for row in rendered]) if rendered else []
        if template.answer_choices and not isinstance(template.answer_choices, str):
            self._longest_choice(selection, template)
        return sum(min(len(ids), self.max_source_length) for ids in inputs) + sum(
            min(len(ids), self.max_target_length) for ids in targets)

    def _longest_choice(self, selection: Selection, template: Template) -> int:
        """Tokens of the longest answer choice; raise InputError where the tokenizer writes two of them alike."""
        choices = template.answer_choices
        ids = self.family.targets(choices)
        if alike := colliding(self.family.written(choices, ids)):
            raise InputError(f"{selection.task.path}: template {template.index} ({template.name}): this model's "
                             f"tokenizer writes two of the answer choices {' | '.join(choices)} as '{alike[0]}' "
                             f"and '{alike[1]}', which no metric tells apart")
        return max(map(len, ids))

    def _write(self, selection: Selection, template: Template, data: Path, meta: Path) -> None:
        from datasets import Features, Sequence, Value
        from datasets.arrow_writer import ArrowWriter

        ids = Sequence(Value("int32"))
        features = Features({"input_ids": ids, "labels": ids, "references": Sequence(Value("string")),
                             "choices": Sequence(ids), "gold": Value("int32")})
        rows = selection.load()
        template.check_columns(rows[0][1], selection.rows.source)
        counts = dict.fromkeys(("rows", "input_tokens", "target_tokens", "shortened_inputs", "cut_inputs",
                                "cut_targets", "unwritable_targets", "longest_target", "longest_choice", "without_gold",
                                *LEFT_OUT), 0)
        with temporary_beside(data) as temporary:
            with ArrowWriter(path=str(temporary), features=features) as writer:
                for start in range(0, len(rows), BATCH):
                    rendered, left_out = render_rows(selection, template, rows[start:start + BATCH])
                    counts.update({name: counts[name] + number for name, number in left_out.items()})
                    if not rendered:
                        continue
                    inputs = self.family.prompts([r.input for r in rendered])
                    labels = self.family.targets([r.target for r in rendered])
                    counts["unwritable_targets"] += sum(map(self.family.is_unwritable, labels))
                    references = [list(r.references) for r in rendered]
                    if selection.role != "train":
                        references = self.family.as_generated(references)
                    choices, gold = _choices(self.family, rendered)
                    counts["shortened_inputs"] += self._shorten(template, rendered, inputs)
                    counts["cut_inputs"] += _cut(inputs, self.max_source_length, self.family.end_of_prompt)
                    counts["cut_targets"] += _cut(labels, self.max_target_length, self.family.end_of_target)
                    counts["rows"] += len(rendered)
                    counts["input_tokens"] += sum(map(len, inputs))
                    counts["target_tokens"] += sum(map(len, labels))
                    counts["longest_target"] = max(counts["longest_target"], *map(len, labels))
                    counts["longest_choice"] = max([counts["longest_choice"],
                                                    *(len(ids) for row in choices for ids in row)])
                    counts["without_gold"] += gold.count(-1)
                    writer.write_batch({"input_ids": inputs, "labels": labels, "references": references,
                                        "choices": choices, "gold": gold})
                if not counts["rows"]:
                    reasons = ", ".join(f"{counts[name]} {what}" for name, what in LEFT_OUT.items() if counts[name])
                    raise InputError(f"{selection.rows.source}: all {len(rows)} {selection.role} rows are left out "
                                     f"under template {template.index} of task '{selection.task.name}': {reasons}")
                writer.finalize()
            sync(temporary)
            temporary.replace(data)
        write_whole(meta, json.dumps(counts))  # last: the rows count as written once this is there

    def _shorten(self, template: Template, rendered: list[Rendered], inputs: list[list[int]]) -> int:
        """Put shortened inputs in place of those that are too long, where that is possible; return how many."""
        def too_many(text: str) -> int:
            return len(self.family.prompts([text])[0]) - self.max_source_length

        shorter = {}
        for i, ids in enumerate(inputs):
            if (excess := len(ids) - self.max_source_length) > 0:
                whole = rendered[i].input
                found = shorten(template, rendered[i].row,
                                lambda text, whole=whole, excess=excess: excess if text == whole else too_many(text))
                if found.input != whole:
                    shorter[i] = found.input
        for i, ids in zip(shorter, self.family.prompts([*shorter.values()]) if shorter else [], strict=True):
            inputs[i] = ids
        return len(shorter)


def _choices(family: Family, rendered: list[Rendered]) -> tuple[list[list[list[int]]], list[int]]:
    """Token ids of each row's answer choices, and the position of its target among them, -1 where it is none.

    The tokens that end a target count only where one choice begins another, and then for all of them.
    """
    known: dict[tuple[str, ...], list[list[int]]] = {}
    for choices in {row.choices for row in rendered if row.choices}:
        ids = family.targets(choices, closed=False)
        begins = any(one is not other and other[:len(one)] == one for one in ids for other in ids)
        known[choices] = family.targets(choices) if begins else ids
    return ([known.get(row.choices, []) for row in rendered],
            [row.choices.index(row.target) if row.target in row.choices else -1 for row in rendered])


def _cut(sequences: list[list[int]], longest: int, end: int) -> int:
    """Cut sequences of token ids to `longest`, keeping the last `end`; return how many were cut."""
    too_long = [i for i, ids in enumerate(sequences) if len(ids) > longest]
    for i in too_long:
        kept = min(end, longest)
        sequences[i] = sequences[i][:longest - kept] + sequences[i][len(sequences[i]) - kept:]
    return len(too_long)


def mix(prepared: Sequence[Prepared], mixing: str = "proportional", temperature: float = 2.0,
        seed: int = 0) -> "datasets.Dataset":
    """Join training rows of several tasks; the trainer shuffles them.

    Args:
        prepared: one entry per task and template; the templates of a task stay together.
        mixing: proportional (each row once), equal, or temperature: tasks drawn with probability n ** (1 / temperature)
            of their n rows, small tasks repeated, until each row of each task was seen (Raffel et al., 2020, 3.5.2).
    """
    import datasets

    tasks: dict[str, list] = {}
    for entry in prepared:
        tasks.setdefault(entry.template.task, []).append(entry.dataset.select_columns(["input_ids", "labels"]))
    joined = [datasets.concatenate_datasets(parts) for parts in tasks.values()]
    if mixing == "proportional" or len(joined) == 1:
        return datasets.concatenate_datasets(joined)
    weights = [len(part) ** (1 / temperature) if mixing == "temperature" else 1.0 for part in joined]
    return datasets.interleave_datasets(
        [part.shuffle(seed=seed, keep_in_memory=True) for part in joined],
        probabilities=[w / sum(weights) for w in weights], seed=seed, stopping_strategy="all_exhausted")
