"""The way of a row: local file or hub -> rendered under a template -> tokenised -> cached Arrow file -> mixed.

What is tokenised is written to <cache_dir>/tokenised/ under a key made of everything that changes it: the rows'
source and selection, the template's text, the tokenizer and the lengths. Runs, scripts and sweeps share these files.
"""

import functools
import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import InputError, warn
from src.metrics import metric_names
from src.results import locked
from src.tasks import EmptyRow, Rendered, Task, Template

if TYPE_CHECKING:
    import datasets

BATCH = 1000  # rows rendered and tokenised at once
FORMAT = 1  # counted up when what is stored changes, so that older files are not taken for new ones
SUFFIXES = ("jsonl", "csv", "parquet")
VALIDATION_SHARE = 0.2  # of the training rows at most, where validation is cut from them
GENERATION_MARGIN = 5  # tokens generated beyond the longest answer choice: a longer output could not match it anyway


@dataclass(frozen=True)
class Rows:
    """One split of a task at its source, not read yet.

    `source` is printed, `fingerprint` changes with the content, `load` returns the rows as mappings by column.
    """

    source: str
    fingerprint: str
    load: Callable[[], Sequence[dict]]


# ---- rows ----------------------------------------------------------------------------------------------------------


def find_rows(task: Task, split: str, data_dir: str | Path, cache_dir: str | Path) -> Rows | None:
    """Find the rows of `split`: embedded in the task file, in `data_dir`, or on the hub, in this order.

    Returns None where the task has no such split (only `test` may be lacking).

    Raises:
        InputError: no source has the split, or the local file cannot be read.
    """
    embedded = task.embedded_rows()
    if embedded is not None:
        return Rows(f"{task.path}", _hash([task.path.read_text(encoding="utf-8"), split]), lambda: embedded[split])
    folder = Path(data_dir) / task.name
    if folder.is_dir():
        path = next((p for suffix in SUFFIXES if (p := folder / f"{split}.{suffix}").is_file()), None)
        if path:
            return Rows(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), lambda: _read_file(path))
        if split == "test":
            return None
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise InputError(f"--data_dir {data_dir}: task '{task.name}' needs {folder}/{split}.jsonl (or csv, parquet); "
                         f"found there: {found}")
    return _find_on_hub(task, split, data_dir, cache_dir)


def source_hint(task: Task, data_dir: str | Path) -> str:
    """Where the rows would come from, told without reading them or asking the hub."""
    if task.path.suffix == ".json":
        return str(task.path)
    folder = Path(data_dir) / task.name
    return str(folder) if folder.is_dir() else f"hub: {task.sources[0].path}" if task.sources else "nowhere"


def _read_file(path: Path) -> Sequence[dict]:
    try:
        if path.suffix == ".jsonl":
            rows = []
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():  # mostly the last line
                        continue
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}, line {number}: a row must be a JSON object")
                    rows.append(row)
            return rows
        if path.suffix == ".csv":
            import pandas

            # Nullable types keep whole numbers whole in a column with gaps.
            frame = pandas.read_csv(path, keep_default_na=False, na_values=[""], dtype_backend="numpy_nullable")
            return frame.astype(object).where(frame.notna(), None).to_dict("records")
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not valid JSON: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: {error}") from error


def _find_on_hub(task: Task, split: str, data_dir: str | Path, cache_dir: str | Path) -> Rows | None:
    if split not in task.splits:
        return None
    import datasets

    failures = []
    for source in task.sources:
        check_hub(source.path)
        try:
            # On the hub's branch of converted files a configuration is a folder.
            config = "data_dir" if source.revision == "refs/convert/parquet" else "name"
            rows = datasets.load_dataset(source.path, split=task.splits[split], revision=source.revision,
                                         cache_dir=str(Path(cache_dir) / "hub"), **{config: source.config})
        except Exception as error:  # whatever goes wrong at one source, the next one is tried
            failures.append(f"  {source.label}: {str(error).strip().partition(chr(10))[0] or type(error).__name__}")
            continue
        expected = task.rows.get(split)
        if expected not in (None, len(rows)):
            warn(f"task '{task.name}': {source.label} has {len(rows)} {split} rows, {expected} were expected")
        return Rows(source.label, rows._fingerprint, lambda rows=rows: rows)
    raise InputError("\n".join([f"task '{task.name}': no rows for split '{split}'. There is no folder "
                                f"{Path(data_dir) / task.name} (--data_dir), and of its sources on the hub", *failures,
                                "none could be loaded"]))


def check_hub(name: str) -> None:
    """Where `name` is no local folder and the hub is out of reach, set the hub's library to offline mode.

    It then looks into its cache or gives up at once, instead of trying each file six times in 23 seconds.
    """
    if not Path(name).is_dir():
        _set_offline_where_out_of_reach()


