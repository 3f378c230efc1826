"""The ledger of a sweep: a folder of small text files that says which subset is claimed, done or failed.

    sampled_tasks/<task_set_name>.txt    the completed subsets, one a line: derived from done/
    sampled_tasks/<task_set_name>/
        mode           how subsets are claimed: flock or heartbeat
        wanted         the newest command's line, and the subsets it wants, one a line
        plan/0001      subsets drawn so far, one a line; each further draw is one more file
        claims/<key>   who trains the subset now (flock), or claims/<key>.<n>, the n-th claim (heartbeat)
        done/<key>     the subset, its settings in words, its log: the truth about what is completed
        failed/<key>   the subset, its settings, how often it is tried again; the attempts, each with reason and log
        logs/          what the children print

Any number of processes may work on one folder. Two rules make that safe on local and network file systems: a file is
published by a hard link, so that the first writer wins; and a subset is trained only by the holder of its claim
(src/claims.py). By heartbeat, a holder that was stopped for longer than a claim stays fresh may train a subset twice
but never commits it twice: `done/<key>` is first wins, too.
"""

import contextlib
import fcntl
import json
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from src.claims import Claim, FlockClaim, HeartbeatClaim, now, owner, publish, server_time
from src.cli import InputError
from src.files import NOT_SUPPORTED, read_text, remove_stale, write_whole

MODES = ("flock", "heartbeat")
TEXT_SHARE = 0.01  # of the time that commits may take for <task_set_name>.txt: it grows, and is written as a whole


class Ledger:
    """One task set's folder. Raises OSError where the disk is full or gone; nothing is half-recorded then."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.text_file = self.folder.with_name(self.folder.name + ".txt")
        self.mode = _read_mode(self.folder / "mode") if (self.folder / "mode").exists() else "flock"
        self._done: dict[str, dict] = {}
        self._text_due, self._text_lacks = 0.0, False

    @property
    def kind(self) -> type[FlockClaim] | type[HeartbeatClaim]:
        return FlockClaim if self.mode == "flock" else HeartbeatClaim

    @classmethod
    def open(cls, folder: Path, mode: str | None = None) -> "Ledger":
        """Make or join the folder; without `mode`, as the folder says. Raises InputError where they differ."""
        ledger = cls(folder)
        if ledger.text_file.exists() and not ledger.folder.exists():
            raise InputError(f"{ledger.text_file}: written by something else (there is no folder {ledger.folder}); "
                             "move it away, or choose another --task_set_name")
        try:
            for name in ("plan", "claims", "done", "failed", "logs"):
                (ledger.folder / name).mkdir(parents=True, exist_ok=True)
                remove_stale(ledger.folder / name)
            if (mode or ledger.mode) == "flock":
                _try_flock(ledger.folder)
            publish(ledger.folder / "mode", (mode or ledger.mode) + "\n")
            server_time(ledger.folder)  # a write, also where the folder was there
        except OSError as error:
            raise InputError(f"{ledger.folder}: cannot write there: {error.strerror}; "
                             "choose another --task_set_name, or free the folder") from error
        ledger.mode = _read_mode(ledger.folder / "mode")
        if mode not in (None, ledger.mode):
            raise InputError(f"--ledger {mode}: {ledger.folder} is in use with --ledger {ledger.mode}; all its sweeps "
                             f"must claim the same way. To change: end them, then delete {ledger.folder / 'mode'}")
        return ledger

    def drawn(self) -> tuple[list[str], int]:
        """Lines of the subsets drawn so far, and in how many draws. Raises InputError where a draw is missing."""
        folder = self.folder / "plan"
        draws = _names(folder)
        for number, name in enumerate(draws, 1):
            if name != _draw(number):
                raise InputError(f"{folder}: holds {name}, but no {_draw(number)}; put that back, or delete the whole "
                                 "folder to draw anew (what is trained counts all the same)")
        return [line for name in draws for line in read_text(folder / name).splitlines()
                if not line.startswith("#")], len(draws)

    def add_draw(self, draws: int, lines: list[str], comment: str) -> bool:
        """Add lines after the given number of draws; False where another process was first: read again."""
        text = "".join(f"{line}\n" for line in [f"# {comment}", *lines])
        return publish(self.folder / "plan" / _draw(draws + 1), text)

    def want(self, command: str, lines: list[str]) -> None:
        """Note what a command that begins wants, for people and pages: nothing of the sweep reads it."""
        write_whole(self.folder / "wanted", "".join(f"{line}\n" for line in [f"# {command}", *lines]))

    def wanted(self) -> tuple[str, list[str]]:
        """The newest command and the lines of the subsets it wants; empty where none was noted."""
        try:
            command, *lines = (self.folder / "wanted").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return "", []
        return command.removeprefix("# "), lines

    def claim(self, key: str, words: str) -> Claim | None:
        """Claim a subset; None where it is done or somebody else's."""
        claim = self.kind.make(self.folder / "claims" / key, f"{words}\nclaimed by {owner()} at {now()}\n")
        if claim and self.is_done(key):  # it was committed between the look and the claim
            claim.release()
            return None
        return claim

    def is_claimed(self, key: str) -> bool:
        return self.kind.exists(self.folder / "claims" / key)

    def running(self) -> set[str]:
        """The subsets that are claimed and not done, as lines."""
        claims = {name.partition(".")[0]: self.folder / "claims" / name for name in _names(self.folder / "claims")}
        return {subset for key, path in claims.items() if not self.is_done(key) and self.is_claimed(key)
                for subset in _claimed(path)}

    def is_done(self, key: str) -> bool:
        return (self.folder / "done" / key).exists()

    def done(self) -> dict[str, dict]:
        """Records of all completed subsets by key, in the order of completion. Reads only what is new."""
        new = _read_records(self.folder / "done", self._done, "subset", "completed")
        self._done.update(sorted(new.items(), key=lambda entry: entry[1]["completed"]))
        return self._done

    def undo(self, key: str) -> None:
        """Forget that a subset is completed: its rows are gone."""
        (self.folder / "done" / key).unlink(missing_ok=True)
        self._done.pop(key, None)

    def commit(self, key: str, record: dict) -> bool:
        """Record a subset as completed; False where it already was, and nothing changes. Its line in the text file
        comes with `write_text_when_due`, to be called now and then, or `write_text_file`."""
        record = {**record, "completed": now(), "by": owner()}
        first = publish(self.folder / "done" / key, json.dumps(record, indent=1) + "\n")
        self._text_lacks = True
        self.write_text_when_due()
        return first

    def write_text_when_due(self) -> None:
        """Write the text file where a commit came after it was written, unless that has just taken its time."""
        if self._text_lacks and time.monotonic() >= self._text_due:
            self.write_text_file()

    def write_text_file(self) -> None:
        """Derive <task_set_name>.txt. Whoever renames last has looked after it, so no process loses another's line."""
        began, written, self._text_lacks = time.monotonic(), None, False
        while (number := len(self.done())) != written:
            lines = dict.fromkeys(record["subset"] for record in self._done.values())
            write_whole(self.text_file, "".join(f"{line}\n" for line in lines), sync_name=True)
            written = number
        self._text_due = time.monotonic() + (time.monotonic() - began) / TEXT_SHARE

    def attempts(self, key: str) -> list[dict]:
        """Failed attempts so far, each with reason, log and time."""
        try:
            return _read_record(self.folder / "failed" / key, "attempts")["attempts"]
        except FileNotFoundError:
            return []

    def failures(self) -> dict[str, dict]:
        """The records of subsets that were given up: more attempts failed than `retries`; also where done by now."""
        found = _read_records(self.folder / "failed", (), "subset", "attempts")
        return {key: each for key, each in found.items() if len(each["attempts"]) > each.get("retries", 0)}

    def fail(self, key: str, record: dict, reason: str, log: str) -> int:
        """Record a failed attempt; only the holder of the claim may. Returns the number of attempts.

        record: subset, and beside it settings, and retries, how many failed attempts are not the last (default: 0).
        """
        attempts = self.attempts(key)
        attempts.append({"reason": reason, "log": log, "at": now(), "by": owner()})
        write_whole(self.folder / "failed" / key, json.dumps(record | {"attempts": attempts}, indent=1),
                    sync_name=True)
        return len(attempts)

    def forget_failures(self, key: str) -> None:
        (self.folder / "failed" / key).unlink(missing_ok=True)


