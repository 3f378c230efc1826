"""A claim on one piece of work, with and without locks and hard links; of the ledger's: tests/test_ledger.py."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from src import claims
from src.claims import held, owner
from src.cli import InputError

HOLDER = """if True:
    import errno, fcntl, sys, time
    from pathlib import Path
    from src.claims import held
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")
    if sys.argv[2] == "heartbeat":
        fcntl.flock = refuse
    with held(Path(sys.argv[1]), "it is held by"):
        print(flush=True)
        time.sleep(100)
"""


def refuse(number: int):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))
    return call


@pytest.fixture(params=["flock", "heartbeat"])
def kind(request, monkeypatch):
    if request.param == "heartbeat":
        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    return request.param


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_living_process_is_named_and_a_dead_one_is_not_in_the_way(tmp_path, kind, number):
    path = tmp_path / "saved/x.claim"
    for _ in range(2):
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, path, kind], cwd=ROOT, stdout=subprocess.PIPE)
        holder.stdout.readline()
        with pytest.raises(InputError) as refusal, held(path, "it is held by"):
            pass
        assert str(refusal.value) == f"it is held by {owner().rpartition(' ')[0]} {holder.pid}"
        holder.send_signal(number)
        holder.wait()
        holder.stdout.close()
        with held(path, "it is held by"):
            pass


def test_it_ends_with_the_block_and_a_lock_leaves_nothing(tmp_path, kind):
    path = tmp_path / "x.claim"
    for _ in range(3):
        with pytest.raises(KeyError), held(path, "x"):
            with pytest.raises(InputError, match=owner()), held(path, "x"):
                pass
            raise KeyError
    assert {each.name for each in tmp_path.iterdir()} == (
        set() if kind == "flock" else {"x.claim.1", "x.claim.2", "x.claim.3"})


def test_of_another_machine_it_is_stale_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    (tmp_path / "x.claim.1").write_text("elsewhere pid 1")
    with pytest.raises(InputError, match="x elsewhere pid 1"), held(tmp_path / "x.claim", "x"):
        pass
    os.utime(tmp_path / "x.claim.1", (time.time() - 2 * claims.STALE_AFTER,) * 2)
    with held(tmp_path / "x.claim", "x"):
        pass


def test_a_heartbeat_is_renewed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(claims, "RENEW_EVERY", 0.02)
    with held(tmp_path / "x.claim", "x"):
        os.utime(tmp_path / "x.claim.1", (1, 1))
        deadline = time.monotonic() + 5
        while (tmp_path / "x.claim.1").stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.1)
    assert (tmp_path / "x.claim.1").stat().st_mtime == 0  # given up, and nobody renews it


def test_without_locks_and_hard_links_nothing_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(Path, "hardlink_to", refuse(errno.EPERM))
    with held(tmp_path / "x.claim", "x"), held(tmp_path / "x.claim", "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path, monkeypatch):
    """As where its holder ends between the opening and the locking."""
    locked = fcntl.flock

    def after_its_end(fd, how):
        monkeypatch.setattr(fcntl, "flock", locked)
        (tmp_path / "x").unlink()
        locked(fd, how)

    monkeypatch.setattr(fcntl, "flock", after_its_end)
    assert claims.FlockClaim.make(tmp_path / "x", "words") is None
    assert claims.FlockClaim.make(tmp_path / "x", "words") is not None
