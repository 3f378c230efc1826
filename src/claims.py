"""Claims: which of several processes may do a piece of work, also after a crash.

A file is written whole under a temporary name, synced, and gets its real name by a hard link, so that the first writer
wins and nobody reads half a file.

flock: a claim is a lock on the claim file. A child process inherits it, so the claim lasts as long as any of the two
lives, and the kernel ends it. Only between processes of one host.
heartbeat: a claim is a hard link that its holder touches every 30 s; untouched for 10 minutes by the clock of the file
server, it is stale and the next claim may be made.
"""

import contextlib
import datetime
import fcntl
import itertools
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from src.cli import InputError
from src.files import NOT_SUPPORTED, sync, whole_temporary

RENEW_EVERY = 30.0  # seconds
STALE_AFTER = 600.0  # seconds


def owner() -> str:
    """This process, in words and unique among the living."""
    return f"{socket.gethostname()} pid {os.getpid()}"


def now() -> str:
    return datetime.datetime.now().isoformat(" ", "milliseconds")


def server_time(folder: Path) -> float:
    """Now, by the clock that stamps the files of `folder`."""
    clock = folder / f".clock.{secrets.token_hex(8)}"
    clock.touch()
    now = clock.stat().st_mtime
    clock.unlink()
    return now


class Claim:
    """The right to do a piece of work, until `release`. By itself it keeps nobody away."""

    fd: int | None = None  # to be inherited by the child, where the claim lives in a descriptor

    def renew(self) -> bool:
        """Call at least every RENEW_EVERY seconds; False: the claim was lost, stop the child."""
        return True

    def release(self) -> None:
        """Give it up."""


class FlockClaim(Claim):
    """A lock on the file `path`. One that was removed counts no more: else two processes could lock two of one name."""

    def __init__(self, fd: int):
        self.fd = fd

    @classmethod
    def make(cls, path: Path, words: str) -> "FlockClaim | None":
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(fd).st_nlink:
                raise BlockingIOError
            os.truncate(fd, 0)
            os.write(fd, words.encode())
        except OSError as error:
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                raise
            return None
        return cls(fd)

    @staticmethod
    def exists(path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)  # also for whoever still holds a copy of the descriptor
        os.close(self.fd)


class HeartbeatClaim(Claim):
    """The newest of `<path>.1`, `.2`, ...: fresh by its time stamp. Given up, its time is set to 0.

    A stale claim is never removed, only superseded by the next number, so two processes cannot both take it over.
    """

    def __init__(self, path: Path, number: int):
        self.path, self.following = _numbered(path, number), _numbered(path, number + 1)
        self.renewed = time.monotonic()

    @classmethod
    def make(cls, path: Path, words: str) -> "HeartbeatClaim | None":
        number, age = _newest(path)
        claim = cls(path, number + 1)
        if age < 0:  # the clock was set back: from now on the claim ages, unless its holder lives
            os.utime(_numbered(path, number))
        return claim if age >= STALE_AFTER and publish(claim.path, words) else None

    @staticmethod
    def exists(path: Path) -> bool:
        return _newest(path)[1] < STALE_AFTER

    def renew(self) -> bool:
        if time.monotonic() - self.renewed >= RENEW_EVERY:
            self.renewed = time.monotonic()
            with contextlib.suppress(FileNotFoundError):  # somebody has deleted it
                os.utime(self.path)  # by the server's clock
                return not self.following.exists()
            return False
        return True

    def release(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path, (0, 0))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _newest(path: Path) -> tuple[int, float]:
    """Number of the newest claim by heartbeat, 0 where there is none, and its age in seconds."""
    number = next(n for n in itertools.count() if not _numbered(path, n + 1).exists())
    if not number:
        return 0, math.inf
    now = time.time()
    with contextlib.suppress(OSError):  # who may only read the folder is told by the clock here
        now = server_time(path.parent)
    return number, now - _numbered(path, number).stat().st_mtime


def publish(path: Path, text: str) -> bool:
    """Write a file that is not there yet, whole; False where it is there: the first wins."""
    if path.exists():
        return False
    with whole_temporary(path, text) as temporary:
        try:
            path.hardlink_to(temporary)
            won = True
        except FileExistsError:  # on NFS also when the link was made but the answer got lost
            won = temporary.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            sets = path.parent.parent if path.parent.name in ("plan", "claims", "done") else path.parent
            raise InputError(f"{sets}: this file system has no hard links, by which sweeps claim; have "
                             f"{sets.parent}/ on another one (it may be a symbolic link)") from error
    sync(path.parent)
    return won


def _holder(path: Path) -> str:
    """The words of the newest claim on `path`, empty where there are none yet."""
    for file in (path, _numbered(path, _newest(path)[0])):
        with contextlib.suppress(OSError, ValueError):
            if words := file.read_text(encoding="utf-8"):
                return words
    return ""


def _has_died(holder: str) -> bool:
    """Whether `holder`, as of `owner`, was a process of this machine that has ended."""
    host, _, pid = holder.partition(" pid ")
    if host == socket.gethostname() and pid.isdigit():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it lives, and is another user's
            pass
    return False


def _take(path: Path) -> Claim | None:
    """A lock, or a heartbeat where there are none, or nothing at all without hard links; None: it is another's."""
    try:
        return FlockClaim.make(path, owner())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    if _has_died(_holder(path)):
        os.utime(_numbered(path, _newest(path)[0]), (0, 0))
    try:
        return HeartbeatClaim.make(path, owner())
    except InputError:
        return Claim()


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the claim `path` meanwhile; raise InputError, beginning with `what`, where a living process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if (claim := _take(path)) is None:
        raise InputError(f"{what} {_holder(path) or 'another process'}")
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_EVERY):
            claim.renew()

    if isinstance(claim, HeartbeatClaim):
        threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)
        claim.release()
