"""Places that are full, closed, or lack what other file systems have: words, and nothing half."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import pytest
from conftest import DEMO, ROOT

from src import metrics
from src.cli import InputError, print_table, run_as_script
from src.files import STALE, locked, write_whole
from src.results import Results
from src.sweep.ledger import Ledger

SHORT = [*DEMO, "--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--task_name", "demo_a1", "--save_name",
         "x"]


def refuse(number: int):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))
    return call


def test_without_locks_sweeps_claim_by_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with pytest.raises(InputError, match=r"x: this file system has no locks \(flock\); claim by --ledger heartbeat"):
        Ledger.open(tmp_path / "x")
    ledger = Ledger.open(tmp_path / "x", "heartbeat")  # the first try has left nothing that forbids it
    claim = ledger.claim("k", "a")
    assert claim is not None and ledger.commit("k", {"subset": "a"})
    with locked(tmp_path / "lock"):
        pass


def test_locks_of_other_errors_are_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EINTR))
    with pytest.raises(InterruptedError), locked(tmp_path / "lock"):
        pass


def test_without_hard_links_the_words_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "hardlink_to", refuse(errno.EPERM))
    for mode in ("flock", "heartbeat"):
        with pytest.raises(InputError, match="x: this file system has no hard links, by which sweeps claim"):
            Ledger.open(tmp_path / "x", mode)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_home_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", "/proc/nowhere")
    assert metrics.compute(("exact_match",), ["a"], [["a"]]) == {"exact_match": 1.0}


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EACCES, 2),
                                              (errno.EROFS, 2), (errno.ELOOP, 2), (errno.ENAMETOOLONG, 2)])
def test_a_place_that_cannot_be_written_is_one_line(number, code, capsys):
    def main():
        raise OSError(number, os.strerror(number), "some/file")

    with pytest.raises(SystemExit) as stop:
        run_as_script(main)
    assert stop.value.code == code and capsys.readouterr().err == f"error: some/file: {os.strerror(number)}\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(BlockingIOError):
        run_as_script(refuse(errno.EAGAIN))


def test_a_write_that_fails_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError) as caught:
        write_whole(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file") and not list(tmp_path.iterdir())


def test_temporary_files_of_killed_processes_are_removed_when_they_are_old(tmp_path):
    results = Results(tmp_path, "x")
    results.write_part("a", [], {})
    old, new, other = (results.folder / "runs" / f".a.csv.{end}" for end in ("0" * 16, "1" * 16, "mine"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 2 * STALE,) * 2)
    assert results.merge() == 1 and not old.exists() and new.exists() and other.exists()
    Ledger.open(tmp_path / "set")
    old = tmp_path / "set/done" / old.name
    old.touch()
    os.utime(old, (0, 0))
    Ledger.open(tmp_path / "set")
    assert not old.exists()


def test_signs_that_the_terminal_does_not_know():
    code = "from src.cli import run_as_script\nrun_as_script(lambda: print('1 \\u00b1 2, \\u5b66') or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"},
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 \\xb1 2, \\u5b66\n"), done.stderr


def test_a_reader_that_has_seen_enough():
    code = "from src.cli import run_as_script\nrun_as_script(lambda: print('a line\\n' * 50000) or 0)"
    done = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.readline()
    done.stdout.close()
    assert done.stderr.read() == b"" and done.wait() == 141
    done.stderr.close()


def test_tables_are_not_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    words = ("a-name-of-some-thirty-characters", "another-name-of-thirty-characters", "two words")
    print_table(("task", "where its rows would come from", "x"), [words])
    out = capsys.readouterr().out
    assert all(word in out for word in (*words[:2], "two", "words")) and "\u2026" not in out


def test_pictures_are_drawn_under_a_notebook(tmp_path):
    code = "from src.cluster.plots import _pyplot; _pyplot().savefig('x.png')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and (tmp_path / "x.png").exists(), done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few kilobytes."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "none", place], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # tokenised rows are still open


@pytest.mark.parametrize("flag", ["--cache_dir", "--output_dir", "--results_dir"])
def test_full_disk(scratch, small_disk, flag, capsys):
    """While it tokenises, saves a checkpoint, writes results: exit code 1, in words; with room again it goes on."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(4096 if flag == "--cache_dir" else 16384))
    assert scratch.run("train_multi_instruction.py", *SHORT, flag, str(small_disk / "place")) == 1
    said = capsys.readouterr()
    assert "No space left on device" in said.err + said.out and "Traceback" not in said.err + said.out
    assert not [path for path in small_disk.rglob("*.arrow*")]
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert scratch.run("train_multi_instruction.py", *SHORT, flag, str(small_disk / "place")) == 0
    place = small_disk / "place" if flag == "--results_dir" else scratch.folder / "results"
    assert (place / "x/x_valid.csv").exists()
