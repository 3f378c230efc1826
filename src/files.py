"""Files and folders: written whole, locked, checked before anything is written."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from src.cli import InputError


def check_writable(what: str, place: Path) -> None:
    """Raise InputError, beginning with `what`, where a folder at `place` could not be written. Creates nothing."""
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{what}: {place} is not a folder that may be written")


def write_whole(path: Path, text: str) -> None:
    """Write `path` so that it is either old or new, never half, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, so that processes that need the same file do not both write it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
