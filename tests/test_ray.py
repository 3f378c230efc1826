"""Ray for real: one machine, two fake GPUs, one worker killed. Needs requirements-cluster.txt."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ENGINES

STUB = Path(__file__).resolve().parent / "sweep_stub.py"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture
def cluster(tmp_path):
    folder = Path("/tmp") / f"ray-test-{os.getpid()}"  # short: Ray puts socket paths of limited length there
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:6399", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([*RAY, "start", "--head", "--port=6399", "--num-gpus=2", "--num-cpus=2", f"--temp-dir={folder}",
                    "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"],
                   check=True, capture_output=True, env=environment)
    yield environment
    subprocess.run([*RAY, "stop", "--force"], capture_output=True, env=environment)
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None and ENGINES != "required",
                    reason="no ray: pip install -r requirements-cluster.txt")
def test_two_workers_one_killed(tmp_path, cluster):
    command = [sys.executable, STUB, "6", "--task_set_name", "x", "--num_samples", "15", "--behave", "sleep:2",
               "--launcher", "ray", "--workers", "2", "--stale_after", "4", "--warm_start", "False"]
    with (tmp_path / "out").open("w") as out:
        driver = subprocess.Popen(command, cwd=tmp_path, env=cluster, stdout=out, stderr=subprocess.STDOUT)
        trace, killed = tmp_path / "trace", None
        deadline = time.monotonic() + 300  # of one that hangs
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            if killed is None and trace.exists() and trace.read_text().count("end") >= 2:
                # a worker is the parent of the scheduler that is the parent of a child, here of one that has just begun
                word, _, child, *_ = trace.read_text().splitlines()[-1].split()
                if word != "start" or time.time() - trace.stat().st_mtime > 0.5:
                    continue
                child = int(child)
                scheduler = parent(child)
                killed = parent(scheduler)
                assert "ray::" in Path(f"/proc/{killed}/cmdline").read_text()
                os.kill(killed, signal.SIGKILL)
    text = (tmp_path / "out").read_text()
    assert driver.returncode == 0 and killed, text
    assert "a Ray worker died" in text
    done = (tmp_path / "sampled_tasks" / "x.txt").read_text().splitlines()
    assert len(done) == len(set(done)) == 15
    words = Counter(line.split()[0] for line in trace.read_text().splitlines())
    assert words["end"] == 15 and words["overlap"] == 0 and words["start"] == 16


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
