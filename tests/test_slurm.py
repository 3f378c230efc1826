"""SLURM for real: one machine, two fake GPUs, in a network namespace of its own (tests/slurm/cluster.sh)."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import ENGINES

HERE = Path(__file__).resolve().parent / "slurm"
NAMESPACE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def why_not() -> str | None:
    missing = [name for name in ("slurmctld", "slurmd", "munged", "unshare", "ip") if not shutil.which(name)]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge iproute2"
    if os.geteuid() != 0 or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        return "needs root, and the right to make a network namespace"
    return None


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None and ENGINES != "required", reason=str(why_not()))
@pytest.mark.parametrize("scenario, restarts", [("preempt", 1), ("cancel", 0)])
def test_array_of_workers(tmp_path, scenario, restarts):
    assert why_not() is None
    work = tmp_path / "a 'folder' #1, 50%"
    work.mkdir()
    with tempfile.TemporaryDirectory(prefix="slurm") as cluster:  # a short path: sockets lie in it
        run = subprocess.run([*NAMESPACE, HERE / "cluster.sh", cluster, sys.executable, HERE / "scenario.py", scenario],
                             cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150)
    assert run.returncode == 0, run.stdout
    if scenario == "preempt":
        assert "restarts: 1" in run.stdout, run.stdout
    else:
        assert "queue: empty completed: True" in run.stdout and run.stdout.count("JobState=CANCELLED") == 2, run.stdout
    assert run.stdout.count("interrupted; the same command goes on from here") == 2 - restarts, run.stdout
    done = (work / "sampled_tasks" / "x.txt").read_text().splitlines()
    assert len(done) == len(set(done)) == 15
    words = Counter(line.split()[0] for line in (work / "trace").read_text().splitlines())
    assert words["end"] == 15 and words["overlap"] == 0 and words["start"] <= 17  # each stopped child started twice