def _try_flock(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            raise InputError(f"{folder}: this file system has no locks (flock); claim by --ledger heartbeat") from error


def _read_mode(path: Path) -> str:
    mode = read_text(path).strip()
    if mode not in MODES:
        raise InputError(f"{path}: holds '{mode[:20]}', not {' or '.join(MODES)}; end the sweeps of this task set, "
                         "then delete it")
    return mode


def _draw(number: int) -> str:
    return f"{number:04}"


def _read_record(path: Path, *needed: str) -> dict:
    """A JSON file of the ledger; raise InputError, that says what to do, where it is damaged or a stray."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if missing := set(needed) - record.keys():
            raise ValueError(f"no '{min(missing)}' in it")
        return record
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged, or no file of the sweep's own ({error}); delete it: what is trained is "
                         "found again by its rows") from error


def _read_records(folder: Path, known: Collection[str], *needed: str) -> dict[str, dict]:
    """The records of a folder by name, without the `known` ones; what another sweep deletes meanwhile is none."""
    found = {}
    for name in _names(folder):
        if name not in known:
            with contextlib.suppress(FileNotFoundError):
                found[name] = _read_record(folder / name, *needed)
    return found


def _claimed(path: Path) -> list[str]:
    """The subset that a claim names; none while its words are being written."""
    with contextlib.suppress(OSError, ValueError):
        return [json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8"))[0]["subset"]]
    return []


def _names(folder: Path) -> list[str]:
    """Names of finished files in a folder, sorted; temporary ones start with a dot."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
