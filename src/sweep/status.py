"""What a sweep says: the announcement, the dry run, the status, the progress bar, the report at its end."""

import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from src.cli import InputError
from src.cost import ahead, finished
from src.subsets import Subset, coverage
from src.sweep.agenda import Agenda
from src.sweep.ledger import Ledger


def announce(agenda: Agenda, ledger: Ledger, subsets: list[Subset], at_once: int = 1) -> list[Subset]:
    """Say before the start what is wanted, possible, covered, done already and to come, and under which settings.

    Returns:
        those that the ledger takes for done, though not all of their rows are there.
    """
    count, asked = len(subsets), agenda.args.num_samples or 0
    if agenda.fixed is None:
        possible = agenda.space.possible()
        print(f"{count} subsets wanted, {possible} possible" + (
            f" (--num_samples {asked} is more: all of them are trained)" if asked > possible else ""))
    else:
        print(f"{count} subsets given")
    print(coverage(agenda.space, subsets))
    done = ledger.done()
    here = {members for members in subsets if agenda.is_done(ledger, members)}
    if here:
        print(f"{len(here)} of {count} are done already" + (": nothing is left to do" if len(here) == count else ""))
    if len(here) < count:
        print(f"to come: {to_come(agenda, [each for each in subsets if each not in here], at_once)}")
    keys = {agenda.key(members): members for members in subsets}
    lost = [members for key, members in keys.items() if key in done and members not in here]
    if lost:
        print(f"{len(lost)} of {count} were done, but their rows are gone, or are not all that is asked for now: they "
              "are evaluated where a checkpoint was kept, else trained again")
    words = {" ".join(members) for key, members in keys.items() if key not in done}
    other = [record for record in done.values() if record["subset"] in words]
    if other:
        before, settings = dict(other[-1].get("settings", {})), agenda.settings
        scored = before.pop("held_out", [])
        changed = [f"{name} was {before.get(name, 'not given')}, is {settings.get(name, 'not given')}"
                   for name in sorted(before.keys() | settings.keys())
                   if before.get(name) != settings.get(name)]
        number = len({record["subset"] for record in other})
        if not changed and scored != agenda.held_out(tuple(other[-1]["subset"].split())):
            print(f"{number} of them are not scored on all held-out items yet: evaluated where --keep_checkpoints kept "
                  "their checkpoints, else trained again")
            return lost
        print(f"{number} of them were trained under other settings and are trained again "
              f"({'; '.join(changed) or 'their tasks or rows were changed'}); in the CSV files runs of different "
              "config_hash stay apart")
    return lost


def to_come(agenda: Agenda, subsets: list[Subset], at_once: int) -> str:
    """What the training of `subsets` will take, so many at a time, at the rate of those finished."""
    settings, tokens = agenda.answer["settings"], agenda.answer.get("tokens", {})
    rows = settings.get("per_device_train_batch_size", 0) * settings.get("gradient_accumulation_steps", 1)
    items = [tokens.get(item, 0) for members in subsets for item in members]
    return ahead(finished(agenda.results.runs_csv), len(subsets), agenda.args.runs,
                 max(int(settings.get("max_steps", 0)), 0), rows * sum(items) / len(items), at_once)


def print_dry_run(agenda: Agenda, ledger: Ledger, at_once: int) -> None:
    subsets = agenda.subsets(ledger, write=False)
    announce(agenda, ledger, subsets, at_once)
    for number, members in enumerate(subsets, 1):
        print(f"\n[{number}] {' '.join(members)}: {_state(agenda, ledger, members)}")
        print(shlex.join(agenda.command(members)))


def print_status(agenda: Agenda, ledger: Ledger) -> None:
    """Print the state of each subset, failures with their last reason and log."""
    states = {members: _state(agenda, ledger, members) for members in agenda.subsets(ledger, write=False)}
    for members, state in states.items():
        last = ledger.attempts(agenda.key(members))[-1:] if state != "done" else []
        print(f"{state:8} {' '.join(members)}" + "".join(f"  ({a['reason']}, see {a['log']})" for a in last))
    count = Counter(states.values())
    print(", ".join(f"{count[state]} {state}" for state in ("done", "running", "failed", "left")))
    print(coverage(agenda.space, [members for members, state in states.items() if state == "done"]))


def _state(agenda: Agenda, ledger: Ledger, members: Subset) -> str:
    key = agenda.key(members)
    if agenda.is_done(ledger, members):
        return "done"
    if ledger.is_claimed(key):
        return "running"
    return "failed" if len(ledger.attempts(key)) > agenda.args.retries else "left"


@dataclass
class Tally:
    """How far a sweep is, as one scheduler knows, and what has ended it early."""

    total: int
    done: int = 0
    trained: int = 0  # by this scheduler; the rest of `done` by others, or before
    failed: list[Subset] = field(default_factory=list)
    interrupted: int | None = None  # by which signal
    refused: str | None = None  # message of a child that was given bad flags
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        return self.total - self.done - len(self.failed)

    @property
    def is_ending(self) -> bool:
        return bool(self.interrupted or self.refused)

    def __str__(self) -> str:
        return f"{self.done} done, {len(self.failed)} failed, {self.left} left"


class Progress:
    """A bar with counts, rate and time left on a terminal; elsewhere a line for each subset."""

    def __init__(self, tally: Tally):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.tally = tally
        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        # no thread of its own: children are forked from this process
        self.bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self.console, auto_refresh=False)
        self.task = self.bar.add_task("", total=tally.total)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.bar.start()
            self.update()
        return self

    def __exit__(self, *_) -> None:
        if self.console.is_terminal:
            self.update()
            self.bar.stop()

    def _text(self) -> str:
        if not self.tally.trained:
            return str(self.tally)
        rate = self.tally.trained / (time.monotonic() - self.tally.began)
        minutes, seconds = divmod(round(self.tally.left / rate), 60)
        return f"{self.tally}, {rate * 60:.1f} a minute, {minutes // 60}:{minutes % 60:02}:{seconds:02} to go"

    def say(self, line: str) -> None:
        if self.console.is_terminal:
            self.console.print(line)
        else:
            print(f"{line}  [{self._text()}]", flush=True)

    def update(self) -> None:
        if self.console.is_terminal:
            self.bar.update(self.task, completed=self.tally.total - self.tally.left, description=self._text(),
                            refresh=True)


def report(agenda: Agenda, ledger: Ledger, tally: Tally) -> int:
    """Say how the sweep has ended; return 0, 1 where subsets failed, 128 + n after signal n.

    Raises InputError where a child was given bad flags.
    """
    print(f"{tally}; subsets: {ledger.text_file}, results: {agenda.results.folder}/")
    if tally.refused:
        raise InputError(f"a child refused its command line, so the sweep was stopped\n{tally.refused}")
    for members in tally.failed:
        for last in ledger.attempts(agenda.key(members))[-1:]:  # none where another sweep tries it again meanwhile
            print(f"failed: {' '.join(members)}: {last['reason']}, see {last['log']}", file=sys.stderr)
    if tally.interrupted:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + tally.interrupted
    if tally.failed:
        print("--retry_failed tries them again", file=sys.stderr)
    return 1 if tally.failed else 0
