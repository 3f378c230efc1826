"""How close the gradient estimate comes to true trainings of all 36 pairs of the demo tasks, and what it costs.

    python tests/bench_estimate.py [--seeds 10] [--first_seed 0] [--model_type llama]

For each seed, in a scratch folder: train all nine tasks together for a common start, train every pair from it (twice),
estimate the same from gradients at that start, calibrated on five of the true pairs, and compare. CPU seconds are those
of the whole commands, start-up and imports included; the share of 1,000 also holds the five true pairs.
About two minutes a seed on two cores.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
START = shlex.split("""
    train_multitask.py --do_train --task_names demo_* --max_steps 300
    --learning_rate 5e-3 --lr_scheduler_type constant --per_device_train_batch_size 32 --save_steps 300
    --run_name start --save_name start --use_cpu True""")
SWEEP = shlex.split("""
    train_sample_tasks.py --task_names demo_* --min_task_num 2 --max_task_num 2 --num_samples 36 --max_steps 100
    --eval_steps 50 --save_steps 50 --lr 1e-3 --batch_size 32 --runs 2 --device cpu --jobs_per_device 2
    --task_set_name demo --save_name demo""")
ESTIMATE = shlex.split("""
    -m src.estimate --task_names demo_* --do_train False --per_device_train_batch_size 32 --save_name demo
    --use_cpu True""")
LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
COMPARE = shlex.split("-m src.estimate compare --save_name demo")


def cpu_seconds(command: list[str], folder: str) -> float:
    """Run a command of the project in `folder`; return the CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if command[0].endswith(".py"):
        command = [str(ROOT / command[0]), *command[1:]]
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_llama(folder: str) -> str:
    """A random model with the tokenizer of the demo's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/data/models/tiny-t5")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(tokenizer), **LLAMA)
                                     ).save_pretrained(f"{folder}/llama")
    tokenizer.save_pretrained(f"{folder}/llama")
    return "llama"


def one_seed(seed: int, model_type: str) -> dict:
    """compare.json, with the CPU seconds of the sweep and of the estimate."""
    with tempfile.TemporaryDirectory() as folder:
        start = f"saved/start-s{seed}/checkpoint-300"
        cpu_seconds(["data/make_demo.py", f"{folder}/data"], folder)
        of_seed, model = ["--seed", str(seed)], "data/models/tiny-t5"
        if model_type == "llama":
            model, lengths = make_llama(folder), ["--max_source_length", "96", "--max_target_length", "32"]
            of_seed += lengths
        cpu_seconds([*START, "--model_name_or_path", model, *of_seed], folder)
        sweep = cpu_seconds([*SWEEP, "--model_name_or_path", start, *of_seed], folder)
        estimate = cpu_seconds([*ESTIMATE, "--model_name_or_path", start, *of_seed], folder)
        cpu_seconds(COMPARE, folder)
        result = json.loads(Path(folder, "results/demo_estimated/compare.json").read_text())
    cpu = result["costs"]["cpu_seconds"]  # the fits are those of 36 subsets; the rest is paid once
    many = (estimate + cpu["calibration"] - cpu["fits"] + cpu["fits"] / 36 * 1000) / (sweep / 36 * 1000)
    return result | {"sweep": sweep, "estimate": estimate, "share": estimate / sweep, "many": many}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default: 10)")
    parser.add_argument("--first_seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--model_type", choices=["t5", "llama"], default="t5", help="kind of model (default: t5)")
    args = parser.parse_args()
    print("relative error of the loss                          within rows         clusters alike  CPU s\n"
          "seed  estimate  constant  item means  other sweep  pearson  spearman  (ARI)           sweep  "
          "estimate  share  of 1,000")
    found = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        r = one_seed(seed, args.model_type)
        found.append(r)
        print(f"{seed:4}  {r['relative_error']:8.1%}  {r['constant']:8.1%}  {r['item_means']:10.1%}  "
              f"{r['ceiling']:11.1%}  "
              f"{r['pearson']:7.2f}  "
              f"{r['spearman']:8.2f}  {r['adjusted_rand_index']:14.2f}  {r['sweep']:5.0f}  {r['estimate']:8.1f}  "
              f"{r['share']:5.1%}  {r['many']:8.2%}", flush=True)
    print(f"mean  {mean(r['relative_error'] for r in found):8.1%}  {mean(r['constant'] for r in found):8.1%}  "
          f"{mean(r['item_means'] for r in found):10.1%}  {mean(r['ceiling'] for r in found):11.1%}; same "
          f"clusters as the true sweep with "
          f"{sum(r['adjusted_rand_index'] == 1 for r in found)} of {len(found)} seeds; share of the CPU "
          f"{mean(r['share'] for r in found):.1%}")


if __name__ == "__main__":
    main()
