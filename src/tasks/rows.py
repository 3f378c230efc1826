"""The rows of a task: found in its file, in a folder or on the hub; selected for a role; rendered."""

import functools
import glob
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.cli import InputError, warn
from src.files import read_bytes, read_text
from src.identity import short_hash
from src.tasks.read import read_rows
from src.tasks.task import Source, Task
from src.tasks.template import LeftOut, Rendered, Template

if TYPE_CHECKING:
    import datasets

CONVERTED = "refs/convert/parquet"  # the branch on which the hub keeps every data set as parquet files
SUFFIXES = ("jsonl", "csv", "parquet")
LOOKED_AT = 1000  # rows of a test split that are looked at for a gold label
VALIDATION_SHARE = 0.2  # of the training rows at most, where validation is cut from them


@dataclass(frozen=True)
class Rows:
    """One split of a task at its source, not read yet.

    `source` is printed, `fingerprint` changes with the content, `load` returns the rows as mappings by column.
    """

    source: str
    fingerprint: str
    load: Callable[[], Sequence[dict]]


# ---- find -----------------------------------------------------------------------------------------------------------


def find_rows(task: Task, split: str, data_dir: str | Path, cache_dir: str | Path) -> Rows | None:
    """Find the rows of `split`: embedded in the task file, in `data_dir`, or on the hub, in this order.

    Returns None where the task has no such split (only `test` may be lacking).

    Raises:
        InputError: no source has the split, or the local file cannot be read.
    """
    if task.embedded is not None:
        return Rows(f"{task.path}", short_hash([read_text(task.path), split], 16),
                    lambda: task.embedded[split])
    folder = Path(data_dir) / task.name
    if folder.is_dir():
        path = next((p for suffix in SUFFIXES if (p := folder / f"{split}.{suffix}").is_file()), None)
        if path:
            return Rows(str(path), hashlib.sha256(read_bytes(path)).hexdigest(), lambda: read_rows(path))
        if split == "test":
            return None
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise InputError(f"--data_dir {data_dir}: task '{task.name}' needs {folder}/{split}.jsonl (or csv, parquet); "
                         f"found there: {found}")
    return _find_on_hub(task, split, data_dir, cache_dir)


def source_hint(task: Task, data_dir: str | Path) -> str:
    """Where the rows would come from, told without reading them or asking the hub."""
    if task.embedded is not None:
        return str(task.path)
    folder = Path(data_dir) / task.name
    return str(folder) if folder.is_dir() else f"hub: {task.sources[0].path}" if task.sources else "nowhere"


def _find_on_hub(task: Task, split: str, data_dir: str | Path, cache_dir: str | Path) -> Rows | None:
    if split not in task.splits:
        return None
    failures = []
    for source in task.sources:
        check_hub(source.path)
        try:
            rows, fingerprint = _load_from_hub(source, task.splits[split], str(Path(cache_dir) / "hub"))
        except Exception as error:  # whatever goes wrong at one source, the next one is tried
            failures.append(f"  {source.label}: {str(error).strip().partition(chr(10))[0] or type(error).__name__}")
            continue
        expected = task.rows.get(split)
        if expected not in (None, len(rows)):
            warn(f"task '{task.name}': {source.label} has {len(rows)} {split} rows, {expected} were expected")
        return Rows(source.label, fingerprint, lambda rows=rows: rows)
    raise InputError("\n".join([f"task '{task.name}': no rows for split '{split}'. There is no folder "
                                f"{Path(data_dir) / task.name} (--data_dir), and of its sources on the hub", *failures,
                                "none could be loaded"]))


def _load_from_hub(source: Source, split: str, cache_dir: str) -> tuple["datasets.Dataset", str]:
    """Rows of a split and their fingerprint. Nothing that a data set brings is run: only its files are read."""
    import datasets

    if source.revision != CONVERTED:
        rows = datasets.load_dataset(source.path, source.config, split=split, revision=source.revision,
                                     cache_dir=cache_dir)
        return rows, rows._fingerprint
    commit, config, files = _converted_files(source, split, cache_dir)
    rows = datasets.load_dataset("parquet", data_files={split: files}, split=split, cache_dir=cache_dir)
    return rows, short_hash([source.path, commit, config, split], 16)


def _converted_files(source: Source, split: str, cache_dir: str) -> tuple[str, str, list[str]]:
    """Commit, configuration and local paths of exactly the files of one split on the hub's branch of converted files.

    They lie there under <configuration>/<split>/, or <configuration>/partial-<split>/ where the hub has cut it. Where
    the task file names no configuration there may be one only. Without the hub, what is cached is taken.
    """
    import huggingface_hub

    config = glob.escape(source.config) if source.config else "*"
    names = [glob.escape(split), f"partial-{glob.escape(split)}"]
    folder, commit = Path(source.path), "local"
    if not folder.is_dir():
        folder = Path(huggingface_hub.snapshot_download(
            source.path, repo_type="dataset", revision=source.revision, cache_dir=cache_dir,
            allow_patterns=[f"{config}/{name}/*.parquet" for name in names]))
        commit = folder.name
    found = next((files for name in names if (files := sorted(folder.glob(f"{config}/{name}/*.parquet")))), [])
    configs = sorted({path.parent.parent.name for path in found})
    if len(configs) != 1:
        raise InputError(f"has the split {split} in the configurations {', '.join(configs)}: name one" if configs else
                         f"has no {source.config or '<configuration>'}/{split}/*.parquet")
    return commit, configs[0], [str(path) for path in found]


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


# ---- select ---------------------------------------------------------------------------------------------------------


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
    test_labelled = test is not None and any(
        map(task.bare.is_labelled, itertools.islice(test.load(), LOOKED_AT)))
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


# ---- render ---------------------------------------------------------------------------------------------------------


def render_rows(selection: Selection, template: Template,
                rows: Sequence[tuple[int, dict]]) -> tuple[list[Rendered], Counter]:
    """Render numbered rows; also return how many were left out, by the counters of LEFT_OUT.

    Raises:
        InputError: a row lacks a field, or the template cannot be applied; names source, row, task and field.
    """
    rendered, left_out = [], Counter()
    for number, row in rows:
        try:
            rendered.append(template.render(row))
        except LeftOut as error:
            left_out[error.counter] += 1
        except InputError as error:
            raise InputError(f"{selection.rows.source}, row {number}: {error}") from error
    return rendered, left_out
