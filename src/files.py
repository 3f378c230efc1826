"""Files and folders: written whole, locked, checked before anything is written."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from src.cli import InputError

TOKEN = 16  # signs that end the name of a temporary file
STALE = 24 * 3600  # seconds: no file is being written for so long
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)  # by a file system: locks, hard links


def check_writable(what: str, place: Path) -> None:
    """Raise InputError, beginning with `what`, where a folder at `place` could not be written. Creates nothing."""
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{what}: {place} is not a folder that may be written")


def spelled_alike(place: Path) -> str:
    """`place` by one spelling: from the current folder where it lies in there, else from the root."""
    here = Path.cwd()
    for found in (here / place, place.resolve()):  # a link in here keeps its name
        if found.is_relative_to(here) and ".." not in found.parts:
            return str(found.relative_to(here))
    return str(found)


def decode(data: bytes, where: str, line: int = 1) -> str:
    """`data` as text, UTF-8 with or without a byte order mark; InputError with `where` and the line of what is not.

    line: number of the first line of `data`.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(f"{where}, line {line}: not UTF-8: byte 0x{data[error.start]:02x} cannot be read; save "
                         "the file as UTF-8") from error


def read_bytes(path: Path, what: str = "") -> bytes:
    """All of a file; InputError, beginning with `what` (or else the path), where it cannot be read."""
    what = what or f"{path}: cannot be read"
    try:
        if path.exists() and not path.is_file() and path.parts[:2] != ("/", "dev"):  # a pipe would be waited for
            raise InputError(f"{what}: not a file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path, what: str = "") -> str:
    """All of a text file, UTF-8 with or without a byte order mark; InputError as of `read_bytes` and `decode`."""
    return decode(read_bytes(path, what), str(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds; InputError, naming it, where it cannot be read or is none."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not whole, or no JSON: {error}") from error


def stamp(status: os.stat_result) -> list[int]:
    """What tells, without reading it, whether a file was changed or replaced: size, time in ns, number."""
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def with_file(arguments: Sequence[str]) -> list[str]:
    """A command line whose first word is a JSON file of flags, `{"max_steps": 500, ...}`, with these in its place.

    null leaves a flag at its default. Flags behind the file go before those in it.
    """
    if not (arguments and arguments[0].endswith(".json")):
        return list(arguments)
    path, words = Path(arguments[0]), []
    text = read_text(path)
    try:
        flags = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON file of flags: {error}") from error
    if not isinstance(flags, dict):
        raise InputError(f'{path}: no mapping of flags, such as {{"max_steps": 500}}')
    for name, value in flags.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    for word in words:  # as no command line can hold it
        if "\0" in word or word != word.encode(errors="ignore").decode():
            raise InputError(f"{path}: {word!r} holds a NUL or half of a character")
    return words + list(arguments[1:])


def write_whole(path: Path, text: str, sync_name: bool = False) -> list[int]:
    """Write `path` so that it is either old or new, never half, also after a crash; return its stamp.

    With `sync_name`, its name survives a power failure, too.
    """
    with whole_temporary(path, text) as temporary:
        written = stamp(temporary.stat())
        temporary.replace(path)
    if sync_name:
        sync(path.parent)
    return written


@contextlib.contextmanager
def whole_temporary(path: Path, text: str) -> Iterator[Path]:
    """Write a hidden file beside `path`, synced, for a rename or a link; in the end that name is gone."""
    with temporary_beside(path) as temporary:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A name for a hidden file beside `path`, which nobody can foresee; in the end that name is gone."""
    # random: a name used again after a crash could still be a link to a published file
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN // 2)}")
    try:
        yield temporary
    except OSError as error:
        if error.errno:
            error.filename = str(path)  # a write that fails does not say where, an open names the temporary file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that a killed process has left in `folder` long ago."""
    for path in folder.glob(f".*.{'[0-9a-f]' * TOKEN}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, survive a power failure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, so that processes that need the same file do not both write it.

    Without effect on a file system that has no locks: all is written whole, so that work is done twice, nothing else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)  # to be read only: it may be another user's
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        yield
    finally:
        os.close(fd)
