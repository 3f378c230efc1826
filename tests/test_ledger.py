"""The ledger: first wins, claims end with their holders, nothing is half-written."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src import claims
from src.cli import InputError
from src.files import write_whole
from src.sweep.ledger import Ledger


@pytest.fixture(params=["flock", "heartbeat"])
def ledger(request, tmp_path):
    return Ledger.open(tmp_path / "sets" / "x", request.param)


def other_view(ledger):
    return Ledger(ledger.folder)


def test_a_subset_has_one_holder_until_it_is_given_up(ledger):
    claim = ledger.claim("k", "a b")
    assert ledger.is_claimed("k") and other_view(ledger).claim("k", "a b") is None
    assert "a b" in next((ledger.folder / "claims").iterdir()).read_text()
    claim.release()
    assert not ledger.is_claimed("k")
    again = other_view(ledger).claim("k", "a b")
    assert again is not None
    again.release()


def test_commit_is_first_wins_and_ends_claims(ledger):
    claim = ledger.claim("k", "a b")
    assert ledger.commit("k", {"subset": "a b"}) and not other_view(ledger).commit("k", {"subset": "other"})
    claim.release()
    assert ledger.claim("k", "a b") is None
    assert ledger.done()["k"]["subset"] == "a b"
    assert ledger.text_file.read_text() == "a b\n"


def test_text_file_lists_each_subset_once_and_all_of_them(ledger):
    other = other_view(ledger)
    ledger.commit("k1", {"subset": "a b"})
    other.commit("k2", {"subset": "a c"})
    ledger.commit("k3", {"subset": "a b"})  # under other settings
    assert sorted(ledger.text_file.read_text().splitlines()) == ["a b", "a c"]


def test_the_text_file_takes_its_share_of_the_time_alone(ledger, monkeypatch):
    """It is written whole: after each of thousands of commits, that would be most of their time."""
    ledger.commit("k1", {"subset": "a b"})
    ledger._text_due = time.monotonic() + 100
    assert ledger.commit("k2", {"subset": "a c"}) and ledger.text_file.read_text() == "a b\n"
    ledger._text_due = 0
    ledger.write_text_when_due()
    assert ledger.text_file.read_text() == "a b\na c\n"
    ledger.text_file.unlink()
    ledger._text_due = 0
    ledger.write_text_when_due()  # no commit since
    assert not ledger.text_file.exists()
    monkeypatch.setattr("src.sweep.ledger.TEXT_SHARE", 1e9)
    ledger.write_text_file()
    assert ledger.text_file.read_text() == "a b\na c\n" and ledger._text_due < time.monotonic() + 1
    ledger.commit("k3", {"subset": "a d"})
    assert ledger.text_file.read_text() == "a b\na c\na d\n"


def test_claims_whose_words_are_being_written_are_not_told(ledger):
    claims = [ledger.claim(key, words) for key, words in (("k1", '{"subset": "a b"}'), ("k2", '{"subs'))]
    assert ledger.running() == {"a b"}
    for claim in claims:
        claim.release()


def test_failures_add_up_and_can_be_forgotten(ledger):
    assert ledger.attempts("k") == []
    assert [ledger.fail("k", {"subset": "a b"}, reason, "log") for reason in ("one", "two")] == [1, 2]
    assert [attempt["reason"] for attempt in other_view(ledger).attempts("k")] == ["one", "two"]
    ledger.forget_failures("k")
    assert ledger.attempts("k") == []


def test_one_process_at_a_time_adds_a_draw(ledger):
    assert ledger.drawn() == ([], 0)
    assert ledger.add_draw(0, ["a b", "a c"], "seed 1")
    assert not other_view(ledger).add_draw(0, ["b c"], "seed 2")
    assert other_view(ledger).drawn() == (["a b", "a c"], 1)
    assert (ledger.folder / "plan" / "0001").read_text() == "# seed 1\na b\na c\n"


def test_a_child_keeps_the_claim_of_its_dead_scheduler(tmp_path):
    Ledger.open(tmp_path / "x", "flock")
    code = """if True:
        import subprocess, sys, os, signal
        from src.sweep.ledger import Ledger
        claim = Ledger(sys.argv[1]).claim("k", "a")
        child = subprocess.Popen(["sleep", "100"], pass_fds=(claim.fd,), stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parent.parent
    scheduler = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], cwd=root, stdout=subprocess.PIPE)
    ledger = Ledger(tmp_path / "x")
    assert scheduler.returncode == -signal.SIGKILL
    assert ledger.is_claimed("k") and ledger.claim("k", "a") is None
    os.kill(int(scheduler.stdout), signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (claim := ledger.claim("k", "a")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    claim.release()


def test_a_stale_heartbeat_is_taken_over_once_and_its_holder_notices(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_EVERY", 0)
    monkeypatch.setattr(claims, "STALE_AFTER", 100)
    ledger = Ledger.open(tmp_path / "x", "heartbeat")
    claim = ledger.claim("k", "a")
    assert claim.renew()
    os.utime(claim.path, (time.time() - 90,) * 2)
    assert ledger.claim("k", "a") is None
    assert claim.renew() and time.time() - claim.path.stat().st_mtime < 5
    os.utime(claim.path, (time.time() - 110,) * 2)
    taken = ledger.claim("k", "a")
    assert taken is not None and ledger.claim("k", "a") is None
    assert not claim.renew()
    claim.release()  # of a claim that is no longer ours: does not touch the other's
    assert ledger.is_claimed("k") and ledger.claim("k", "a") is None


def test_a_claim_stamped_in_the_future_ages_from_now_on(tmp_path, monkeypatch):
    """As after a clock was set back."""
    monkeypatch.setattr(claims, "STALE_AFTER", 0.3)
    ledger = Ledger.open(tmp_path / "x", "heartbeat")
    claim = ledger.claim("k", "a")
    os.utime(claim.path, (time.time() + 1e6,) * 2)
    assert ledger.is_claimed("k") and ledger.claim("k", "a") is None
    time.sleep(0.4)
    assert ledger.claim("k", "a") is not None


def test_claims_are_told_to_who_may_only_read(tmp_path, monkeypatch):
    ledger = Ledger.open(tmp_path / "x", "heartbeat")
    claim = ledger.claim("k", "a")
    written = []

    def refuse(path, *_, **__):
        written.append(path.name)
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    assert ledger.is_claimed("k") and written
    written.clear()
    assert not ledger.is_claimed("other") and not written  # nothing to be timed
    os.utime(claim.path, (time.time() - 2 * claims.STALE_AFTER,) * 2)
    assert not ledger.is_claimed("k")


def test_a_deleted_claim_is_a_lost_one(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_EVERY", 0)
    claim = Ledger.open(tmp_path / "x", "heartbeat").claim("k", "a")
    claim.path.unlink()
    assert not claim.renew()
    claim.release()


@pytest.mark.parametrize("name, content, words", [
    ("mode", b"", "mode: holds '', not flock or heartbeat; end the sweeps"),
    ("mode", b"\xff", "mode, line 1: not UTF-8"),
    ("done/x", b"", "done/x: damaged, or no file of the sweep's own"),
    ("done/x", b"{}", "done/x: damaged, or no file of the sweep's own (no 'completed' in it); delete it"),
    ("done/notes.txt", b"my notes", "done/notes.txt: damaged"), ("done/x", b"[1]", "done/x: damaged"),
    ("done/x", b"\xff", "done/x: damaged"), ("failed/k", b'{"attem', "failed/k: damaged"),
    ("plan/0003", b"a b\n", "plan: holds 0003, but no 0001; put that back, or delete the whole folder"),
    ("plan/0001", b"\xff\n", "plan/0001, line 1: not UTF-8"), ("plan/0001~", b"a b\n", "holds 0001~, but no 0001"),
])
def test_damaged_and_stray_files_are_named(ledger, name, content, words):
    (ledger.folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        fresh = other_view(ledger)
        fresh.drawn(), fresh.done(), fresh.attempts("k")
    assert words in str(caught.value) and str(ledger.folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"attempts": []}'])
def test_damaged_failures_are_named(ledger, content):
    (ledger.folder / "failed" / "k").write_bytes(content)
    with pytest.raises(InputError, match="failed/k: damaged, or no file of the sweep's own"):
        ledger.failures()


def test_a_deleted_draw_ends_the_sweep_instead_of_a_loop(ledger):
    for number in range(2):
        assert ledger.add_draw(number, [f"a {number}"], "seed 1")
    (ledger.folder / "plan" / "0001").unlink()
    with pytest.raises(InputError, match="holds 0002, but no 0001"):
        other_view(ledger).drawn()


def _compete(folder, mode, start, wins):
    ledger = Ledger(folder)
    start.wait()
    for key in map(str, range(100)):
        if (claim := ledger.claim(key, key)) is not None:
            assert ledger.commit(key, {"subset": key})
            claim.release()
            wins.put(key)


@pytest.mark.parametrize("mode", ["flock", "heartbeat"])
def test_eight_processes_divide_a_hundred_subsets(tmp_path, mode):
    ledger = Ledger.open(tmp_path / "x", mode)
    context = multiprocessing.get_context("fork")
    start, wins = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_compete, args=(ledger.folder, mode, start, wins)) for _ in range(8)]
    for process in processes:
        process.start()
    won = sorted(int(wins.get(timeout=60)) for _ in range(100))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    ledger.write_text_file()
    assert won == list(range(100)) and wins.empty()
    assert sorted(map(int, ledger.text_file.read_text().split())) == won
    assert not list(ledger.folder.rglob(".*"))  # no temporary file is left


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "old", sync_name=True)

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_modes_do_not_mix(tmp_path):
    Ledger.open(tmp_path / "x", "heartbeat")
    assert Ledger.open(tmp_path / "x").mode == "heartbeat"
    with pytest.raises(InputError, match=r"--ledger flock: .* in use with --ledger heartbeat"):
        Ledger.open(tmp_path / "x", "flock")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "old.txt").write_text("a b\n")
    with pytest.raises(InputError, match="written by something else"):
        Ledger.open(tmp_path / "old")
    assert (tmp_path / "old.txt").read_text() == "a b\n"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write there"):
        Ledger.open(tmp_path / "file" / "x")
