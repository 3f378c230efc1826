"""Estimate what training on each subset would give, from one training on all items; and compare with true trainings.

python -m src.estimate --task_names rte boolq wic mnli --model_name_or_path t5-base --max_steps 1000 \\
    --learning_rate 5e-5 --save_name mtl            all pairs -> results/mtl_estimated/, in the form of true results
python -m src.cluster --save_name mtl_estimated --metric loss
python -m src.estimate compare --save_name mtl      beside the true results/mtl/

Takes the flags of train_multitask.py (--task_names) or of train_multi_instruction.py (--task_name, --template_idx).
The sweep's finished runs in results/<save_name>/ tell how long a training the small fits stand for (--calibrate).
An estimate says most about trainings that start where its gradients were taken: give the sweep's starting model by
--start_from, or let the sweep start from the model that was trained on all items.
"""

import copy
import functools
import gc
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from src import subsets
from src.cli import InputError, run_as_script, warn
from src.cluster import affinity
from src.estimate.compare import SUFFIX, clusters, relative_error
from src.identity import short_hash
from src.names import check_name, natural_order
from src.results import Results
from src.scores import read_scores
from src.subsets import Space, Subset

STEPS = sorted({round(steps) for steps in np.geomspace(1, 1000, 31)})  # of the descent, to be calibrated
SCANNED = STEPS[::3]
MANY = 200_000  # subsets that nobody wants without saying so
BATCH = 64  # examples whose gradients are taken at once, at most
COPIES = 4  # of an example's gradient that are in memory at the same time, at most


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        from src.estimate import compare

        return compare.main(arguments[1:])
    from src.estimate.flags import EstimateArguments
    from src.training import flags

    one_task = any(argument.partition("=")[0] == "--task_name" for argument in arguments)
    kind = flags.InstructionArguments if one_task else flags.MultitaskArguments
    needed = ["--do_train", "--do_eval", "--predict_with_generate"]  # which the training scripts ask for
    *groups, options = flags.parse(kind, __doc__, needed + arguments, (EstimateArguments,))

    from src.training.experiment import Experiment

    experiment = Experiment.from_flags(*groups)
    if experiment.model.train_prefix or experiment.model.train_prompt_tuning:
        raise InputError("--train_prefix and --train_prompt_tuning: estimates are of full training or of --train_lora")
    return Estimate(experiment, options).run()


# ---- what is estimated, and on what it is calibrated ---------------------------------------------------------------


def plan(names: Sequence[str], options, seed: int, task: str | None) -> list[Subset]:
    """The subsets that the command line asks for; raise InputError where that cannot be."""
    if options.subsets_file:
        return subsets.read_subsets(Path(options.subsets_file), names, task)
    largest = options.min_task_num if options.max_task_num is None else options.max_task_num
    space = Space(subsets.subset(names), options.min_task_num, largest)
    if options.num_samples is None:
        if space.possible() > MANY:
            raise InputError(f"--num_samples is missing: there are {space.possible()} subsets of "
                             f"{options.min_task_num} to {largest} items")
        return list(space.combinations())
    return subsets.draw(space, options.num_samples, seed)


def true_losses(folder: Path, names: Sequence[str], config_hash: str | None) -> dict[Subset, dict[str, float]]:
    """Validation loss of each item after each truly trained subset of `names`; none where there is no sweep."""
    if Results(folder.parent, folder.name).is_without_scores("valid"):
        return {}
    scores = read_scores(folder, config_hash=config_hash, statuses=("completed",))
    scores = scores[scores["metric"] == "loss"]
    found: dict[Subset, dict[str, float]] = {}
    for row in scores.itertuples():
        members = subsets.subset(row.trained_on.split())
        if row.item in members and set(members) <= set(names):
            found.setdefault(members, {})[row.item] = row.value
    return found


