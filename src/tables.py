"""Read tables of scores that others wrote: wide, long, square; `python -m src.results import` makes a part of each.

A table that has a column `Trained on` has a row per item (column `Task` or `item`) and subset. It is *wide* where each
metric has a column eval_<metric> (beside it perhaps eval_<metric>_std), and *long* where the columns `metric` and
`value` (perhaps `std`) hold one score a row. Columns of both, where they are there: `runs` or `seeds` (how many are
behind a mean), `seed` (of a single run), `split`, `config_hash`. Others say nothing of scores. Else it is *square*: a
row for each item, named in the first column, and a column for each item it was trained with, or transferred from: of
these there may then be others.
"""

import ast
import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from src.cli import InputError, did_you_mean
from src.names import SPLITS, check_name, natural_order

SPEED = ("runtime", "samples_per_second", "steps_per_second", "samples")  # what Trainers add to the metrics
FORMS = ("a wide table has the columns Task, Trained on, eval_<metric>; a long one item, trained_on, metric, value; a "
         "square one the same items in its first column and its first line")


@dataclass(frozen=True)
class Reading:
    """What a table itself does not say: the flags of `import`."""

    split: str = "valid"  # of rows that do not name theirs
    metrics: tuple[str, ...] = ()  # which to take; of a table without names of metrics, its own
    task: str | None = None  # whose templates bare numbers are
    square_as: str | None = None  # pairs or transfer


@dataclass(frozen=True)
class Score:
    """A row to be. The names are columns of runs.csv, beside `line`: where it stands in its table."""

    line: int
    item: str
    trained_on: str
    split: str
    metric: str
    value: float
    seed: int | str = ""
    std: float | str = ""
    seeds: int | str = ""
    config_hash: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell, which knows where it stands."""

    path: Path
    line: int
    column: str
    text: str = ""

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}, column '{self.column}':"

    def error(self, allowed: str) -> InputError:
        shown = self.text if len(self.text) <= 60 else f"{self.text[:60]}..."
        return InputError(f"{self.where} found '{shown}'; {allowed}")

    def number(self, least: float = -math.inf) -> float | str:
        """The number, from `least` on; '' in an empty cell and for NaN, which say that nothing was measured."""
        if self.text.lower() in ("", "nan"):
            return ""
        try:
            value = float(self.text.replace("_", "x"))  # Python would read 1_5 as 15
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least:
            raise self.error("must be a number" + ("" if least == -math.inf else f" from {least} on"))
        return value

    def whole(self, least: int) -> int | str:
        value = self.number(least)
        if value != "" and value % 1:
            raise self.error(f"must be a whole number from {least} on")
        return value if value == "" else int(value)

    def item(self, task: str | None, name: str | None = None) -> str:
        """The item that the cell names, or of which `name` is in the cell; a bare number is a template of `task`."""
        name = self.text if name is None else name.strip()
        if re.fullmatch(r"-?[0-9]+", name):
            if task is None:
                raise self.error("a bare number is a template: --task NAME says of which task")
            name = f"{task}_{int(name)}"
        check_name(self.where, name)
        return name

    def items(self, task: str | None) -> str:
        """The items of a subset, as runs.csv has them, given by spaces, commas or as a printed Python list."""
        if self.text.startswith(("[", "(")):
            try:
                names = list(ast.literal_eval(self.text))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                names = [None]
            if not all(type(name) in (str, int) for name in names):
                raise self.error("must be a printed list of names or numbers, such as ['rte', 'boolq']")
        else:
            names = self.text.strip(",").split("," if "," in self.text else None)
        items = [self.item(task, str(name)) for name in names]
        if not items:
            raise self.error("must name the items trained on; none where there was no training")
        if len(set(items)) < len(items):
            raise self.error("must name each item once")
        return " ".join(sorted(items, key=natural_order))


def read_table(path: Path, how: Reading) -> tuple[str, list[Score]]:
    """The form of a table, and its scores.

    Raises:
        InputError: names the file, the line, the column, what stands there and what is allowed.
    """
    header, rows = _read(path)
    known = {name.lower().replace("_", " "): name for name in header}  # Trained on, trained_on
    if "trained on" not in known:
        if any(name.startswith("eval_") for name in header) or {"value", "metric"} <= set(known):
            raise _no_column(path, "Trained on", header)
        form, scores = "square", list(_square(path, header, rows, how))
    else:
        form, scores = _listed(path, header, known, rows, how)
    if not scores:
        raise InputError(f"{path}: holds no number")
    if how.task is not None and not any(re.fullmatch(rf"{re.escape(how.task)}_-?\d+", name)
                                        for score in scores for name in (score.item, *score.trained_on.split())):
        raise InputError(f"--task {how.task}: no bare number in {path} names a template of it")
    _reject_repeated(path, scores)
    return form, scores


def _read(path: Path) -> tuple[list[str], list[dict[str, Cell]]]:
    """The header of a CSV file, and for each line its cells by column; all of it is text."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    lines, line = [], 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                line = reader.line_num
                if any(field.strip() for field in fields):
                    lines.append((line, [field.strip() for field in fields]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}, after line {line}: not a whole CSV file in UTF-8: "
                         f"{getattr(error, 'strerror', None) or error}") from error
    if not lines:
        raise InputError(f"{path}: an empty file; {FORMS}")
    (first, header), *lines = lines
    for name in header:
        if name and header.count(name) > 1:
            raise InputError(f"{path}, line {first}: two columns '{name}'")
    for line, fields in lines:
        if len(fields) != len(header):
            raise InputError(f"{path}, line {line}: {len(fields)} fields, but line {first} has {len(header)}")
    return header, [{name: Cell(path, line, name, text) for name, text in zip(header, fields, strict=True)}
                    for line, fields in lines]


