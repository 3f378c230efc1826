"""Shared by the tests: a scratch folder that looks like the project to a script, and scripts run in this process."""

import csv
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two tests at once on two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # the width of the terminal, or of what runs the tests, decides no output
ROOT = Path(__file__).parent.parent
ENGINES = os.environ.get("ENGINES", "optional")  # required: tests of SLURM and Ray fail where they cannot run

# The flags of a short training on the demo tasks.
DEMO = shlex.split("""
    --do_train --do_eval --predict_with_generate --model_name_or_path data/models/tiny-t5 --eval_strategy steps
    --save_strategy steps --per_device_train_batch_size 32 --learning_rate 5e-3 --lr_scheduler_type constant
    --load_best_model_at_end --metric_for_best_model eval_exact_match --greater_is_better True --disable_tqdm True""")


# Configs of small decoder-only models, each with a peculiarity of its own.
_SMALL = {"vocab_size": 315, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0,
          "eos_token_id": 1, "bos_token_id": 1, "max_position_embeddings": 96}
_LLAMA = _SMALL | {"intermediate_size": 32, "num_key_value_heads": 1}
DECODER_ONLY = {
    "gpt2": _SMALL | {"n_positions": 96},  # learned positions
    "gpt_neo": _SMALL | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                         "window_size": 3},  # local attention
    "opt": _SMALL | {"word_embed_proj_dim": 8, "ffn_dim": 32, "do_layer_norm_before": False},  # as opt-350m
    "llama": _LLAMA,
    "gemma2": _LLAMA | {"head_dim": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "granite": _LLAMA | {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
}


def family_of(tokenizer, config=None, prefix="", chat_template="auto", system=None):
    """The family of the model with this config (default: a T5), with a tokenizer that may be another model's."""
    from transformers import GenerationConfig, T5Config

    from src.training import families

    config = config or T5Config()
    return families.choose("it", config, tokenizer, GenerationConfig.from_model_config(config), prefix,
                           chat_template, system)


class Scratch:
    """A scratch folder with data/ of the project in it; the current folder while a test runs."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, script: str, *arguments: str) -> int:
        """Run a script or module of the project in this process, as from the command line; return its exit code."""
        before = sys.argv
        sys.argv = [script, *map(str, arguments)]
        try:
            if script.startswith("src."):
                runpy.run_module(script, run_name="__main__")
            else:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            return stop.code
        finally:
            sys.argv = before
        raise AssertionError("a script ends with an exit code")

    def start(self, script: str, *arguments: str, **options) -> subprocess.Popen:
        """Start a script of the project in a process of its own."""
        return subprocess.Popen([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=self.folder,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)

    def rows(self, save_name: str, file: str | None = None) -> list[dict[str, str]]:
        """Rows of results/<save_name>/<file>, by default of runs.csv."""
        with (self.folder / "results" / save_name / (file or "runs.csv")).open(newline="") as lines:
            return list(csv.DictReader(lines))


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Scratch:
    """`t5-base` is the tiny T5; the rows are the demo's and the made-up ones under tests/rows."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data" / "splits" / "default"
    place.mkdir(parents=True)
    for folder in (*(ROOT / "data/splits/default").iterdir(), *(ROOT / "tests/rows").iterdir()):
        (place / folder.name).symlink_to(folder)
    (tmp_path / "data" / "tasks").symlink_to(ROOT / "data/tasks")
    for name in ("models", "demo.json"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    for name in ("t5-base", "t5-small"):
        shutil.copytree(ROOT / "data/models/tiny-t5", tmp_path / name)
    return Scratch(tmp_path)
