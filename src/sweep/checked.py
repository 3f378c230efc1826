"""What a training says of the sweep's flags before anything is trained: the training script is the judge.

It is asked once, by `--check True` on all items together; the answer is kept in `sampled_tasks/<set>/checked/` for as
long as flags, source, task files and local rows and models are the same.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.cli import InputError, did_you_mean
from src.files import stamp, write_whole
from src.identity import ANSWER, short_hash

NEEDED = {"settings", "content", "splits", "metrics"}  # of an answer
SOURCE = Path(__file__).resolve().parents[1]


def ask(command: Sequence[str], environment: Mapping[str, str], places: Sequence[Path], folder: Path,
        known: Sequence[str]) -> tuple[dict, Path]:
    """What names a training by `command` and its items.

    Args:
        command: of the training script, without --check and without names of its own.
        environment: of the children.
        places: files and folders whose content the answer depends on.
        folder: of the task set, in which the answer may be kept.
        known: the sweep's own flags, for a hint where one was mistyped.

    Returns:
        The answer: settings (those that count), config_hash, content (a hash of each item), metrics (names, of each
        item); and the file to `keep` it in.

    Raises:
        InputError: the training would refuse its flags; in its words.
    """
    stamps = [[str(path), *stamp(path.stat())] for path in _files([SOURCE, *places])]
    kept = folder / "checked" / f"{short_hash([list(command[1:]), stamps], 16)}.json"
    try:
        answer = json.loads(kept.read_text(encoding="utf-8"))
        if answer.keys() >= NEEDED:
            return answer, kept
    except (OSError, ValueError, AttributeError, RecursionError):  # not asked yet, or the file is damaged
        pass
    run = subprocess.run([*command, "--check", "True"], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                         text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith(ANSWER)]
    if run.returncode or not lines:
        raise InputError(_reason(run, known))
    return json.loads(lines[-1].removeprefix(ANSWER)), kept


def keep(answer: dict, path: Path) -> None:
    """Spare later sweeps of the task set the asking, once the folder of the task set is there."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(answer, indent=1) + "\n")


def _files(places: Sequence[Path]) -> list[Path]:
    """The files that are the places or lie in them, those of Python's cache aside."""
    found = []
    for place in places:
        if place.is_file():
            found.append(place)
        for folder, inner, names in os.walk(place):
            inner[:] = [name for name in inner if name != "__pycache__"]
            found += [Path(folder, name) for name in names]
    return sorted(found)


def _reason(run: subprocess.CompletedProcess, known: Sequence[str]) -> str:
    """Why the training refuses, in its own words; a mistyped flag may be meant for the sweep."""
    said = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    if run.returncode != 2 or not said:
        tail = "\n".join((run.stdout + run.stderr).strip().splitlines()[-12:])
        return f"checking the training's flags ended with exit code {run.returncode}: {shlex.join(run.args)}\n{tail}"
    message = said[-1].removeprefix("error: ")
    _, unknown, rest = message.partition("unknown argument '")
    hint = did_you_mean(rest.partition("'")[0], known, shown=0) if unknown else ""
    return f"{message.removesuffix(' (see --help)')}{'; of the sweep: ' + hint if hint else ''}"
