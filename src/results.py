"""The results of a sweep or an experiment: results/<save_name>/.

  runs/<run_id>.csv   the rows of one run, written whole (temporary file, fsync, rename)
  runs/<run_id>.json  its record: arguments, versions, device, commit, timings, error; runs/<run_id>.log its log
  runs.csv            all rows of all runs, one per (run, item, split, metric)
  <save_name>_valid.csv, <save_name>_test.csv   one row per (item, subset it was trained in), means over runs

The last three are derived from the parts under runs/ by `merge` and replaced at once: a reader never sees half a file,
two writers never lose a row, and a run that is repeated replaces its rows instead of adding to them. `.merged.json`
says which parts they were made of, so that only new ones are read. No lock is needed: who has written them looks at the
parts once more, and begins again where some have changed.

    python -m src.results merge SAVE_NAME                      rebuild these at any time
    python -m src.results import FILE ... --save_name NAME     make a part of each table of scores from elsewhere
"""

import contextlib
import csv
import functools
import hashlib
import io
import json
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.cli import InputError, OneLineErrors, add_results_flags, run_as_script, warn
from src.files import check_writable, remove_stale, stamp, write_whole
from src.identity import short_hash
from src.names import SPLITS, check_name, natural_order, plain_name
from src.tables import Reading, Score, describe, read_table

COLUMNS = ("run_id", "status", "seed", "item", "template", "template_hash", "content_hash", "trained_on",
           "trained_hash", "split", "model", "metric", "value", "n_examples", "steps", "seconds", "commit",
           "config_hash", "std", "seeds")
NEWER = {"content_hash", "trained_hash", "std", "seeds"}  # columns that parts of older versions do not have
MEASURED = ("completed", "imported")  # statuses of rows with true scores
MERGED = ".merged.json"
SWEEP_MERGES = "SWEEP_MERGES"  # in the environment of a sweep's children: it merges for all of them
Rows = list[dict[str, str]]


