"""A training that is killed, or whose checkpoint is damaged: the same command gives the rows of an unbroken run."""

import csv
import os
import select
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from conftest import DEMO, ROOT
from transformers import AutoModelForSeq2SeqLM

from src.sweep.children import PRELOAD, WarmStarter
from src.training.checkpoints import what_is_broken

SHORT = shlex.split("--eval_steps 2 --save_steps 2 --downsample 16 --task_name demo_a1 --save_name x")


def rows(folder: Path, name: str = "runs.csv") -> list[dict]:
    with (folder / "results/x" / name).open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """Forks processes that have imported everything: a second each instead of six."""
    found = WarmStarter(tmp_path_factory.mktemp("starter") / "log", dict(os.environ), PRELOAD)
    yield found
    found.close()


def begin(starter, folder: Path, number: int, when: str):
    if not folder.exists():
        folder.mkdir()
        (folder / "data").symlink_to(ROOT / "data")
    command = [sys.executable, str(ROOT / "tests/crash_child.py"), str(folder), str(number), when,
               "train_multi_instruction.py", *DEMO, *SHORT, "--max_steps", "4"]
    return starter.start(command, dict(os.environ), folder / "log", None)


def end(child) -> int:
    assert select.select([child], [], [], 60)[0]
    return child.finish()


@pytest.mark.slow
def test_killed_before_and_after_each_rename(starter, tmp_path):
    assert end(begin(starter, tmp_path / "whole", 0, "before")) == 0
    expected, means = rows(tmp_path / "whole"), rows(tmp_path / "whole", "x_valid.csv")
    renames = (tmp_path / "whole/renames").read_text().splitlines()
    names = [Path(name).name for name in renames]
    assert {"runs.csv", "x_valid.csv", ".merged.json"} <= set(names) and len(expected) == 4
    assert sum(name.endswith(".arrow") for name in names) == 2 and sum(name.startswith("x-") for name in names) == 3
    kills = [(number, when) for number in range(1, len(renames) + 1) for when in ("before", "after")]
    for some in (kills[i:i + 2] for i in range(0, len(kills), 2)):  # two at a time
        folders = [tmp_path / f"{number}-{when}" for number, when in some]
        children = [begin(starter, folder, *kill) for folder, kill in zip(folders, some, strict=True)]
        assert [end(child) for child in children] == [-signal.SIGKILL] * len(some)
        children = [begin(starter, folder, -1, "never") for folder in folders]
        assert [end(child) for child in children] == [0] * len(some), [(f / "log").read_text() for f in folders]
        for folder, kill in zip(folders, some, strict=True):
            assert rows(folder) == expected and rows(folder, "x_valid.csv") == means, (kill, renames[kill[0] - 1])


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "--train_lora True"])
def test_each_file_of_a_checkpoint_cut(scratch, extra, capsys):
    """To nothing, to half, by a byte; what no training reads may be damaged."""
    flags = [*DEMO, *SHORT, *shlex.split("--max_steps 4 --save_total_limit 3"), *shlex.split(extra)]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    expected, saved, kept = rows(scratch.folder), scratch.folder / "saved", scratch.folder / "kept"
    saved.rename(kept)
    last = next(kept.glob("*/checkpoint-4")).relative_to(kept)
    names = sorted(path.name for path in (kept / last).iterdir())
    assert len(names) > 7 and next(kept.glob("*/checkpoint-2"))
    set_aside = set()
    for name in names:
        size = (kept / last / name).stat().st_size
        for left in (0, size // 2, size - 1):
            shutil.rmtree(saved, ignore_errors=True)
            shutil.copytree(kept, saved)
            os.truncate(saved / last / name, left)
            shutil.rmtree(scratch.folder / "results")
            assert scratch.run("train_multi_instruction.py", *flags) == 0, (name, left)
            assert rows(scratch.folder) == expected, (name, left)
            said = capsys.readouterr()
            if f"is not whole ({name}" in said.err:
                set_aside.add(name)
                assert (saved / last).with_name("checkpoint-4.broken1").is_dir() and "checkpoint-2" in said.out
    weights = "adapter_model.safetensors" if extra else "model.safetensors"
    assert {weights, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set_aside


def test_weights_in_several_files_are_whole_when_all_are_there(tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(ROOT / "data/models/tiny-t5")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "trainer_state.json").write_text("{}")
    first, *others = sorted(tmp_path.glob("*-of-*.safetensors"))
    assert others and what_is_broken(tmp_path) is None
    first.rename(tmp_path / "away")
    assert what_is_broken(tmp_path) == f"model.safetensors.index.json: {first.name} is missing"
    (tmp_path / "away").rename(first)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert what_is_broken(tmp_path).startswith("model.safetensors.index.json: ")
