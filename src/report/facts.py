"""What is known of a name, read from its files; what is not there, or cannot be read, is None and said in `notes`."""

import csv
import io
import json
import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from src.cli import InputError, results_flags, warn
from src.cost import Cost, finished
from src.files import read_text
from src.identity import settings_that_count
from src.names import natural_order
from src.results import Results
from src.scores import file_hash, oriented, read_scores, results_file
from src.sweep.ledger import Ledger
from src.sweep.run import SETS
from src.sweep.scheduler import LOG_TAIL
from src.tasks.catalogue import main_metrics

FINDINGS = {"plan": "src.plan", "clusters": "src.cluster"}  # <name>.json -> who writes it


@dataclass
class Curve:
    """One item's scores of its metric while a subset was trained; values as they are, at steps."""

    trained_on: str
    seed: int
    steps: list[float]
    values: list[float]


@dataclass
class Facts:
    """All that the page shows. findings: plan.json, clusters.json, ... as they are; stale: those of older results.

    runs: rows of runs.csv, one of each run; records: how many run records of each status; first: the record of a
    completed run, or of an import; curves: by item; sweep: its counts and failures.
    """

    name: str
    folder: Path
    runs: list[dict[str, str]]
    items: list[str]
    cost: Cost
    findings: dict[str, dict]
    stale: list[str]
    metrics: dict[str, str] = field(default_factory=dict)
    records: Counter = field(default_factory=Counter)
    first: dict | None = None
    commits: Counter = field(default_factory=Counter)
    devices: Counter = field(default_factory=Counter)
    failed: list[dict] = field(default_factory=list)
    curves: dict[str, list[Curve]] = field(default_factory=lambda: defaultdict(list))
    sweep: dict | None = None
    notes: list[str] = field(default_factory=list)
    now: datetime = field(default_factory=datetime.now)

    @property
    def flags(self) -> str:
        """Of commands for the same results."""
        return results_flags(self.name, str(self.folder.parent))

    def only(self, column: str) -> list[str]:
        """The different values of a column of the runs, in order."""
        return sorted({row[column] for row in self.runs if row[column]})


def gather(args) -> Facts:
    """By the flags of the command. Raises InputError where there are no results."""
    folder = Path(args.results_dir) / args.save_name
    if (folder / "runs").is_dir():
        Results(args.results_dir, args.save_name).merge()
    runs, items = read_runs(results_file(folder))
    facts = Facts(args.save_name, folder, runs, items, finished(folder / "runs.csv"), *read_findings(folder))
    facts.metrics = metrics_of(facts, args)
    read_records(facts)
    facts.sweep = read_sweep(SETS / (args.task_set_name or args.save_name))
    return facts


def read_runs(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """A row of each run of a runs.csv, and all items."""
    runs, items = {}, {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(path), newline="")):
            runs[row["run_id"], row["trained_on"]] = row
            items[row["item"]] = True
    except (KeyError, csv.Error) as error:
        raise InputError(f"{path}: no table of runs as results/README.md shows it ({error})") from error
    return list(runs.values()), sorted(items, key=natural_order)


def read_findings(folder: Path) -> tuple[dict[str, dict], list[str]]:
    """The files of FINDINGS that are there, and the names of those that were found in other results than there are."""
    found, current = {}, file_hash(folder / "runs.csv")
    for name in FINDINGS:
        path = folder / f"{name}.json"
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            warn(f"{path}: left out, {error}; python -m {FINDINGS[name]} writes it anew")
    return found, [name for name, each in found.items() if each.get("results_sha256") != current]


def metrics_of(facts: Facts, args) -> dict[str, str]:
    """The metric of each item: of --metric, of the clusters, or else its own main one."""
    if args.metric is None and "clusters" in facts.findings:
        return facts.findings["clusters"]["metrics"]
    split = "valid" if any(row["split"] == "valid" for row in facts.runs) else "test"
    try:
        scores = oriented(read_scores(facts.folder, split), args.metric, partial(main_metrics, task_dir=args.task_dir))
    except InputError as error:
        if args.metric is not None:
            raise
        facts.notes.append(f"Learning curves, as no metric could be chosen: {error}.")
        return {}
    return dict(zip(scores["item"], scores["metric"], strict=True))