def spread(known: Sequence[Subset], count: int, seed: int) -> list[Subset]:
    """Choose `count` subsets that hold each item about as often as any other."""
    left, chosen, seen = list(known), [], Counter()
    random.Random(f"calibrate {seed}").shuffle(left)
    while left and len(chosen) < count:
        least = min(left, key=lambda members: sum(seen[item] for item in members) / len(members))
        left.remove(least)
        chosen.append(least)
        seen.update(least)
    return chosen


def levels(items: Sequence[str], residuals: np.ndarray) -> dict[str, float]:
    """What the loss of each of `items` is multiplied by, and under "" that of all others.

    The residuals log(true / predicted), one for each of `items`, are taken apart into a part that all share and one of
    each item, both shrunk as if one more had been 0. This moves an item's losses all alike: it changes how large they
    are, not which partners are good for it.
    """
    shared = residuals.sum() / (len(residuals) + 1)
    found = {"": float(np.exp(shared))}
    for item in dict.fromkeys(items):
        own = residuals[[name == item for name in items]] - shared
        found[item] = float(np.exp(shared + own.sum() / (len(own) + 1)))
    return found


# ---- the estimate --------------------------------------------------------------------------------------------------


class Estimate:
    """One command: for each seed train on all items or load the start, take gradients, fit each subset, write rows."""

    def __init__(self, items, save_name: str, data_args, model_args, result_args, training_args, options):
        from src.training.record import set_up_logging

        self.items, self.options = items, options
        self.data_args, self.model_args, self.args = data_args, model_args, training_args
        check_name("--save_name", save_name)
        self.runs = result_args.runs
        self.true = Results(result_args.results_dir, save_name)
        self.results = Results(result_args.results_dir, save_name + SUFFIX)
        self.results.check_writable()
        self.names = [item.name for item in items]
        self.args.do_train = self.args.do_eval = True
        # the first training is short: no evaluation, its last model counts
        self.args.eval_strategy, self.args.load_best_model_at_end, self.args.do_predict = "no", False, False
        self.args.save_strategy = "steps"  # at its end, too
        self.args.metric_for_best_model = None
        self.plan = plan(self.names, options, training_args.seed, getattr(data_args, "task_name", None))
        known = true_losses(self.true.folder, self.names, options.config_hash) if options.strength is None else {}
        models = self.true.models() if known else set()
        if models and not models & {model_args.model_name_or_path, options.start_from}:
            warn(f"the sweep {self.true.folder} trained {', '.join(sorted(models))}, which is neither "
                 "--model_name_or_path nor --start_from: estimates may say little about it")
        chosen = spread(sorted(known), options.calibrate, training_args.seed)
        self.truth = {members: known[members] for members in chosen}
        set_up_logging(training_args)

    def run(self) -> int:
        from src.training.experiment import Run, prepare_data, report_data
        from src.training.model import check_checkpoint, load_tokenizer
        from src.training.tokenised import Preparer

        tokenizer = load_tokenizer(self.model_args, self.data_args.cache_dir)
        if self.options.start_from:
            check_checkpoint(self.model_args, self.data_args.cache_dir, len(tokenizer), self.options.start_from)
        preparer = Preparer(tokenizer, self.data_args.cache_dir, self.data_args.max_source_length,
                            self.data_args.max_target_length, self.data_args.overwrite_cache)
        seeds = range(self.args.seed, self.args.seed + self.runs)
        for seed in seeds:
            args = copy.copy(self.args)
            args.seed = seed
            data, selections = prepare_data(self.items, preparer, self.data_args, args)
            if seed == self.args.seed:
                report_data(data)
            args.do_eval = False
            start = Run(self.items, self.results, self.data_args, self.model_args, args, selections)
            model, costs = self._start(start, tokenizer, data)
            if model is None:
                return 1
            fits, costs["gradients"] = self._collect(model, tokenizer, data, seed)
            del model
            for path in (self.results.folder / "runs").glob("estimate-s*"):  # of an estimate that this one replaces
                if int(path.stem.removeprefix("estimate-s")) not in seeds:
                    path.unlink()
            self._fit(fits, costs, start, data)
        self._say_what_next()
        return 0

    def _start(self, run, tokenizer, data):
        """(the model at which gradients are taken, what it cost); (None, None) where its training failed."""
        import torch

        from src.training.experiment import last_checkpoint
        from src.training.model import load_checkpoint, load_model

        load = functools.partial(load_checkpoint, self.model_args, self.data_args.cache_dir, len(tokenizer))
        if self.options.start_from:
            model, record = load(self.options.start_from), {}
        else:
            model = load_model(self.model_args, self.data_args.cache_dir, len(tokenizer))
            self._check_memory(model, data)
            del model
            gc.collect()
            run.args.overwrite_output_dir |= last_checkpoint(run.args) is None  # its weights are needed, not its record
            if not run.execute(tokenizer, {"train": data["train"]}):
                return None, None
            gc.collect()
            torch.cuda.empty_cache()  # what the training held counts as free only then
            model = load(last_checkpoint(run.args))
            record = json.loads(self.results.part(run.run_id, "json").read_text(encoding="utf-8"))
        flops = [entry["total_flos"] for entry in record.get("training", {}).get("log", []) if "total_flos" in entry]
        costs = {"training": {"seconds": record.get("seconds", 0), "cpu_seconds": record.get("cpu_seconds", 0),
                              "flops": sum(flops)}}
        return model.to(torch.device(run.args.device)), costs

    def _check_memory(self, model, data) -> int:
        """Examples whose gradients fit into memory at once; raise InputError where not even one does."""
        import psutil
        import torch

        size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) * 4
        cuda = next(model.parameters()).device.type == "cuda"
        free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
        count = (free - 2 * size) // (COPIES * size) if size else 1
        if count < 1:
            raise InputError(f"the gradient of one example needs {(COPIES + 2) * size / 2**30:.1f} GiB, "
                             f"{free / 2**30:.1f} GiB are free; --train_lora True trains fewer parameters")
        if not self.options.project_dim:
            rows = sum(len(entry.dataset) for sets in data.values() for parts in sets.values() for entry in parts)
            Path(self.data_args.cache_dir).mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(self.data_args.cache_dir).free
            memory = psutil.virtual_memory().available
            if rows * size > min(room, memory):
                raise InputError(
                    f"--project_dim 0: the gradients of {rows} rows take {rows * size / 2**30:.1f} GiB, free are "
                    f"{memory / 2**30:.1f} GiB of memory and {room / 2**30:.1f} GiB in --cache_dir; "
                    "--project_dim 400 keeps 400 numbers of each")
        return int(min(count, BATCH))

    def _collect(self, model, tokenizer, data, seed: int) -> tuple:
        """Gradients of all rows, and what they cost."""
        from rich.progress import Progress

        from src.estimate import features, gradients
        from src.estimate.fits import Fits
        from src.training.experiment import log

        of_model = gradients.Gradients(model)
        most, start, cpu = self._check_memory(model, data), time.time(), time.process_time()
        sets = [(role, item, entry) for role, by_item in data.items() for item, entries in by_item.items()
                for entry in entries]
        first = {id(entry): gradients.first_token_decides(entry, tokenizer) for _, _, entry in sets}
        rows = {id(entry): entry.dataset.select_columns(["input_ids", "labels"]).to_list() for _, _, entry in sets}
        for part in rows.values():
            part.sort(key=lambda row: len(row["input_ids"]), reverse=True)  # one that does not fit shows at once
        scales = None
        if "sgd" not in self.args.optim:
            scales = of_model.scales(list(self._sample(sets, rows, first, seed, most)))
        projection = gradients.Projection(of_model.parameters, self.options.project_dim, seed, scales)
        common = [features.FORMAT, gradients.fingerprint(model), self.options.project_dim, seed, scales is not None,
                  sorted(entry.key for role, _, entry in sets if role == "train")]
        costs = {"seconds": time.time() - start, "cpu_seconds": time.process_time() - cpu}
        found: dict[str, dict[str, list]] = {role: {item: [] for item in by_item} for role, by_item in data.items()}
        with Progress(disable=self.args.disable_tqdm or not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task("gradients", total=sum(map(len, rows.values())))
            for role, item, entry in sets:
                path = (Path(self.data_args.cache_dir) / "gradients"
                        / f"{entry.template.item}-{role}-{short_hash([*common, entry.key])}.npy")
                batch = self._batch_size(rows[id(entry)], most)
                for done in features.collect(path, rows[id(entry)], first[id(entry)], of_model, projection, batch):
                    bar.advance(task, done)
                for name in costs:
                    costs[name] += features.cost(path)[name]
                found[role][item].append(features.read_features(path))
        if not self.options.project_dim:
            features.shrink(found["train"], found["validation"])
        tokens = sum(len(row["input_ids"]) for part in rows.values() for row in part)
        costs["flops"] = 6 * tokens * model.num_parameters(exclude_embeddings=True)  # as the trainer counts
        log.info("gradients of %d rows, %.1f s", sum(map(len, rows.values())), costs["seconds"])
        return Fits(found["train"], found["validation"], self.options.fit,
                    getattr(self.data_args, "mixing", "proportional"),
                    getattr(self.data_args, "mixing_temperature", 1.0)), costs

    def _batch_size(self, rows: list[dict], most: int) -> int:
        """As many rows, of which the first is the longest, as take no more room than a training batch of long ones."""
        room = self.args.per_device_train_batch_size * self.data_args.max_source_length
        return max(1, min(most, room // len(rows[0]["input_ids"])))

    def _sample(self, sets, rows, first, seed: int, most: int) -> Iterator[tuple[list[dict], bool]]:
        """Batches of training rows of all items, as many of each as of any other."""
        from src.estimate import features

        train = [entry for role, _, entry in sets if role == "train"]
        for entry in train:
            part = rows[id(entry)]
            drawn = random.Random(f"scales {seed}").sample(part, min(len(part), -(-features.SAMPLE // len(train))))
            size = self._batch_size(part, most)
            for start in range(0, len(drawn), size):
                yield drawn[start:start + size], first[id(entry)]

    def _fit(self, fits, costs: dict, start, data) -> None:
        """Predict all subsets and write their rows."""
        began, cpu = time.time(), time.process_time()
        strength, how, level = self._strength(fits)
        predicted = {members: fits.predict(members, [strength]) for members in self.plan}
        costs["fits"] = {"seconds": time.time() - began, "cpu_seconds": time.process_time() - cpu, "flops": sum(
            4 * part.features.size * (strength if fits.kind == "descent" else 100)
            for members in self.plan for item in members for part in fits.train[item])}
        record = start.describe(data)
        name, items = f"estimate-s{start.args.seed}", {item.name: item for item in self.items}
        options = {key: value for key, value in vars(self.options).items()
                   if key in ("start_from", "project_dim", "fit", "strength")}
        rows = []
        for members, by_item in predicted.items():
            for item_name in sorted(by_item, key=natural_order):
                item, (loss, right) = items[item_name], by_item[item_name]
                values = {"loss": loss[0] * level.get(item_name, level.get("", 1.0))}
                if all(template.answer_choices for template in item.templates):
                    values |= {metric: right[0] for metric in ("exact_match", "accuracy") if metric in item.metrics}
                rows += [start.row(item) | {
                    "run_id": name, "status": "estimated",
                    "trained_on": " ".join(sorted(members, key=natural_order)), "split": "valid",
                    "metric": metric, "value": round(float(value), 6),
                    "n_examples": sum(len(entry.dataset) for entry in data["validation"][item_name]), "steps": "",
                    "seconds": round(costs["fits"]["seconds"] / len(self.plan), 4), "commit": record["commit"],
                    "config_hash": short_hash([start.config_hash, options])} for metric, value in values.items()]
        self.results.write_run(name, rows, record | {
            "run_id": name, "status": "estimated", "estimate": vars(self.options) | {
                "strength": strength, "chosen_by": how, "levels": level, "costs": costs, "subsets": len(self.plan),
                "start": self.options.start_from or start.args.output_dir,
                "calibrated_on": [" ".join(members) for members in sorted(self.truth)]}})

    # ---- how far the fits go ---------------------------------------------------------------------------------------

    def _strength(self, fits) -> tuple[float, str, dict[str, float]]:
        """The strength of the fits, how it was chosen, and what each item's loss is multiplied by (default: 1)."""
        unit = "steps" if fits.kind == "descent" else "x the largest curvature"
        if self.options.strength is not None:
            return self.options.strength, "given", {}
        if not self.truth:
            return self._scan(fits), "scan", {}
        strengths = STEPS if fits.kind == "descent" else [1 / steps for steps in STEPS]
        predicted = {members: fits.predict(members, strengths) for members in self.truth}
        pairs = [(members, item) for members, losses in self.truth.items() for item in losses]
        true = np.array([self.truth[members][item] for members, item in pairs])
        guesses = np.array([predicted[members][item][0] for members, item in pairs])  # (pairs, strengths)
        errors = [relative_error(true, guess) for guess in guesses.T]
        best = int(np.argmin(errors))
        print(f"calibrated on {len(self.truth)} true subsets: {strengths[best]:.4g} {unit}, relative error of their "
              f"loss {errors[best]:.1%} (constant guess {relative_error(true, np.mean(true)):.1%})")
        if best in (0, len(strengths) - 1):
            warn(f"that is the {'shortest' if best == 0 else 'longest'} training that is tried; these gradients do not "
                 "follow the true trainings well")
        return strengths[best], "calibration", levels([item for _, item in pairs], np.log(true / guesses[:, best]))

    def _scan(self, fits) -> float:
        """Show clusters and evidence for each strength; return the one with the clearest structure."""
        import pandas
        from rich.console import Console
        from rich.table import Column, Table

        strengths = SCANNED if fits.kind == "descent" else [1 / steps for steps in SCANNED]
        table = Table("strength", "mean loss", "p", Column("clusters", overflow="fold"),
                      title="not calibrated on true subsets: a scan")
        predicted = {members: fits.predict(members, strengths) for members in self.plan}
        evidence = []
        for m, strength in enumerate(strengths):
            scores = pandas.DataFrame([
                {"trained_on": " ".join(members), "item": item, "metric": "loss", "value": -loss[m], "variance": np.nan}
                for members, by_item in predicted.items() for item, (loss, _) in by_item.items()])
            found = clusters(affinity.build(scores), self.args.seed) if len(self.names) > 2 else None
            evidence.append(found["p_value"] if found else 1.0)
            listed = " | ".join(map(" ".join, found["clusters"])) if found else "pairs are missing"
            table.add_row(f"{strength:.4g}", f"{-scores['value'].mean():.4f}", f"{evidence[-1]:.3f}", listed)
        Console().print(table)
        clearest = np.flatnonzero(np.array(evidence) == min(evidence))
        best = strengths[clearest[len(clearest) // 2]]
        print(f"taken: {best:.4g} (of those with the smallest p the middle one; --strength sets another). Only true "
              "trainings tell how large the losses are: train some subsets into "
              f"{self.true.folder}/ and give the same command again")
        return best

    def _say_what_next(self) -> None:
        name = self.results.save_name
        predicted = all(template.answer_choices for item in self.items for template in item.templates)
        metric = "" if predicted else " --metric loss"
        print(f"written: {len(self.plan)} estimated subsets in {self.results.runs_csv}. Next:\n"
              f"  python -m src.cluster --save_name {name}{metric}\n"
              f"  python -m src.estimate compare --save_name {self.true.save_name}")


if __name__ == "__main__":
    run_as_script(main)