def _listed(path: Path, header: list[str], known: Mapping[str, str], rows: Iterable[Mapping[str, Cell]],
            how: Reading) -> tuple[str, list[Score]]:
    """The form and scores of a wide or long table. known: the columns by their names in lower case, with spaces."""
    if how.square_as:
        raise InputError(f"--as {how.square_as}: is for square tables; {path} has a column '{known['trained on']}', "
                         "which says what was trained")
    item = known.get("task", known.get("item"))
    if item is None:
        raise _no_column(path, "Task", header)
    is_long, scores = "value" in known, []
    columns = {} if is_long else _metric_columns(path, header, how.metrics)
    for row in rows:
        def cell(*names: str, row=row) -> Cell:
            column = next((known[name] for name in names if name in known), None)
            return Cell(path, 0, names[0]) if column is None else row[column]

        split = cell("split").text or how.split
        if split not in SPLITS:
            raise cell("split").error(did_you_mean(split, SPLITS))
        seed, seeds = cell("seed").whole(0), cell("seeds", "runs").whole(1)
        if seed != "" and seeds not in ("", 1):
            raise cell("seeds", "runs").error("a row of one seed is no mean over several")
        fixed = {"item": row[item].item(how.task), "trained_on": cell("trained on").items(how.task), "split": split,
                 "seed": seed, "seeds": seeds if seed == "" else "", "config_hash": cell("config hash").text}
        measured = [(_metric(cell("metric"), how), cell("value"), cell("std"))] if is_long else [
            (metric, row[column], row.get(f"{column}_std", Cell(path, 0, ""))) for metric, column in columns.items()]
        for metric, value, std in measured:
            if (metric in how.metrics or not how.metrics) and (number := value.number()) != "":
                scores.append(Score(value.line, metric=metric, value=number, std=std.number(0), **fixed))
    for metric in set(how.metrics) - {score.metric for score in scores}:
        raise InputError(f"--metric {metric}: no row of {path} has a number of it")
    return "long" if is_long else "wide", scores


def _no_column(path: Path, name: str, header: list[str]) -> InputError:
    return InputError(f"{path}, line 1: column '{name}' is missing, found: {', '.join(header[:12])}; {FORMS}; --metric "
                      "NAME names a column of a wide table without eval_")


def _metric(cell: Cell, how: Reading) -> str:
    """The metric of a row of a long table."""
    if cell.text:
        return cell.text.removeprefix("eval_")
    if len(how.metrics) != 1:
        raise InputError(f"{cell.path}: which metric the column 'value' holds is not said; --metric NAME says it")
    return how.metrics[0]


def _metric_columns(path: Path, header: list[str], metrics: tuple[str, ...]) -> dict[str, str]:
    """Metric -> its column of a wide table: those asked for, with or without eval_, else all that begin with eval_."""
    found = metrics or [name.removeprefix("eval_") for name in header if name.startswith("eval_")
                        and not name.endswith("_std") and name.removeprefix("eval_") not in SPEED]
    columns = {metric: next((name for name in (f"eval_{metric}", metric) if name in header), None) for metric in found}
    for metric, column in columns.items():
        if column is None:
            raise InputError(f"--metric {metric}: {path} has no column eval_{metric} nor {metric}, "
                             f"{did_you_mean(metric, filter(None, header))}")
    if not columns:
        raise _no_column(path, "eval_<metric>", header)
    return columns


def _square(path: Path, header: list[str], rows: list[dict[str, Cell]], how: Reading) -> Iterable[Score]:
    """The scores of a square table: the row's item alone, and with the column's (or, as transfer, after it alone)."""
    first, names, transfer = header[0], [row[header[0]].text for row in rows], how.square_as == "transfer"
    for row in rows:
        if row[first].text not in header[1:] and not transfer:  # what is transferred from need not be a target
            raise row[first].error(f"not in line 1, {did_you_mean(row[first].text, header[1:])}; {FORMS}")
        if names.count(row[first].text) > 1:
            raise row[first].error("this item has another row")
    for name in () if transfer else sorted(set(header[1:]) - set(names)):
        raise InputError(f"{path}, line 1: '{name}' has no row, {did_you_mean(name, names)}; {FORMS}")
    here = [row[first].item(how.task) for row in rows]
    there = [Cell(path, 1, name, name).item(how.task) for name in header[1:]]
    if len(how.metrics) != 1:
        raise InputError(f"{path}: a square table does not say which metric it holds; one --metric NAME says it")
    for item, row in zip(here, rows, strict=True):
        for other, column in zip(there, header[1:], strict=True):
            alone = item == other or transfer
            trained_on = other if alone else " ".join(sorted((item, other), key=natural_order))
            if (value := row[column].number()) != "":
                yield Score(row[column].line, item, trained_on, how.split, how.metrics[0], value)


def _reject_repeated(path: Path, scores: Iterable[Score]) -> None:
    """Raise InputError for a second score of the same; a row without a seed goes with no other."""
    seen: dict[tuple, dict] = {}
    for score in scores:
        lines = seen.setdefault((score.item, score.trained_on, score.metric, score.split, score.config_hash), {})
        clash = [line for seed, line in lines.items() if score.seed == seed or "" in (score.seed, seed)]
        if clash:
            raise InputError(f"{path}, line {score.line}: a second row for {describe(score)}, after line {clash[0]}; "
                             "remove one of them, or tell seeds apart by a column 'seed'")
        lines[score.seed] = score.line


def describe(score: Score) -> str:
    """A score in words, for errors."""
    return f"item '{score.item}', trained on '{score.trained_on}', metric '{score.metric}', split '{score.split}'" + (
        f", seed {score.seed}" if score.seed != "" else "")