@functools.cache
def _set_offline_where_out_of_reach() -> None:
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception as error:  # whatever the hub's HTTP library raises
        warn(f"the hub is out of reach, only what is cached will be found ({type(error).__name__}: {error})")
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


# ---- selection -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """The rows of one task that one run uses in one role; `seed` drives every draw."""

    task: Task
    role: str  # train | validation | test
    rows: Rows
    slice_of: Rows | None  # the official validation split where validation is cut from the training rows
    downsample: int | None
    seed: int

    @property
    def key(self) -> list:
        """Everything that decides which rows these are."""
        drawn = self.slice_of is not None or self.downsample is not None
        return [self.role, self.rows.fingerprint, self.slice_of.fingerprint if self.slice_of else None,
                self.downsample, self.seed if drawn else None]

    def load(self) -> list[tuple[int, dict]]:
        """Return (row number at the source counted from 1, row) for each selected row.

        Raises:
            InputError: the split is empty.
        """
        rows = self.rows.load()
        numbers = list(range(len(rows)))
        if self.slice_of:
            random.Random(f"slice {self.seed}").shuffle(numbers)
            size = max(1, min(len(self.slice_of.load()), int(len(numbers) * VALIDATION_SHARE)))
            numbers = sorted(numbers[:size] if self.role == "validation" else numbers[size:])
        if self.downsample is not None and self.downsample < len(numbers):
            numbers = sorted(random.Random(f"{self.role} {self.seed}").sample(numbers, self.downsample))
        if not numbers:
            raise InputError(f"task '{self.task.name}': {self.rows.source} gives no {self.role} rows")
        return [(number + 1, rows[number]) for number in numbers]


def select_rows(task: Task, roles: Sequence[str], data_dir: str | Path, cache_dir: str | Path, seed: int,
                downsample: int | None = None, validation_from_train: bool | None = None) -> dict[str, Selection]:
    """Decide which rows serve as train, validation and test.

    A split without gold labels is never scored. Where `test` is asked for and has none, the official validation split
    is the test split and validation is a seeded slice of the training rows, unless `validation_from_train` is False.

    Raises:
        InputError: a split is missing, or test is asked for and there is nothing to test on.
    """
    find = functools.cache(lambda split: find_rows(task, split, data_dir, cache_dir))
    test = find("test") if "test" in roles else None
    test_labelled = test is not None and all(map(task.bare.is_labelled, itertools.islice(test.load(), 1)))
    cut = validation_from_train
    if cut is None:
        cut = "test" in roles and not test_labelled
    if "test" in roles and not test_labelled and not cut:
        raise InputError(f"--do_predict: task '{task.name}' has no test split with gold labels, and "
                         "--validation_from_train False keeps the validation split from serving as one")

    def select(role: str) -> Selection:
        if role == "test":
            rows, slice_of = test if test_labelled else find("validation"), None
        elif cut:
            rows, slice_of = find("train"), find("validation")
        else:
            rows, slice_of = find(role), None
        return Selection(task, role, rows, slice_of, downsample, seed)

    return {role: select(role) for role in roles}


# ---- tokenised data ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """The selected rows of a task under one template, tokenised. `key` is a hash of all that decides them.

    `dataset` has the columns input_ids, labels and references (accepted answers); `counts` has rows, input_tokens,
    target_tokens, cut_inputs, cut_targets (rows longer than allowed), longest_target (tokens), empty_rows (left out).
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
        """Longest output in tokens (the start token counted) worth generating under the user's `cap`."""
        return min(cap, self.longest_choice + GENERATION_MARGIN + 1) if self.longest_choice else cap