# ---- run records ----------------------------------------------------------------------------------------------------


def read_records(facts: Facts) -> None:
    """What the records of runs tell: what came of them, where, by which commit, how the scores grew."""
    for path in sorted((facts.folder / "runs").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            facts.records[record["status"]] += 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"{path}: left out, {error!r}")
            continue
        if record["status"] == "failed":
            log = path.with_suffix(".log")
            facts.failed.append({"subset": record.get("trained_on", ""), "reason": record.get("error", ""),
                                 "log": str(log), "tail": tail(log)})
        if record["status"] in ("completed", "imported"):
            facts.first = facts.first or record
        if record.get("commit"):
            facts.commits[record["commit"][:12] + (" with changes" if record.get("dirty") else "")] += 1
        facts.devices[record.get("device", "")] += 1
        for item in record.get("trained_on", "").split():
            curve = read_curve(record, item, facts.metrics.get(item, ""))
            if curve is not None:
                facts.curves[item].append(curve)


def read_curve(record: dict, item: str, metric: str) -> Curve | None:
    """How the item's score grew in a run; None where it was not evaluated twice meanwhile."""
    points = []
    for row in (record.get("training") or {}).get("log") or []:
        if "train_runtime" in row:  # what follows is the best model's evaluation
            break
        if (value := row.get(f"eval_{item}_{metric}")) is not None:
            points.append((row["step"], value))
    return Curve(record["trained_on"], record["seed"], *map(list, zip(*points, strict=True))) if len(
        points) > 1 else None


def tail(path: Path) -> list[str]:
    """The last lines of a log, without colours."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    except OSError:
        return []


def settings(record: dict) -> dict:
    """Of a run's arguments those that count and are set."""
    try:
        found = settings_that_count(record["arguments"])
    except KeyError:  # of an older version, or imported
        found = record.get("arguments", {})
    return dict(sorted(_set(found).items()))


def _set(values: dict) -> dict:
    """What is set of values, and of values in values."""
    found = {name: _set(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in found.items() if value not in (None, False, "", [], {})}


def in_lines(words: list[str], wide: int = 96) -> str:
    """A command in lines that a shell takes as one."""
    lines = [""]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > wide:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


# ---- the sweep ------------------------------------------------------------------------------------------------------


def read_sweep(folder: Path) -> dict | None:
    """How far a sweep is, by its ledger: counts; its command; failures with their last lines. None without one."""
    if not folder.is_dir():
        return None
    ledger = Ledger(folder)
    done = {record["subset"] for record in ledger.done().values()}
    failures = {key: each for key, each in ledger.failures().items() if not ledger.is_done(key)}
    failed = {each["subset"] for each in failures.values()} - done
    running = ledger.running()
    command, wanted = ledger.wanted()
    left = set(wanted) - done - failed - running
    return {"done": len(done), "failed": len(failed), "running": len(running), "left": len(left), "command": command,
            "to_come": len(left | running), "failures": [
        {"subset": each["subset"], "reason": last["reason"], "log": last["log"], "tail": tail(Path(last["log"])),
         "attempts": len(each["attempts"])} for each in failures.values() for last in each["attempts"][-1:]]}


def commands(facts: Facts) -> list[str]:
    """What was typed, as far as it is recorded, in order."""
    found = []
    if facts.sweep and facts.sweep["command"]:
        found.append(shlex.split(facts.sweep["command"]))
    elif facts.first and facts.first.get("command"):
        words = [str(word) for word in facts.first["command"]]
        found.append(words if words[0] == "python" else ["python", *words])
    found += [facts.findings[name]["command"] for name in ("clusters", "plan")
              if facts.findings.get(name, {}).get("command")]
    return [in_lines(words) for words in (*found, ["python", "-m", "src.report", *shlex.split(facts.flags)])]
