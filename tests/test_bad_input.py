"""What a user gets wrong, in every command: exit code 2, one line that names it, nothing written."""

import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from src.results import COLUMNS, Results

BIG = "1" + "0" * 30
TRAIN = "--do_train --do_eval --predict_with_generate --model_name_or_path t5-base --max_steps 2 --disable_tqdm True "
ONE = "train_multi_instruction.py " + TRAIN + "--task_name demo_a1 "
MANY = "train_multitask.py " + TRAIN + "--task_names demo_a1 demo_b1 "
TASKS = "train_sample_tasks.py --task_names demo_* --model_name_or_path t5-base --device cpu --task_set_name s "
LORA = TASKS.replace("tasks.py --task_names demo_*", "instructions_lora.py --dataset demo_a1")
CLUSTER, PLAN, ESTIMATE = ("src.cluster --save_name x ", "src.plan --save_name x ",
                           "src.estimate --task_names demo_a1 demo_b1 --model_name_or_path t5-base --max_steps 2 ")
BAD = {
    # the training scripts
    ONE + "--seed -1": "--seed -1 must be at least 0",
    ONE + "--seed " + BIG: f"--seed {BIG} must be at most",
    ONE + "--learning_rate nan": "--learning_rate nan must be a finite number",
    ONE + "--warmup_steps inf": "--warmup_steps inf must be a finite number",
    ONE + "--num_train_epochs many": "invalid float value: 'many'",
    ONE + "--downsample 1.5": "argument --downsample: invalid int value: '1.5'",
    ONE + "--per_device_train_batch_size " + BIG: "--per_device_train_batch_size",
    ONE + "--max_source_length " + BIG: "--max_source_length",
    ONE + "--dataloader_num_workers -1": "--dataloader_num_workers -1",
    ONE + "--generation_num_beams 0": "--generation_num_beams 0",
    ONE + "--eval_strategy steps --eval_steps 0": "eval_steps",
    ONE + "--save_strategy steps --save_steps 0": "save_steps",
    ONE + "--save_strategy steps --save_steps inf": "--save_steps inf must be a finite number",
    ONE + "--label_smoothing_factor 2": "--label_smoothing_factor 2.0 must be at least 0 and at most 1",
    ONE + "--optim_args zz": "--optim_args zz: must be pairs, as in rank=8,scale=0.5",
    ONE + "--torch_compile_backend inductr": "--torch_compile_backend inductr: did you mean 'inductor'?",
    ONE + "--torch_compile_mode zz": "--torch_compile_mode zz: (allowed: ",
    ONE + "--results_dir ''": "--results_dir '' must be the name of a folder",
    ONE + "--output_dir ' '": "--output_dir ' ' must be the name of a folder",
    ONE + "--generation_max_length 0": "--generation_max_length 0 must be at least 1",
    ONE + "--save_total_limit -1": "--save_total_limit -1 must be at least 0",
    ONE + "--logging_steps -1": "--logging_steps -1.0 must be above 0",
    ONE + "--ddp_timeout -1": "--ddp_timeout -1 must be at least 1",
    ONE + "--adam_beta2 1": "--adam_beta2 1.0 must be at least 0 and below 1",
    ONE + "--max_steps -1 --num_train_epochs 0": "--num_train_epochs 0.0 must be above 0",
    ONE + "--save_name ../evil": "--save_name '../evil' must be a plain file name",
    ONE + "--save_name '/tmp/evil'": "--save_name '/tmp/evil' must be a plain file name",
    ONE + "--save_name 'a\nb'": "--save_name 'a\\nb' must be a plain file name",
    ONE + "--run_name a/../../b": "--run_name 'a/../../b' must be a plain file name",
    ONE + "--task_name ../demo_a1": "unknown task '../demo_a1'",
    ONE + "--template_idx " + BIG: f"--template_idx {BIG}",
    ONE.replace(".py", ".py nul.json"): "nul.json: '--output_dir=a\\x00b' holds a NUL or half of a character",
    ONE.replace(".py", ".py half.json"): "half.json: '\\ud800' holds a NUL or half of a character",
    ONE + "--adafactor maybe": "--adafactor maybe: must be True or False",
    ONE + "--template_idx first": "--template_idx 'first' must be a position",
    ONE + "--output_dir latin/x": "--output_dir latin/x",
    ONE + "--results_dir loop/x": "loop",
    ONE + "--cache_dir /proc/x": "--cache_dir",
    ONE + "--task_dir loop": "--task_dir loop: no such folder",
    ONE + "--model_name_or_path broken": "broken",
    ONE + "--model_name_or_path cut": "cut",
    ONE + "--lora_alpha nan --train_lora True": "--lora_alpha nan must be a finite number",
    ONE + "--train_lora True --lora_target_modules zz": "the model has no linear layer 'zz'",
    ONE + "--deepspeed nofile.json": "--deepspeed nofile.json",
    ONE + "--report_to wandb": "--report_to wandb",
    ONE + "--resume_from_checkpoint nope": "--resume_from_checkpoint nope: no checkpoint there",
    ONE + "--batch_eval_metrics True": "--batch_eval_metrics True",
    ONE + "--task_name fifo": "fifo",
    ONE + "--task_name loop": "loop.yaml: cannot be read: Too many levels of symbolic links",
    ONE + "--task_name latin": "latin.yaml, line 1: not UTF-8",
    ONE + "--task_name deep": "deep.yaml: lists or mappings nested too deeply",
    ONE + "--task_name nested": "takes longer than",
    ONE + "--task_name rows_fifo": "found there: train.jsonl, validation.jsonl",
    ONE + "--task_name rows_latin": "train.jsonl, line 1: not UTF-8",
    ONE + "--task_name rows_half": "half of a character",
    ONE + "--task_name rows_deep": "nested too deeply",
    MANY + "--task_names @latin": "latin, line 1: not UTF-8",
    MANY + "--task_names @fifo": "@fifo: cannot read the list of tasks: not a file",
    MANY + "--task_names @nothing": "@nothing: cannot read the list of tasks: No such file",
    MANY + "--task_names zz_*": "'zz_*' gives no task",
    MANY + "--mixing temperature --mixing_temperature nan": "--mixing_temperature nan must be a finite number",
    # the sweeps
    TASKS + "--num_samples 0": "--num_samples 0 must be at least 1",
    TASKS + "--num_samples 3 --dry_run --jobs_per_device " + BIG: f"--jobs_per_device {BIG} must be at most 10000",
    TASKS + "--num_samples 3 --launcher ray --workers " + BIG: f"--workers {BIG} must be at most 10000",
    TASKS + "--num_samples 3 --results_dir ''": "argument --results_dir: '' must be the name of a folder",
    TASKS + "--num_samples 3 --output_dir ''": "argument --output_dir: '' must be the name of a folder",
    TASKS + "--num_samples 3 --seed -1": "--seed -1 must be at least 0",
    TASKS + "--num_samples 3 --subset_timeout nan": "--subset_timeout nan must be",
    TASKS + "--num_samples 3 --min_task_num 0": "--min_task_num 0",
    TASKS + "--num_samples 3 --task_set_name ../evil": "--task_set_name '../evil' must be a plain file name",
    TASKS + "--num_samples 3 --launcher slurm --partition 'gpu\n#SBATCH --uid=0'": "--partition 'gpu\\n",
    TASKS + "--num_samples 3 --launcher slurm --time '1:00\nrm -rf /'": "--time '1:00\\n",
    TASKS + "--num_samples 3 --from_estimate other": "these estimates were not calibrated on true trainings",
    TASKS + "--subsets_file fifo": "not a file",
    TASKS + "--subsets_file latin": "latin, line 1: not UTF-8",
    TASKS + "--num_samples 3 --current_cluster_dir fifo": "--current_cluster_dir fifo",
    TASKS + "--num_samples 3 -- --seed 7 --runs 3 --save_name x": "--seed is a flag of the sweep: it must stand",
    TASKS + "--num_samples 3 -- --save_name=x": "--save_name is a flag of the sweep",
    LORA + "--num_samples 3 --train_lora False": "--train_lora is set by the sweep: --lora_rank",
    LORA + "--num_samples 3 --lora_alpha nan": "--lora_alpha nan",
    LORA + "--num_samples 3 --num_tasks 0": "--num_tasks 0",
    # what reads results
    CLUSTER + "--results_dir ''": "argument --results_dir: '' must be the name of a folder",
    CLUSTER + "--seed -1": "--seed -1",
    CLUSTER + "--seed " + BIG + " --bootstrap " + BIG: "--bootstrap",
    CLUSTER + "--name ../../evil": "--name '../../evil' must be a plain file name",
    CLUSTER + "--save_name /tmp/evil": "--save_name '/tmp/evil' must be a plain file name",
    CLUSTER + "--save_name ../x": "--save_name '../x' must be a plain file name",
    CLUSTER + "--num_clusters " + BIG: "--num_clusters",
    CLUSTER + "--clusters_dir latin/x": "--clusters_dir latin/x",
    CLUSTER + "--extend fifo": "--extend fifo",
    CLUSTER + "--metric zz": "--metric zz",
    CLUSTER + "--sizes " + BIG: "--sizes",
    "src.cluster --save_name equal --num_clusters 2": "equal",
    "src.cluster --save_name nobody": "nobody",
    "src.report --save_name foreign": "foreign/runs.csv, line 1: not UTF-8",
    "src.report --save_name other_columns": "other_columns/runs.csv: no table of runs",
    PLAN + "--seed -1": "--seed -1",
    PLAN + "--budget 0": "--budget 0",
    PLAN + "--weights fifo": "--weights fifo",
    PLAN + "--target zz": "--target zz",
    PLAN + "--write_subsets nowhere/x": "--write_subsets nowhere/x",
    PLAN + "--save_name ../x": "--save_name '../x' must be a plain file name",
    PLAN + "--clusters_dir latin/x": "--clusters_dir latin/x cannot be written",
    ESTIMATE + "--project_dim 1000000000000 --strength 5": "--project_dim",
    ESTIMATE + "--save_name " + "x" * 95 + " --strength 5": "_estimated",
    "src.estimate compare --save_name x --estimated other": "share no subset",
    "src.estimate compare --save_name x --seed -1 --estimated x": "--seed -1",
    "src.results merge ../x": "'../x' must be a plain file name",
    "src.results import fifo --save_name y": "fifo",
    "src.results import latin --save_name y": "latin, after line 0: not a whole CSV file in UTF-8",
    "src.tasks show zz": "unknown task 'zz'",
    "src.tasks show demo_a1 --rows few": "argument --rows: invalid int value: 'few'",
    "src.tasks show demo_a1 --rows 0": "--rows 0 must be at least 1",
    "src.tasks show demo_a1 --ids": "--ids is about what a model reads: it needs --model_name_or_path",
    "src.tasks show demo_a1 --system_prompt ''": "--system_prompt is about what a model reads",
    "src.tasks list --task_dir nowhere": "--task_dir nowhere: no such folder",
}
AS_PROCESSES = [name for name in BAD if name in (
    ONE + "--save_name 'a\nb'", ONE + "--task_name fifo", MANY + "--task_names @latin",
    TASKS + "--num_samples 3 --task_set_name ../evil", LORA + "--num_samples 3 --train_lora False",
    CLUSTER + "--seed -1", PLAN + "--save_name ../x", "src.results import fifo --save_name y",
    "src.tasks show demo_a1 --rows 0", "src.estimate compare --save_name x --estimated other")]