class Results:
    """The folder of one `--save_name`."""

    def __init__(self, results_dir: str | Path, save_name: str):
        check_name("--save_name", save_name)
        self.folder = Path(results_dir) / save_name
        self.save_name = save_name

    @property
    def runs_csv(self) -> Path:
        return self.folder / "runs.csv"

    def summary_csv(self, split: str) -> Path:
        """Path of the CSV of `split` (valid or test) that people open."""
        return self.folder / f"{self.save_name}_{split}.csv"

    def part(self, run_id: str, suffix: str = "csv") -> Path:
        """Path of a run's rows (csv), record (json) or log (log)."""
        return self.folder / "runs" / f"{run_id}.{suffix}"

    def check_writable(self) -> None:
        """Raise InputError where results could not be written later. Creates nothing."""
        check_writable(f"results cannot be written to {self.folder}", self.folder / "runs")

    def write_run(self, run_id: str, rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
        """Write one run's record and rows (keys: COLUMNS), then bring the derived files up to date."""
        self.write_part(run_id, rows, record)
        self.merge_unless_in_sweep()

    def write_part(self, run_id: str, rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
        self.write_record(run_id, record)
        write_whole(self.part(run_id), _as_csv(rows))

    def write_record(self, run_id: str, record: Mapping[str, Any]) -> None:
        self.part(run_id).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.part(run_id, "json"), json.dumps(record, indent=1, default=str) + "\n")

    def rows_of(self, run_id: str) -> Rows:
        """The rows of a completed run; none where it is not completed, or was only trained."""
        rows = (read_part(self.part(run_id)) if self.part(run_id).exists() else None) or []
        return rows if {row["status"] for row in rows} == {"completed"} else []

    def is_completed(self, run_id: str, wanted: Collection[tuple[str, str, str]] = ()) -> bool:
        """Whether the run was successful and has a row for each wanted (split, item, metric)."""
        if rows := self.rows_of(run_id):
            return set(wanted) <= set(map(score_of, rows))
        if not wanted and self.part(run_id).exists():  # it was only trained: the record knows
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                record = json.loads(self.part(run_id, "json").read_text(encoding="utf-8"))
                return record["status"] == "completed" and read_part(self.part(run_id)) == []
        return False

    def is_without_scores(self, split: str) -> bool:
        """Whether there is no true run with scores of `split` (in runs.csv, or an older summary without it)."""
        if not self.runs_csv.exists():
            return not self.summary_csv(split).exists()
        with self.runs_csv.open(encoding="utf-8", newline="") as file:
            return not any(row.get("status") in MEASURED and row.get("split") == split
                           for row in csv.DictReader(file))

    def models(self) -> set[str]:
        """The models of the completed runs, as --model_name_or_path gave them; empty where that is not recorded."""
        if not self.runs_csv.exists():
            return set()
        with self.runs_csv.open(encoding="utf-8", newline="") as file:
            done = [row for row in csv.DictReader(file) if row.get("status") == "completed"]
        return {row["model"] for row in done if row.get("model")}

    # ---- merge -----------------------------------------------------------------------------------------------------

    def merge(self) -> int:
        """Bring runs.csv, _valid.csv and _test.csv up to date with the parts; return the number of runs, 0 for none.

        A part that is not whole is named and left out. Where the folder of parts is gone, what was derived from them
        stays as it is: all that was kept of them.
        """
        if not (self.folder / "runs").exists():
            return 0
        merged, rows = self._merged(), None
        while (parts := self._stamps()) != merged["parts"]:
            if rows is None:
                rows = self._merged_rows(merged["files"])
            rows = {run: rows[run] if run in rows and merged["parts"].get(run) == part else read_part(self.part(run))
                    for run, part in parts.items()}
            try:
                merged = self._derive(parts, rows)
            except FileNotFoundError:
                if self.folder.exists():
                    raise
                return 0  # it was deleted meanwhile
        for run in merged["left_out"]:  # every command says so, also one that finds nothing new
            read_part(self.part(run))
        return len(parts) - len(merged["left_out"])

    def merge_unless_in_sweep(self) -> None:
        """Merge, but not in a child of a sweep: in each of n children it would cost n times as much as in the sweep."""
        if SWEEP_MERGES not in os.environ:
            self.merge()

    def _stamps(self) -> dict[str, list[int]]:
        """Of each part, in the order of names, what tells whether it was changed."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / "runs") as entries:
            for entry in entries:
                if entry.name.endswith(".csv") and not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):  # this one was deleted meanwhile: the others count
                        leads_on = not entry.is_symlink() or Path(entry).exists()  # else it is named as unread
                        found[entry.name.removesuffix(".csv")] = stamp(entry.stat(follow_symlinks=leads_on))
        return dict(sorted(found.items()))

    def _merged(self) -> dict:
        """What the derived files were made of; no parts where one of the files was changed since."""
        derived = (self.runs_csv, *map(self.summary_csv, SPLITS))
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            merged = json.loads((self.folder / MERGED).read_text(encoding="utf-8"))
            if merged["files"] == {path.name: stamp(path.stat()) for path in derived if path.exists()}:
                return {"parts": dict(merged["parts"]), "left_out": list(merged["left_out"]), "files": merged["files"]}
        return {"parts": {}, "left_out": [], "files": {}}

    def _merged_rows(self, files: Mapping) -> dict[str, Rows]:
        """The rows of runs.csv by run; none where another merge has replaced it since `files` were looked at."""
        rows: dict[str, Rows] = {}
        with contextlib.suppress(OSError), self.runs_csv.open(encoding="utf-8", newline="") as file:
            if files.get(self.runs_csv.name) == stamp(os.fstat(file.fileno())):
                for row in csv.DictReader(file):
                    rows.setdefault(row["run_id"], []).append(row)
        return rows

    def _derive(self, parts: Mapping[str, list[int]], rows: Mapping[str, Rows | None]) -> dict:
        together = [row for of_run in rows.values() for row in of_run or ()]
        texts = {self.runs_csv: _as_csv(together)} | {
            self.summary_csv(split): summary(together, split) for split in SPLITS}
        merged = {"parts": parts, "left_out": [run for run in parts if rows[run] is None],
                  "files": {path.name: write_whole(path, text) for path, text in texts.items() if text}}
        for path, text in texts.items():
            if not text:
                path.unlink(missing_ok=True)
        write_whole(self.folder / MERGED, json.dumps(merged))
        for folder in (self.folder, self.folder / "runs"):
            remove_stale(folder)
        return merged


def _as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def score_of(row: Mapping[str, str]) -> tuple[str, str, str]:
    """Which score of its run a row is: (split, item, metric)."""
    return row["split"], row["item"], row["metric"]


def read_part(path: Path) -> Rows | None:
    """The rows of a part in the columns of this version; None, with a warning, where it is not a whole file."""
    try:
        text = path.read_text(encoding="utf-8")
        header, *lines = csv.reader(io.StringIO(text), strict=True)
        if not set(COLUMNS) - NEWER <= set(header) <= set(COLUMNS):
            raise ValueError(f"line 1: expected the columns {','.join(COLUMNS)}")
        if not text.endswith("\n") or any(len(line) != len(header) for line in lines):
            raise ValueError("its lines are not whole")
        rows = [dict.fromkeys(NEWER, "") | dict(zip(header, line, strict=True)) for line in lines]
        for row in rows:
            float(row["value"] or (0 if row["status"] not in MEASURED else "no value"))
            float(row["std"] or 0), int(row["seeds"] or 1)
            if row["run_id"] != path.stem:  # a copy, whose rows would count twice
                raise ValueError(f"it holds rows of {row['run_id']!r}")
    except (OSError, ValueError, csv.Error) as error:
        _warn_once(f"{path}: left out, {error}; remove it, or train that run again",
                   *(stamp(path.stat()) if path.exists() else ()))
        return None
    return rows


@functools.cache
def _warn_once(message: str, *_stamp: int) -> None:
    """Warn of a file, but not again in this process until it is another."""
    warn(message)


def summary(rows: Iterable[Mapping[str, str]], split: str) -> str:
    """Means and standard deviations over runs, as CSV text; empty where `split` has no measured rows.

    Runs of different settings, templates or rows under one name stay apart; a seed counts once. The standard
    deviation is that of a sample (n - 1), and empty for a single run and where a run gave NaN or infinity. An imported
    mean keeps the standard deviation and the number of seeds that it came with.
    """
    groups = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["split"] == split and row["status"] in MEASURED:
            key = (row["item"], row["trained_on"], row["config_hash"], row["template_hash"], row["content_hash"],
                   row["trained_hash"], row["status"])
            groups[key][row["metric"]][row["seed"]] = row
    if not groups:
        return ""
    metrics = sorted({metric for group in groups.values() for metric in group})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Task", "Trained on", *(f"eval_{m}{suffix}" for m in metrics for suffix in ("", "_std")),
                     "runs", "config_hash"])
    for (item, trained_on, config_hash, *_), group in sorted(groups.items(), key=lambda entry: (
            natural_order(entry[0][1]), natural_order(entry[0][0]), entry[0][2:])):
        found = {metric: _mean(list(of_metric.values())) for metric, of_metric in group.items()}
        numbers = [number for metric in metrics for number in found.get(metric, ("", "", 0))[:2]]
        writer.writerow([item, trained_on, *numbers, max(runs for *_, runs in found.values()), config_hash])
    return text.getvalue()


def _mean(rows: list[Mapping[str, str]]) -> tuple[float, float | str, int]:
    """Mean, standard deviation ('' where unknown) and number of seeds of the rows of one score."""
    values = [float(row["value"]) for row in rows]
    if len(rows) == 1:
        std, seeds = rows[0]["std"], rows[0]["seeds"]
        return round(values[0], 6), round(float(std), 6) if std else "", int(seeds or 1)
    spread = round(statistics.stdev(values), 6) if all(map(math.isfinite, values)) else ""
    return round(statistics.fmean(values), 6), spread, len(values)


# ---- import ---------------------------------------------------------------------------------------------------------


def import_tables(results: Results, files: Iterable[str], how: Reading, command: list[str]) -> None:
    """Make a part of each table of scores, in place of what the same file gave before; none where one is not right.

    To be followed by `merge`.

    Raises:
        InputError: a file cannot be read (see `read_table`), holds a score that another one brought, or is itself
            derived from the parts and would be written over.
    """
    results.check_writable()
    derived = {path.resolve() for path in (results.runs_csv, *map(results.summary_csv, SPLITS))}
    parts: dict[str, tuple[Path, str, list[Score]]] = {}
    for path in map(Path, files):
        if path.resolve() in derived:
            raise InputError(f"{path}: would be written over by what is derived from it; give another --save_name than "
                             f"{results.save_name}")
        run_id = f"import-{plain_name(path.stem, 40)}-{short_hash(str(path.resolve()))}"
        parts[run_id] = path, *read_table(path, how)
    _reject_known(results, parts)
    for run_id, (path, form, scores) in parts.items():
        again = "again, in place of before, " if results.part(run_id).exists() else ""
        rows = [{name: value for name, value in asdict(score).items() if name != "line"}
                | {"run_id": run_id, "status": "imported"} for score in scores]
        results.write_part(run_id, rows, {
            "run_id": run_id, "status": "imported", "source": str(path.resolve()), "form": form, "rows": len(rows),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "command": command,
            "imported": datetime.now(UTC).isoformat(timespec="seconds")})
        print(f"{path}: {again}{form}, {len(rows)} scores of {len({score.item for score in scores})} items after "
              f"{len({score.trained_on for score in scores})} subsets, "
              + ", ".join(sorted({f"{score.metric} ({score.split})" for score in scores})))


def _reject_known(results: Results, parts: Mapping[str, tuple[Path, str, list[Score]]]) -> None:
    """Raise InputError where a score of `parts` is also in another table: which of them counts would be chance."""
    names, seen = ("item", "trained_on", "metric", "split", "config_hash", "seed"), {}
    for path in sorted((results.folder / "runs").glob("import-*.csv")):
        if path.stem not in parts:
            seen |= {tuple(row.get(name) for name in names): path.stem for row in read_part(path) or ()}
    for run_id, (path, _, scores) in parts.items():
        for score in scores:
            other = seen.setdefault(tuple(str(getattr(score, name)) for name in names), run_id)
            if other != run_id:
                raise InputError(f"{path}, line {score.line}: {describe(score)} is there already, in "
                                 f"{results.part(other)}; delete that and its record, or give another --save_name")


def make_parser() -> OneLineErrors:
    parser = OneLineErrors(prog="python -m src.results", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="rebuild the CSV files of a save_name from its parts")
    merge.add_argument("save_name", help="name of the folder under --results_dir")
    table = commands.add_parser("import", help="take over tables of scores from elsewhere",
                                description="Take over tables of scores; results/README.md shows their forms.")
    add = table.add_argument
    add("files", nargs="+", metavar="FILE", help="a CSV file: a wide, a long or a square table")
    add_results_flags(table, "save_name", "split", save_name={"help": "results go to <results_dir>/<save_name>/"},
                      split={"help": "split of the rows that do not name theirs (default: valid)"})
    add("--metric", action="append", default=[], metavar="NAME", help="take this metric alone, and those of further "
        "--metric; a square table needs it (default: all)")
    add("--task", help="the task that bare numbers are templates of: with rte, 0 is rte_0")
    add("--as", dest="square_as", choices=["pairs", "transfer"], help="whether a square table holds the row's item "
        "after training with the column's, or after the column's alone (default: pairs)")
    for each in (merge, table):
        add_results_flags(each, "results_dir")
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = make_parser().parse_args(arguments)
    results = Results(args.results_dir, args.save_name)
    if args.command == "import":
        if args.task is not None:
            check_name("--task", args.task)
        metrics = tuple(dict.fromkeys(name.removeprefix("eval_") for name in args.metric))
        import_tables(results, args.files, Reading(args.split, metrics, args.task, args.square_as),
                      ["python", "-m", "src.results", *arguments])
    if not (number := results.merge()):
        raise InputError(f"{results.folder}: no runs there")
    print(f"{results.runs_csv}: {number} runs")
    return 0


if __name__ == "__main__":
    run_as_script(main)
