"""The results of a sweep or an experiment: results/<save_name>/.

  runs/<run_id>.csv   the rows of one run, written whole (temporary file, fsync, rename)
  runs/<run_id>.json  its record: arguments, versions, device, commit, timings, error; runs/<run_id>.log its log
  runs.csv            all rows of all runs, one per (run, item, split, metric)
  <save_name>_valid.csv, <save_name>_test.csv   one row per (item, subset it was trained in), means over runs

The last three are derived from the parts under runs/ by `merge`, under a lock, and replaced at once: a reader never
sees half a file, two writers never lose a row, and a run that is repeated replaces its rows instead of adding to them.

`python -m src.results merge SAVE_NAME` rebuilds them at any time.
"""

import argparse
import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from src.cli import InputError, run_as_script
from src.files import check_writable, locked, write_whole
from src.names import check_name, natural_order

COLUMNS = ("run_id", "status", "seed", "item", "template", "template_hash", "content_hash", "trained_on",
           "trained_hash", "split", "model", "metric", "value", "n_examples", "steps", "seconds", "commit",
           "config_hash")
SPLITS = ("valid", "test")


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
        self.write_record(run_id, record)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.part(run_id), text.getvalue())
        self.merge()

    def write_record(self, run_id: str, record: Mapping[str, Any]) -> None:
        self.part(run_id).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.part(run_id, "json"), json.dumps(record, indent=1, default=str) + "\n")

    def is_completed(self, run_id: str) -> bool:
        """Whether the run's rows are there and tell of success."""
        try:
            with self.part(run_id).open(encoding="utf-8", newline="") as file:
                statuses = {row["status"] for row in csv.DictReader(file)}
        except FileNotFoundError:
            return False
        if statuses:  # there are none where it was only trained
            return statuses == {"completed"}
        return json.loads(self.part(run_id, "json").read_text(encoding="utf-8"))["status"] == "completed"

    def is_without_scores(self, split: str) -> bool:
        """Whether there is no completed run with scores of `split` (in runs.csv, or an older summary without it)."""
        if not self.runs_csv.exists():
            return not self.summary_csv(split).exists()
        with self.runs_csv.open(encoding="utf-8", newline="") as file:
            return not any(row.get("status") == "completed" and row.get("split") == split
                           for row in csv.DictReader(file))

    def models(self) -> set[str]:
        """The models of the completed runs, as --model_name_or_path gave them; empty where that is not recorded."""
        if not self.runs_csv.exists():
            return set()
        with self.runs_csv.open(encoding="utf-8", newline="") as file:
            done = [row for row in csv.DictReader(file) if row.get("status") == "completed"]
        return {row["model"] for row in done if row.get("model")}

    def merge(self) -> int:
        """Rebuild runs.csv, _valid.csv and _test.csv from the parts; return the number of runs.

        Raises:
            InputError: there are no runs, or a part does not have the columns of this version.
        """
        if not (self.folder / "runs").is_dir():
            raise InputError(f"{self.folder}: no runs there")
        with locked(self.folder / ".lock"):
            parts, header = [], ",".join(COLUMNS) + "\n"
            for path in sorted((self.folder / "runs").glob("*.csv")):
                text = path.read_text(encoding="utf-8")
                if not text.startswith(header):
                    raise InputError(f"{path}, line 1: expected the columns {header.strip()}")
                parts.append(text[len(header):])
            write_whole(self.runs_csv, header + "".join(parts))
            for split in SPLITS:
                table = _summary(csv.DictReader(io.StringIO(header + "".join(parts))), split)
                if table:
                    write_whole(self.summary_csv(split), table)
                else:
                    self.summary_csv(split).unlink(missing_ok=True)
        return len(parts)


def _summary(rows: Iterable[Mapping[str, str]], split: str) -> str:
    """Means and standard deviations over runs, as CSV text; empty where `split` has no completed rows.

    Runs of different settings or templates under one name stay in rows of their own; a seed counts once. The standard
    deviation is that of a sample (n - 1), and empty for a single run and where a run gave NaN or infinity.
    """
    values = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["split"] == split and row["status"] == "completed":
            key = row["item"], row["trained_on"], row["config_hash"], row["template_hash"]
            values[key][row["metric"]][row["seed"]] = float(row["value"])
    if not values:
        return ""
    metrics = sorted({metric for group in values.values() for metric in group})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Task", "Trained on", *(f"eval_{m}{suffix}" for m in metrics for suffix in ("", "_std")),
                     "runs", "config_hash"])
    for (item, trained_on, config_hash, _), group in sorted(values.items(), key=lambda entry: (
            natural_order(entry[0][1]), natural_order(entry[0][0]), entry[0][2:])):
        numbers = []
        for metric in metrics:
            seen = list(group.get(metric, {}).values())
            numbers += [round(statistics.fmean(seen), 6) if seen else "",
                        round(statistics.stdev(seen), 6) if len(seen) > 1 and all(map(math.isfinite, seen)) else ""]
        writer.writerow([item, trained_on, *numbers, max(map(len, group.values())), config_hash])
    return text.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m src.results", allow_abbrev=False,
                                     description="Rebuild the CSV files of a save_name from the parts of its runs.")
    parser.add_argument("command", choices=["merge"])
    parser.add_argument("save_name", help="name of the folder under --results_dir")
    parser.add_argument("--results_dir", default="results", help="folder of all results (default: results)")
    args = parser.parse_args(arguments)
    results = Results(args.results_dir, args.save_name)
    print(f"{results.runs_csv}: {results.merge()} runs")
    return 0


if __name__ == "__main__":
    run_as_script(main)