def a_sweep(name: str, value, status="completed") -> None:
    items = ("demo_a1", "demo_a2", "demo_b1", "demo_b2")
    pairs = [(a, b) for a in items for b in items if a < b]
    for number, members in enumerate([*pairs, *((item,) for item in items)]):
        rows = [{**dict.fromkeys(COLUMNS, ""), "run_id": f"{name}{number}", "status": status, "seed": 42, "item": item,
                 "trained_on": " ".join(members), "split": "valid", "metric": metric, "value": value(number),
                 "config_hash": "c"} for item in members for metric in ("accuracy", "loss")]
        Results("results", name).write_part(f"{name}{number}", rows, {"status": status})
    Results("results", name).merge()


@pytest.fixture
def here(scratch):
    tasks, rows = scratch.folder / "data/tasks", scratch.folder / "data/splits/default"
    tasks.unlink()
    tasks.mkdir()
    task = (ROOT / "data/tasks/demo_a1.yaml").read_text()
    line = (ROOT / "data/splits/default/demo_a1/train.jsonl").read_text().splitlines()[0]
    for name in ("demo_a1", "demo_a2", "demo_b1", "demo_b2"):
        (tasks / f"{name}.yaml").write_text((ROOT / f"data/tasks/{name}.yaml").read_text())
    broken_rows = {"rows_latin": b'{"text": "\xe9", "label": 0}\n', "rows_deep": b'{"text": ' + b"[" * 100_000 + b"\n",
                   "rows_half": line.encode().replace(b'"text": "', b'"text": "\\ud800'), "rows_fifo": None,
                   "nested": line.encode()}
    for name, content in broken_rows.items():
        (tasks / f"{name}.yaml").write_text(task)
        (rows / name).mkdir()
        for split in ("train", "validation"):
            if content is None:
                os.mkfifo(rows / name / f"{split}.jsonl")
            else:
                (rows / name / f"{split}.jsonl").write_bytes(content)
    (tasks / "nested.yaml").write_text(task.replace("{{ text }}", "{% for a in range(9999) %}{% for b in range(9999) %}"
                                                    "{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"))
    (tasks / "latin.yaml").write_bytes(b"description: \xe9\n")
    (tasks / "deep.yaml").write_text("description: " + "[" * 5000 + "]" * 5000)
    for fifo in (tasks / "fifo.yaml", scratch.folder / "fifo"):
        os.mkfifo(fifo)
    (scratch.folder / "latin").write_bytes("demo_é\n".encode("latin-1"))
    (scratch.folder / "nul.json").write_text(r'{"output_dir": "a\u0000b"}')
    (scratch.folder / "half.json").write_text(r'{"eval_task_names": ["\ud800"]}')
    (scratch.folder / "loop").symlink_to("loop")
    (tasks / "loop.yaml").symlink_to("loop.yaml")
    for name, file, size in (("broken", "config.json", 9), ("cut", "model.safetensors", 5000)):
        folder = scratch.folder / name
        folder.mkdir()
        for path in (scratch.folder / "t5-base").iterdir():
            (folder / path.name).write_bytes(path.read_bytes()[:size if path.name == file else None])
    for name, content in (("foreign", b"run_id,\xe9\n"), ("other_columns", b"a,b\n1,2\n")):
        (scratch.folder / "results" / name).mkdir(parents=True)
        (scratch.folder / "results" / name / "runs.csv").write_bytes(content)
    a_sweep("x", lambda number: number / 7)
    a_sweep("equal", lambda number: 0.5)
    a_sweep("other", lambda number: 0.5, "estimated")
    Results("results", "other").part("other0").with_name("estimate-s42.json").write_text(
        '{"estimate": {"calibrated_on": []}}')
    for number in range(10):  # nothing in common with x
        path = Results("results", "other").part(f"other{number}")
        path.write_text(path.read_text().replace("demo_", "else_"))
    Results("results", "other").merge()
    return scratch


def files(folder) -> dict:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")
            if "cache" not in path.parts and not path.is_dir()}


@pytest.mark.parametrize("command", BAD, ids=range(len(BAD)))
def test_bad_input(here, capsys, command):
    script, *flags = shlex.split(command)
    before = files(here.folder)
    code = here.run(script, *flags)
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("warning: ", "[transform"))]
    assert code == 2 and len(said) == 1 and said[0].startswith("error: ") and BAD[command] in said[0], said
    after = files(here.folder)
    assert after == before, after.keys() ^ before.keys()


@pytest.mark.parametrize("command", AS_PROCESSES, ids=range(len(AS_PROCESSES)))
def test_bad_input_of_processes(here, command):
    script, *flags = shlex.split(command)
    before = files(here.folder)
    start = ["-m", script] if script.startswith("src.") else [str(ROOT / script)]
    done = subprocess.run([sys.executable, *start, *flags], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
    said = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2 and len(said) == 1 and BAD[command] in said[0], done.stderr
    assert files(here.folder) == before


def test_as_many_as_were_promised():
    assert len(BAD) >= 60 and len(AS_PROCESSES) == 10
