"""How often the planted groups of the demo are found, and how often groups are seen where there are none.

    python tests/bench_demo.py [--seeds 20] [--first_seed 0] [--control]

For each seed the sweep over all 36 pairs of the demo tasks and the clustering, as `make demo` does them, in a scratch
folder. With --control the tasks share no rule (data/make_demo.py): then no structure should be found. A minute or two
a seed on two cores.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SWEEP = shlex.split("""
    --min_task_num 2 --max_task_num 2 --num_samples 36 --draw balanced --max_steps 100 --eval_steps 50 --save_steps 50
    --lr 5e-3 --batch_size 32 --device cpu --jobs_per_device 2 --task_set_name demo --save_name demo""")


def one_seed(seed: int, control: bool) -> dict:
    """Run sweep and clustering; return the record of clusters.json."""
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, str(ROOT / "data/make_demo.py"), f"{folder}/data", *([str(seed)] if control else [])]
        sweep = [sys.executable, str(ROOT / "train_sample_tasks.py"), "--model_name_or_path", "data/models/tiny-t5",
                 "--task_names", "demo_*", "--seed", str(seed), *SWEEP]
        cluster = [sys.executable, "-m", "src.cluster", "--save_name", "demo", "--reference", "data/demo_groups.txt"]
        for command in (make, sweep, cluster):
            done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                                  text=True)
            if done.returncode:
                raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")
        return json.loads(Path(folder, "results/demo/clusters.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds (default: 20)")
    parser.add_argument("--first_seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--control", action="store_true", help="tasks that share no rule")
    args = parser.parse_args()
    found = structure = 0
    print("seed  clusters  adjusted Rand index with the planted groups  structure found  p      seconds")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        start = time.time()
        record = one_seed(seed, args.control)
        found += record["adjusted_rand_index"] == 1
        structure += record["structure_found"]
        print(f"{seed:4}  {len(record['clusters']):8}  {record['adjusted_rand_index']:42.2f}  "
              f"{'yes' if record['structure_found'] else 'no':>15}  {record['p_value']:.3f}  "
              f"{time.time() - start:7.0f}", flush=True)
    print(f"planted groups found with {found} of {args.seeds} seeds, structure found with {structure}")


if __name__ == "__main__":
    main()
