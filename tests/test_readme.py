"""What the README says exists: its commands parse, its paths and flags are there, its example task is right."""

import importlib.util
import re
import shlex
import shutil

import pytest
from conftest import ROOT

from src.cluster.__main__ import make_parser as cluster_parser
from src.estimate.compare import make_parser as compare_parser
from src.estimate.flags import ALWAYS, EstimateArguments
from src.plan.__main__ import make_parser as plan_parser
from src.plan.__main__ import parse as parse_plan
from src.report.__main__ import make_parser as report_parser
from src.results import COLUMNS
from src.results import make_parser as results_parser
from src.sweep.flags import SHORT, sweep_parser
from src.tasks.catalogue import expand_names, load_task
from src.training.flags import InstructionArguments, MultitaskArguments, parse

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = README + (ROOT / "results/README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    loop = re.compile(r"while (.*); \[ \$\? -eq 3 \]; do\n(.*) \|\| break\ndone\n")  # its two commands
    return [shlex.split(line) for line in loop.sub(r"\1\n\2\n", text).splitlines()
            if line.strip() and not line.startswith("#")]


def test_every_fence_stands_on_a_line_of_its_own():
    """One inside a paragraph would hide its commands from these tests."""
    fences = [line for line in README.splitlines() if "```" in line]
    assert len(fences) % 2 == 0 and all(re.fullmatch(r"```\w*", line) for line in fences)


def test_there_are_commands():
    assert len(commands()) >= 7


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command(command, scratch):
    (scratch.folder / "clusters").mkdir()  # what earlier commands of the README write
    (scratch.folder / "clusters/groups_0_7.txt").write_text("sst2 imdb\ncommon_gen\n")
    (scratch.folder / "subsets.txt").write_text("sst2\nsst2 imdb\n")
    (scratch.folder / "next.txt").write_text("demo_a1\ndemo_a1 demo_a2\n")
    place = scratch.folder / "results/warm_estimated"
    place.mkdir(parents=True)
    (place / "runs").mkdir()
    (place / "runs/estimate-s42.json").write_text('{"estimate": {"chosen_by": "calibration"}}')
    row = "estimate-s42,estimated,42,demo_a1,,,,demo_a1 demo_a2,,valid,,loss,0.5,,,,,,,"
    (place / "runs.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    shutil.copytree(ROOT / "data/models/tiny-t5", scratch.folder / "saved/start-s42/checkpoint-300")
    words = [word for word in command if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif words[1] == "train_multi_instruction.py":
        data_args, *_ = parse(InstructionArguments, "", words[2:])
        task = load_task(data_args.task_name, ROOT / data_args.task_dir)
        assert all(task.template(index) for index in data_args.indices())
    elif words[1] == "train_multitask.py":
        data_args, *_ = parse(MultitaskArguments, "", words[2:])
        folder = ROOT / data_args.task_dir
        assert all(load_task(name, folder) for name in expand_names(data_args.task_names, folder))
    elif words[1].startswith("train_sample_"):
        sweep = scratch.start(words[1], *words[2:], "--dry_run")
        output, _ = sweep.communicate()
        assert sweep.returncode == 0 and re.search(r"^\d+ subsets (wanted|given)", output, re.MULTILINE), output
    elif words[0] == "pip":
        assert (ROOT / words[3]).exists()
    elif words[2] == "src.cluster":
        cluster_parser().parse_args(words[3:])
    elif words[2] == "src.plan":
        parse_plan(words[3:])
    elif words[2] == "src.report":
        report_parser().parse_args(words[3:])
    elif words[2:4] == ["src.estimate", "compare"]:
        compare_parser().parse_args(words[4:])
    elif words[2] == "src.results":
        results_parser().parse_args(words[3:])
    elif words[2] == "src.estimate":
        parse(MultitaskArguments, "", [*ALWAYS, *words[3:]], (EstimateArguments,))
    else:
        assert words[:2] == ["python", "-m"]
        assert importlib.util.find_spec(f"{words[2]}.__main__")


def test_flags_exist():
    from src.old_flags import translate_old_flags
    from src.training.flags import ModelArguments, ResultArguments, TrainingArguments

    known = {f"--{name}" for group in (InstructionArguments, MultitaskArguments, ModelArguments, ResultArguments,
                                       TrainingArguments, EstimateArguments) for name in group.__dataclass_fields__}
    known |= {*sweep_parser("", "")._option_string_actions, *cluster_parser()._option_string_actions,
              *plan_parser()._option_string_actions}
    for parser in results_parser()._subparsers._group_actions[0].choices.values():
        known |= set(parser._option_string_actions)
    known |= {f"--{name}" for name in SHORT}
    known |= {"--target_task_group", "--dataset", "--num_tasks"}
    elsewhere = {"--help", "--help_all", "--rows", "--nproc_per_node", "--seeds", "--control", "--tasks", "--steps",
                 "--rounds", "--padded", "--task", "--model_type"}  # of src.tasks, torchrun and the benches
    for flag in set(re.findall(r"--[a-z_]+\d*", DOCUMENTS)) - elsewhere:
        assert flag in known or translate_old_flags([flag, "0"]) != [flag, "0"], flag


def test_folders_are_explained():
    tree = re.search(r"## Folders\n\n```\n(.*?)```", README, flags=re.DOTALL)[1]
    paths, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        paths.add(name if folder == name else folder + name)
    assert not [path for path in paths if not (ROOT / path).exists()]
    rooms = {f"src/{path.parent.name}/" for path in (ROOT / "src").glob("*/__init__.py")}
    assert rooms | {path.name for path in ROOT.glob("*.py")} <= paths  # each is explained


def test_example_task(tmp_path):
    (tmp_path / "review.yaml").write_text(blocks("yaml")[0])
    task = load_task("review", tmp_path)
    rendered = task.template(1).render({"text": "Fine.", "label": 1})
    assert rendered.target == "good" and "Fine." in rendered.input
    assert task.bare.render({"text": "Fine.", "label": 0}).input == "Fine."


def test_columns_are_explained():
    from src.results import COLUMNS

    text = (ROOT / "results/README.md").read_text(encoding="utf-8")
    assert all(f"`{column}`" in text for column in COLUMNS)