class Preparer:
    """Renders and tokenises selections, or finds the result in the cache."""

    def __init__(self, tokenizer, cache_dir: str | Path, max_source_length: int, max_target_length: int,
                 overwrite_cache: bool = False):
        self.tokenizer = tokenizer
        self.folder = Path(cache_dir) / "tokenised"
        self.max_source_length, self.max_target_length = max_source_length, max_target_length
        self.overwrite_cache = overwrite_cache
        self._written: set[str] = set()  # --overwrite_cache builds each file once, not once for each run
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._tokenizer_hash = _hash([type(tokenizer).__name__, backend.to_str() if backend else
                                      [sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]])

    def prepare(self, selection: Selection, template: Template) -> Prepared:
        """Return `selection` under `template`, tokenised; evaluation rows sorted by input length, longest first:
        batches hold rows of like length, and one that does not fit into memory shows at once.

        Raises:
            InputError: a row cannot be rendered (names task, field and row number), or there are none.
        """
        import datasets

        key = _hash([FORMAT, selection.key, template.hash, template.item, self._tokenizer_hash,
                     self.max_source_length, self.max_target_length])
        data = self.folder / f"{template.item}-{selection.role}-{key}.arrow"
        meta = data.with_suffix(".json")
        if not meta.exists() or (self.overwrite_cache and key not in self._written):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--cache_dir: cannot create {self.folder}: {error.strerror}") from error
            with locked(data.with_suffix(".lock")):
                if not meta.exists() or self.overwrite_cache:  # another process may have written it meanwhile
                    self._write(selection, template, data, meta)
            self._written.add(key)
        counts = json.loads(meta.read_text(encoding="utf-8"))
        dataset = datasets.Dataset.from_file(str(data))
        if selection.role != "train":
            lengths = [len(ids) for ids in dataset["input_ids"]]
            longest_first = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
            dataset = dataset.select(longest_first, keep_in_memory=True)
        choices = template.answer_choices
        longest = counts["longest_target"] if choices else 0
        if choices and not isinstance(choices, str):
            longest = max(longest, *(len(ids) for ids in self._tokenise(list(choices), target=True)))
        return Prepared(template, selection.role, key, selection.rows.source, dataset, counts,
                        metric_names(selection.task.metrics, choices), longest)

    def _write(self, selection: Selection, template: Template, data: Path, meta: Path) -> None:
        from datasets import Features, Sequence, Value
        from datasets.arrow_writer import ArrowWriter

        features = Features({"input_ids": Sequence(Value("int32")), "labels": Sequence(Value("int32")),
                             "references": Sequence(Value("string"))})
        rows = selection.load()
        template.check_columns(rows[0][1], selection.rows.source)
        counts = dict.fromkeys(("rows", "input_tokens", "target_tokens", "cut_inputs", "cut_targets",
                                "longest_target"), 0)
        temporary = data.with_suffix(f".{os.getpid()}")
        try:
            with ArrowWriter(path=str(temporary), features=features) as writer:
                for start in range(0, len(rows), BATCH):
                    rendered = render_rows(selection, template, rows[start:start + BATCH])
                    if not rendered:
                        continue
                    inputs = self._tokenise([r.input for r in rendered])
                    labels = self._tokenise([r.target for r in rendered], target=True)
                    inputs, cut_inputs = _cut(inputs, self.max_source_length, self.tokenizer.all_special_ids)
                    labels, cut_labels = _cut(labels, self.max_target_length, self.tokenizer.all_special_ids)
                    counts["rows"] += len(rendered)
                    counts["input_tokens"] += sum(map(len, inputs))
                    counts["target_tokens"] += sum(map(len, labels))
                    counts["cut_inputs"] += cut_inputs
                    counts["cut_targets"] += cut_labels
                    counts["longest_target"] = max(counts["longest_target"], *map(len, labels))
                    writer.write_batch({"input_ids": inputs, "labels": labels,
                                        "references": [list(r.references) for r in rendered]})
                if not counts["rows"]:
                    raise InputError(f"{selection.rows.source}: all {len(rows)} {selection.role} rows are without text "
                                     f"under template {template.index} of task '{selection.task.name}'")
                counts["empty_rows"] = len(rows) - counts["rows"]
                writer.finalize()
            temporary.replace(data)
            temporary.write_text(json.dumps(counts), encoding="utf-8")
            temporary.replace(meta)  # last: the file counts as written once this is there
        finally:
            temporary.unlink(missing_ok=True)

    def _tokenise(self, texts: list[str], target: bool = False) -> list[list[int]]:
        return self.tokenizer(**{"text_target" if target else "text": texts}, verbose=False)["input_ids"]


def render_rows(selection: Selection, template: Template, rows: Sequence[tuple[int, dict]]) -> list[Rendered]:
    """Render numbered rows; those without text are left out.

    Raises:
        InputError: a row lacks a field or a label; names source, row, task and field.
    """
    rendered = []
    for number, row in rows:
        try:
            rendered.append(template.render(row))
        except EmptyRow:
            continue
        except InputError as error:
            raise InputError(f"{selection.rows.source}, row {number}: {error}") from error
    return rendered


def _cut(sequences: list[list[int]], longest: int, special: list[int]) -> tuple[list[list[int]], int]:
    """Cut sequences of token ids to `longest`, keeping the closing special token; return them and how many were cut."""
    too_long = [i for i, ids in enumerate(sequences) if len(ids) > longest]
    for i in too_long:
        ids = sequences[i]
        sequences[i] = [*ids[:longest - 1], ids[-1]] if ids[-1] in special else ids[:longest]
    return sequences, len(too_long)


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


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
