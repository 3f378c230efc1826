"""The way of a row: found, rendered, tokenised once, cached, mixed."""

import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pandas
import pytest
from conftest import family_of
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from src.cli import InputError
from src.tasks import rows
from src.tasks.catalogue import load_task
from src.tasks.read import read_rows
from src.tasks.rows import _load_from_hub, find_rows, select_rows
from src.tasks.task import Source, task_items
from src.training import families, tokenised
from src.training.experiment import Experiment
from src.training.tokenised import Preparer, mix
from tests.hub_stand_in import StandIn

ROOT = Path(__file__).parent.parent
TASK_DIR = ROOT / "data" / "tasks"
ROWS_DIR = ROOT / "tests" / "rows"

TOY = """\
description: A toy task.
fields: [text]
answer_choices: ["no", "yes"]
target: "{{ answer_choices[label] }}"
metrics: [accuracy]
templates:
  - {name: plain, input: "Is it so? {{ text }}"}
  - {name: other, input: "{{ text }} Is it so?"}
"""
WORDS = ["<pad>", "</s>", "<unk>", "no", "yes", "Is", "it", "so", "?", *(f"w{i}" for i in range(200))]


def make_tokenizer(words=tuple(WORDS)):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def toy(tmp_path):
    """A task with 20 training and 6 validation rows in files of its own; the text says which row it is."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(TOY)
    write(tmp_path, "train", [{"text": f"w{i} " * (1 + i % 4), "label": i % 2} for i in range(20)])
    write(tmp_path, "validation", [{"text": " ".join(f"w{100 + i}" for _ in range(1 + i * 5 % 7)), "label": i % 2}
                                   for i in range(6)])
    return load_task("toy", tmp_path / "tasks")


def write(folder, split, rows, task="toy"):
    path = folder / "rows" / task / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def select(task, folder, roles=("train", "validation"), seed=0, **options):
    return select_rows(task, roles, folder / "rows", folder / "cache", seed, **options)


def prepare(task, folder, tokenizer, role="train", template=0, lengths=(32, 8), overwrite=False, **options):
    preparer = Preparer(family_of(tokenizer), folder / "cache", *lengths, overwrite)
    return preparer.prepare(select(task, folder, **options)[role], task.template(template))


def numbers(selection):
    return [number for number, _ in selection.load()]


def cached(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cache" / "tokenised").glob("*.arrow")}


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_local_formats_give_the_same(tmp_path):
    task = load_task("boolq", TASK_DIR)
    rows = [json.loads(line) for line in (ROWS_DIR / "boolq" / "train.jsonl").read_text("utf-8").splitlines()]
    rows[1]["passage"] = 'Quoted "text", with commas,\nand two lines. null NA 007'
    rows[3]["label"] = None  # must not turn the other labels of the CSV column into 1.0
    frame = pandas.DataFrame(rows).astype({"label": "Int64"})
    found = {}
    for suffix in ("jsonl", "csv", "parquet"):
        (tmp_path / suffix / "boolq").mkdir(parents=True)
        path = tmp_path / suffix / "boolq" / f"train.{suffix}"
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")  # an empty last line is no row
        elif suffix == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        found[suffix] = find_rows(task, "train", tmp_path / suffix, tmp_path)
        assert found[suffix].source == str(path)
    rendered = {suffix: [task.bare.render(row) if task.bare.is_labelled(row) else None for row in source.load()]
                for suffix, source in found.items()}
    assert len(rendered["jsonl"]) == 8 and rendered["jsonl"].count(None) == 1
    assert rendered["csv"] == rendered["parquet"] == rendered["jsonl"]


@pytest.mark.parametrize(("rows", "message"), [
    ([{"txt": "a", "label": 1}], r"train.jsonl: task 'toy', template 0 \(plain\) needs column 'text', which the rows "
                                 "lack; columns found: label, txt"),
    ([{"text": "a", "label": 1}, {"label": 1}], r"train.jsonl, row 2: .*field 'text' is missing"),
    ([{"text": "a", "label": None}, {"text": None, "label": 1}, {"text": "b", "label": -1}],
     r"train.jsonl: all 3 train rows are left out under .*: 1 without text, 2 without a gold label"),
    ([{"text": "a", "label": 1}, ["a"]], "train.jsonl, line 2: a row must be a JSON object"),
    ([], "train.jsonl gives no train rows"),
])
def test_rows_that_are_refused(tmp_path, toy, tokenizer, rows, message):
    write(tmp_path, "train", rows)
    with pytest.raises(InputError, match=message):
        prepare(toy, tmp_path, tokenizer)
    assert not cached(tmp_path)


def test_files_that_are_refused(tmp_path, toy):
    path = tmp_path / "rows" / "toy" / "train.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "la')
    with pytest.raises(InputError, match=r"train\.jsonl, line 2: not valid JSON"):
        select(toy, tmp_path)["train"].load()
    path.rename(path.with_suffix(".json"))
    with pytest.raises(InputError, match=r"needs .*train\.jsonl .*found there: train\.json, validation"):
        select(toy, tmp_path)
    assert numbers(select(toy, tmp_path, ["validation"])["validation"]) == [1, 2, 3, 4, 5, 6]  # needs no training rows


def read(folder, content, name="train.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path)


def test_csv_keeps_text(tmp_path):
    text = """id,text,label,code,share,flag,gap
1,"a, ""b""
c",-1,007,1.50,TRUE,
20,NA,0,12,2,False,null
"""
    rows = [{"id": 1, "text": 'a, "b"\nc', "label": -1, "code": "007", "share": "1.50", "flag": "TRUE", "gap": None},
            {"id": 20, "text": "NA", "label": 0, "code": "12", "share": "2", "flag": "False", "gap": "null"}]
    assert read(tmp_path, text) == read(tmp_path, "\ufeff" + text.replace(",\n", ",\r\n")) == rows
    for odd in ("1e3", "+4", "-0", "1 ", "1.0", "0x1", "1_0", "٣", "9" * 19):
        assert [row["a"] for row in read(tmp_path, f"a,b\n4,x\n{odd},y\n")] == ["4", odd]
    assert [row["a"] for row in read(tmp_path, "a,b\n4,x\n,y\n-12,z\n")] == [4, None, -12]
    long = "a,b\n" + "".join(f"{i},{i}\n" for i in range(120_000)) + "x,1\n"  # one rule for files of any size
    rows = read(tmp_path, long)
    assert rows[0] == {"a": "0", "b": 0} and rows[-1] == {"a": "x", "b": 1} and rows[-2]["a"] == "119999"
    assert read(tmp_path, f"a,b\n{'w ' * 200_000},1\n")[0]["a"].count("w") == 200_000
    assert read(tmp_path, "a\n\nx\x0cy\n\n") == [{"a": "x\x0cy"}]


@pytest.mark.parametrize(("content", "message"), [
    ("a,b\nx,1\n\"two\nlines\",2\ny,z,3\n", "train.csv, line 5: 3 fields, but the header has 2"),
    ("a,b\n\nx\n", "train.csv, line 3: 1 fields, but the header has 2"),
    ("a,b,a\n1,2,3\n", "train.csv, line 1: two columns are named 'a'"),
    ("a,,b\n1,2,3\n", "train.csv, line 1: a column has no name"),
    ('a,b\nx,"1\ny,2\n', "train.csv, line 2: not valid CSV: unexpected end of data"),
    ("a,b\nx,1\nÉtienne,2\n".encode("latin-1"), "train.csv, line 3: not UTF-8: byte 0xc9"),
    ("", "train.csv, line 1: no names of columns"),
])
def test_csv_that_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(("content", "message"), [
    ('{"a": "x"}\n{"a": "y \\ud83d"}\n', r"line 2: half of a character \(a lone surrogate, .ud83d\)"),
    ('{"a": 1}\n\n{"a": ' + "7" * 5000 + "}\n", "line 3: a number too long to be read"),
    ('{"a": 1}\n{"a": ' + "[" * 99_999, "line 2: lists or mappings nested too deeply"),
    (b'{"a": "x"}\n{"a": "na\xefve"}\n', "line 2: not UTF-8: byte 0xef"),
])
def test_jsonl_that_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=f"train.jsonl, {message}") as error:
        read(tmp_path, content, "train.jsonl")
    assert "\n" not in str(error.value)


def test_other_files(tmp_path):
    assert read(tmp_path, '\ufeff{"a": "\\ud83d\\ude00"}\r\n{"a": "x\u2028y"}', "train.jsonl") \
        == [{"a": "\N{GRINNING FACE}"}, {"a": "x\u2028y"}]
    with pytest.raises(InputError, match=r"train.parquet: cannot be read: .*Parquet"):
        read(tmp_path, "no parquet", "train.parquet")
    task = load_task("boolq", TASK_DIR)
    (tmp_path / "boolq" / "train.csv").mkdir(parents=True)
    (tmp_path / "boolq" / "train.jsonl").symlink_to("train.jsonl")
    with pytest.raises(InputError, match=r"found there: train.csv, train.jsonl"):
        find_rows(task, "train", tmp_path, tmp_path)


def test_rows_without_labels_are_left_out_and_counted(tmp_path, toy, tokenizer):
    labels = [0, None, 1, math.nan, -1, ""]
    write(tmp_path, "train", [{"text": f"w{i}", "label": label} for i, label in enumerate(labels)])  # NaN in the JSON
    pandas.DataFrame({"text": ["w1", "w2", "w3"], "label": [1.0, math.nan, 0.0]}).to_parquet(
        tmp_path / "rows" / "toy" / "validation.parquet")
    (tmp_path / "rows" / "toy" / "validation.jsonl").unlink()
    prepared = prepare(toy, tmp_path, tokenizer)
    assert (prepared.counts["rows"], prepared.counts["unlabelled_rows"], prepared.counts["empty_rows"]) == (2, 4, 0)
    assert [tokenizer.decode(ids) for ids in prepared.dataset["labels"]] == ["no </s>", "yes </s>"]
    prepared = prepare(toy, tmp_path, tokenizer, "validation")
    assert (prepared.counts["rows"], prepared.counts["unlabelled_rows"]) == (2, 1)
    write(tmp_path, "test", [{"text": "w1", "label": label} for label in (-1, -1, 1)])
    assert select(toy, tmp_path, ("train", "test"))["test"].rows.source.endswith("test.jsonl")  # one label is enough


def test_rows_without_text_are_left_out(tmp_path, toy, tokenizer):
    write(tmp_path, "train", [{"text": text, "label": 1} for text in ("w1", None, "w2")])
    counts = prepare(toy, tmp_path, tokenizer).counts
    assert (counts["rows"], counts["empty_rows"]) == (2, 1)


# ---- selection -----------------------------------------------------------------------------------------------------


def test_validation_cut_from_train(tmp_path, toy):
    """Test is asked for and has no labels: official validation is tested on, a slice of train validates."""
    roles = ("train", "validation", "test")
    write(tmp_path, "test", [{"text": "w1", "label": -1}] * 3)
    cut = select(toy, tmp_path, roles)
    train, validation = numbers(cut["train"]), numbers(cut["validation"])
    assert sorted(train + validation) == list(range(1, 21)) and len(validation) == 4  # a fifth at most
    assert cut["test"].rows.source.endswith("validation.jsonl") and len(cut["test"].load()) == 6
    again, other = select(toy, tmp_path, roles), select(toy, tmp_path, roles, seed=1)
    assert numbers(again["validation"]) == validation != numbers(other["validation"])
    assert numbers(again["train"]) == train
    assert again["train"].key == cut["train"].key != other["train"].key

    uncut = select(toy, tmp_path)  # test not asked for
    assert numbers(uncut["train"]) == list(range(1, 21))
    assert uncut["validation"].rows.source.endswith("validation.jsonl")
    forced = select(toy, tmp_path, validation_from_train=True)
    assert numbers(forced["validation"]) == validation
    with pytest.raises(InputError, match="--do_predict: task 'toy' has no test split with gold labels"):
        select(toy, tmp_path, roles, validation_from_train=False)


def test_labelled_test_split_is_used(tmp_path, toy):
    write(tmp_path, "test", [{"text": "w1", "label": 0}] * 3)
    found = select(toy, tmp_path, ("train", "validation", "test"))
    assert [found[role].rows.source.rpartition("/")[2] for role in found] \
        == ["train.jsonl", "validation.jsonl", "test.jsonl"]
    assert len(found["train"].load()) == 20


def test_downsample(tmp_path, toy):
    first = select(toy, tmp_path, downsample=5)
    assert len(numbers(first["train"])) == len(numbers(first["validation"])) == 5
    assert numbers(first["train"]) == sorted(set(numbers(first["train"])))
    same, other = select(toy, tmp_path, downsample=5), select(toy, tmp_path, downsample=5, seed=1)
    assert numbers(same["train"]) == numbers(first["train"]) != numbers(other["train"])
    assert same["train"].key == first["train"].key != other["train"].key
    whole = select(toy, tmp_path), select(toy, tmp_path, seed=1)  # nothing drawn: the seed is no part of the key
    assert whole[0]["train"].key == whole[1]["train"].key
    assert len(numbers(select(toy, tmp_path, downsample=1000)["train"])) == 20


def test_data_seed_fixes_the_rows_of_all_runs(tmp_path, toy, tokenizer):
    preparer = Preparer(family_of(tokenizer), tmp_path / "cache", 32, 8)
    data_args = SimpleNamespace(data_dir=tmp_path / "rows", cache_dir=tmp_path / "cache", downsample=5,
                                validation_from_train=None)

    def train_rows(seed, data_seed):
        args = SimpleNamespace(do_train=True, do_eval=True, do_predict=False, seed=seed, data_seed=data_seed,
                               score_choices=False)
        experiment = Experiment(tuple(task_items([toy], [0])), data_args, None, None, args)
        vars(experiment)["preparer"] = preparer
        prepared = experiment.rows(experiment.selections())
        return prepared["train"]["toy"][0].dataset["input_ids"][:]

    assert train_rows(1, None) != train_rows(2, None)
    assert train_rows(1, 7) == train_rows(2, 7) == train_rows(7, None)


# ---- tokenised data ------------------------------------------------------------------------------------------------


def test_what_the_model_gets(tmp_path, toy, tokenizer):
    prepared = prepare(toy, tmp_path, tokenizer)
    assert len(prepared.dataset) == 20
    assert tokenizer.decode(prepared.dataset[5]["input_ids"]) == "Is it so ? w5 w5 </s>"
    assert tokenizer.decode(prepared.dataset[5]["labels"]) == "yes </s>"
    assert prepared.dataset[5]["references"] == ["yes"]
    assert prepared.metrics == ("exact_match", "accuracy")
    assert prepared.generation_length(128) == 2 + tokenised.GENERATION_MARGIN and prepared.generation_length(3) == 3


def test_targets_that_the_tokenizer_cannot_write_are_counted(tmp_path, toy):
    """Unknown signs and special tokens are lost on the way back; references go the way that predictions go."""
    free = (tmp_path / "tasks" / "toy.yaml").read_text().replace('answer_choices: ["no", "yes"]\n', "")
    free = free.replace("{{ answer_choices[label] }}", "{{ text }}").replace("accuracy", "rouge1")
    (tmp_path / "tasks" / "free.yaml").write_text(free)
    texts = ["yes", "Is  it", "ja", "Is ja it", "Is </s> it"]  # two spaces come back as one
    for split in ("train", "validation"):
        (tmp_path / "rows" / "free").mkdir(exist_ok=True)
        (tmp_path / "rows" / "free" / f"{split}.jsonl").write_text(
            "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts))
    task = load_task("free", tmp_path / "tasks")
    entry = {role: prepare(task, tmp_path, make_tokenizer(), role) for role in ("train", "validation")}
    assert [entry[role].counts["unwritable_targets"] for role in entry] == [3, 3]
    found = {tuple(row["references"]) for row in entry["validation"].dataset}
    assert found == {("yes",), ("Is it",), ("ja",), ("Is ja it",), ("Is </s> it",)}


def test_choices_that_the_tokenizer_writes_alike_are_refused(tmp_path, toy):
    """As T5's does, whose normalisation makes one sign of two."""
    path = tmp_path / "tasks" / "toy.yaml"
    path.write_text(path.read_text().replace('["no", "yes"]', '["2", "\N{CIRCLED DIGIT TWO}"]'))
    prepare(load_task("toy", tmp_path / "tasks"), tmp_path, make_tokenizer((*WORDS, "2", "\N{CIRCLED DIGIT TWO}")))
    tokenizer = make_tokenizer((*WORDS, "2"))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(InputError, match=r"writes two of the answer choices .* as '2' and '2'"):
        prepare(load_task("toy", tmp_path / "tasks"), tmp_path, tokenizer)


def test_evaluation_rows_longest_first(tmp_path, toy, tokenizer):
    prepared = prepare(toy, tmp_path, tokenizer, "validation")
    lengths = [len(ids) for ids in prepared.dataset["input_ids"]]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 3
    for row in prepared.dataset:  # each with its own answer
        word = tokenizer.decode(row["input_ids"]).split()[4]
        answer = ["no", "yes"][int(word[1:]) % 2]
        assert row["references"] == [answer] and tokenizer.decode(row["labels"]) == f"{answer} </s>"


def test_truncation(tmp_path, toy, tokenizer):
    prepared = prepare(toy, tmp_path, tokenizer, lengths=(7, 1))
    longest = max(map(len, prepared.dataset["input_ids"]))
    assert longest == 7 and prepared.counts["shortened_inputs"] == 10 and prepared.counts["cut_inputs"] == 0
    assert prepared.counts["cut_targets"] == 20
    other = prepare(toy, tmp_path, tokenizer, template=1, lengths=(8, 8))
    assert all(tokenizer.decode(ids).endswith("Is it so ? </s>") for ids in other.dataset["input_ids"])
    assert (other.counts["shortened_inputs"], other.counts["cut_inputs"]) == (5, 0)
    bare = prepare(toy, tmp_path, tokenizer, lengths=(4, 8))  # less than the words of the template
    assert (bare.counts["shortened_inputs"], bare.counts["cut_inputs"]) == (0, 20)
    assert tokenizer.decode(bare.dataset[0]["input_ids"]) == "Is it so </s>"
    assert {ids[-1] for ids in prepared.dataset["input_ids"]} == {tokenizer.eos_token_id}
    assert set(map(tuple, prepared.dataset["labels"])) == {(tokenizer.eos_token_id,)}
    assert prepared.counts["input_tokens"] == sum(map(len, prepared.dataset["input_ids"]))


def test_cache(tmp_path, toy, tokenizer, monkeypatch):
    calls = []
    tokenise = families.EncoderDecoder.prompts
    monkeypatch.setattr(families.EncoderDecoder, "prompts", lambda self, texts: (
        calls.append(len(texts)), tokenise(self, texts))[1])

    def tokenised(**options):
        """Inputs tokenised; those by which the family looks at the tokenizer, two each time, aside."""
        calls.clear()
        prepare(toy, tmp_path, options.pop("tokenizer", tokenizer), **options)
        return sum(calls) - 2

    assert tokenised() == 20 and tokenised() == 0
    assert tokenised(seed=5) == 0 and tokenised(overwrite=True) == 20
    for change in ({"template": 1}, {"lengths": (16, 8)}, {"lengths": (32, 4)}, {"downsample": 20},
                   {"tokenizer": make_tokenizer((*WORDS, "more"))}):
        assert tokenised(**change) == 20 and tokenised(**change) == 0, change
    assert tokenised(role="validation") == 6
    write(tmp_path, "train", [{"text": "w1", "label": 0}] * 20)
    assert tokenised() == 20
    (tmp_path / "tasks" / "toy.yaml").write_text(TOY.replace("Is it so? {{", "It is so? {{"))
    changed = load_task("toy", tmp_path / "tasks")
    calls.clear()
    prepare(changed, tmp_path, tokenizer)
    assert sum(calls) - 2 == 20


def test_overwrite_cache_rebuilds_once(tmp_path, toy, tokenizer):
    prepare(toy, tmp_path, tokenizer)
    old = cached(tmp_path)
    preparer = Preparer(family_of(tokenizer), tmp_path / "cache", 32, 8, overwrite_cache=True)
    times = []
    for _ in range(2):  # as in two runs of one experiment
        preparer.prepare(select(toy, tmp_path)["train"], toy.template(0))
        times.append(cached(tmp_path))
    assert times[0] == times[1] != old and times[0].keys() == old.keys()


def test_equal_splits_are_each_rebuilt(tmp_path, toy, tokenizer):
    """Training on the validation rows: two roles, one content."""
    rows = [{"text": "w1", "label": 0}, {"text": "w2 w3", "label": 1}]
    write(tmp_path, "train", rows)
    write(tmp_path, "validation", rows)
    for role in ("train", "validation"):
        prepare(toy, tmp_path, tokenizer, role)
    old = cached(tmp_path)
    preparer = Preparer(family_of(tokenizer), tmp_path / "cache", 32, 8, overwrite_cache=True)
    for role in ("train", "validation"):
        preparer.prepare(select(toy, tmp_path)[role], toy.template(0))
    assert all(cached(tmp_path)[name] != old[name] for name in old) and len(old) == 2


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize("kept", ["nothing", "half", "all but a byte", "is gone"])
def test_a_damaged_cache_is_made_again(tmp_path, toy, tokenizer, suffix, kept, capsys):
    before = prepare(toy, tmp_path, tokenizer)
    (path,) = (tmp_path / "cache/tokenised").glob(f"*{suffix}")
    whole = path.read_bytes()
    path.unlink()
    if kept != "is gone":
        path.write_bytes({"nothing": b"", "half": whole[:len(whole) // 2], "all but a byte": whole[:-1]}[kept])
    after = prepare(toy, tmp_path, tokenizer)
    assert after.dataset[:] == before.dataset[:] and after.counts == before.counts
    assert len(list((tmp_path / "cache/tokenised").iterdir())) == 3  # with its lock
    is_new = path.read_bytes() == whole
    assert is_new or kept == "all but a byte"  # the last bytes of an Arrow file say no more than that it ends
    assert ("not whole" in capsys.readouterr().err) == (is_new and (suffix, kept) != (".json", "is gone"))
    prepare(toy, tmp_path, tokenizer)
    assert capsys.readouterr().err == ""


def _prepare_slowly(folder, barrier, queue):
    task = load_task("toy", folder / "tasks")
    built = []
    render = tokenised.render_rows

    def slowly(*arguments):
        built.append(1)
        time.sleep(0.3)
        return render(*arguments)

    tokenised.render_rows = slowly
    barrier.wait()
    prepared = prepare(task, folder, make_tokenizer())
    queue.put((len(built), prepared.dataset["input_ids"][:]))


def test_two_processes_build_one_file(tmp_path, toy):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare_slowly, args=(tmp_path, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    (built, first), (built_too, second) = (queue.get(timeout=20) for _ in processes)
    for process in processes:
        process.join()
    assert sorted([built, built_too]) == [0, 1] and first == second
    assert len(cached(tmp_path)) == 1


# ---- the hub -------------------------------------------------------------------------------------------------------

README = """\
---
configs:
- config_name: rte
  data_files:
  - {split: train, path: rte/train.parquet}
  - {split: validation, path: rte/validation.parquet}
- config_name: cb
  data_files:
  - {split: train, path: cb/train.parquet}
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder named and laid out like the hub's aps/super_glue, in the working directory; the hub is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = Path("aps/super_glue")
    for config in ("rte", "cb"):
        (folder / config).mkdir(parents=True)
        for split in ("train", "validation"):
            frame = pandas.read_json(ROWS_DIR / config / f"{split}.jsonl", lines=True)
            frame.to_parquet(folder / config / f"{split}.parquet")
    (folder / "README.md").write_text(README)
    return tmp_path


def test_hub_form(hub, tokenizer, capsys):
    task = load_task("rte", TASK_DIR)
    found = find_rows(task, "train", "nowhere", hub / "cache")
    assert found.source == "aps/super_glue (rte)"
    lines = (ROWS_DIR / "rte" / "train.jsonl").read_text("utf-8").splitlines()
    expected = [task.bare.render(json.loads(line)) for line in lines]
    assert [task.bare.render(row) for row in found.load()] == expected
    assert "aps/super_glue (rte) has 8 train rows, 2490 were expected" in capsys.readouterr().err
    assert find_rows(task, "train", "nowhere", hub / "cache").fingerprint == found.fingerprint
    assert find_rows(task, "test", "nowhere", hub / "cache") is None

    cut = select(task, hub, ("train", "validation", "test"))
    assert len(cut["train"].load()) == 7 and len(cut["validation"].load()) == 1 and len(cut["test"].load()) == 4
    prepared = prepare(task, hub, tokenizer, "validation")
    assert prepared.source == "aps/super_glue (rte)" and len(prepared.dataset) == 4

    Path("rows/rte").mkdir(parents=True)  # local rows go before the hub
    Path("rows/rte/train.csv").write_text("premise,hypothesis,label\na,b,0\n")
    assert find_rows(task, "train", "rows", hub / "cache").source == "rows/rte/train.csv"


def test_sources_in_order(hub):
    text = (TASK_DIR / "rte.yaml").read_text()
    sources = "sources:\n  - {path: missing/rte}\n  - {path: aps/super_glue, config: rtx}\n" \
              "  - {path: aps/super_glue, config: rte}\n"
    Path("tasks").mkdir()
    Path("tasks/rte.yaml").write_text(text[:text.index("sources:")] + sources + text[text.index("splits:"):])
    assert find_rows(load_task("rte", "tasks"), "train", "nowhere", hub / "cache").source == "aps/super_glue (rte)"


def test_hub_out_of_reach(tmp_path, monkeypatch):
    """Nothing can be reached: one error that lists every source, soon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    rows._set_offline_where_out_of_reach.cache_clear()
    task = load_task("boolq", TASK_DIR)
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        find_rows(task, "train", "nowhere", tmp_path / "cache")
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert "task 'boolq': no rows for split 'train'. There is no folder nowhere/boolq (--data_dir)" in message
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:-1]] == [s.label for s in task.sources]
    rows._set_offline_where_out_of_reach.cache_clear()


FROM_HUB = """
import json, sys
from src.cli import InputError
from src.tasks.catalogue import load_task, task_names
from src.tasks.rows import find_rows
for name in task_names("tasks"):
    for split in ("train", "validation", "test"):
        try:
            rows = find_rows(load_task(name, "tasks"), split, "nowhere", "cache" if name < "z" else "elsewhere")
            found = rows and [rows.source, rows.fingerprint, [row["text"] for row in rows.load()]]
        except InputError as error:
            found = str(error)
        print(json.dumps([name + " " + split, found]))
"""


def from_hub(folder, url, **sources):
    """What a process of its own finds on the hub at `url` for tasks of these names and sources; its standard error."""
    (folder / "tasks").mkdir(exist_ok=True)
    for name, source in sources.items():
        (folder / "tasks" / f"{name}.yaml").write_text(TOY.replace(
            "fields:", f"sources: {json.dumps([source])}\nsplits: {{train: train, validation: dev}}\nfields:"))
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT),
                                "HF_HOME": str(folder / "home")}
    done = subprocess.run([sys.executable, "-c", FROM_HUB], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines())), done.stderr


def parquet(*texts):
    file = io.BytesIO()
    pandas.DataFrame({"text": texts, "label": [0] * len(texts)}).to_parquet(file)
    return file.getvalue()


CONVERTED = {
    "data_en/train/0001.parquet": parquet("c"), "data_en/train/0000.parquet": parquet("a", "b"),
    "data_en/dev/0000.parquet": parquet("d"), "data_en_hard/train/0000.parquet": parquet("e", "f"),
    "data_en/train_small/0000.parquet": parquet("g"), "data_en_hard/partial-dev/0000.parquet": parquet("h"),
    "data_en_hard/dev_x/0000.parquet": parquet("i"), ".gitattributes": b"", "data_en/train/readme.md": b"x",
}


def test_converted_files_of_the_hub(tmp_path):
    """Exactly the files of one configuration and split, and again when the hub is gone."""
    easy, hard, none, any_ = ({"path": "some/data", "revision": "refs/convert/parquet", **config} for config in (
        {"config": "data_en"}, {"config": "data_en_hard"}, {"config": "data_e"}, {}))
    with StandIn("some/data", CONVERTED) as hub:
        found, _ = from_hub(tmp_path, hub.url, easy=easy, hard=hard, none=none, some=any_, zeasy=easy)
    assert [found[f"easy {split}"] and found[f"easy {split}"][2] for split in ("train", "validation", "test")] \
        == [["a", "b", "c"], ["d"], None]
    assert found["easy train"][0] == "some/data (data_en, refs/convert/parquet)"
    assert found["hard train"][2] == ["e", "f"] and found["hard validation"][2] == ["h"]  # partial-dev
    assert len({found[f"{name} {split}"][1] for name in ("easy", "hard") for split in ("train", "validation")}) == 4
    assert found["zeasy train"] == found["easy train"]  # where rows lie is no part of the fingerprint
    assert "some/data (data_e, refs/convert/parquet): has no data_e/train/*.parquet" in found["none train"]
    assert "has the split train in the configurations data_en, data_en_hard: name one" in found["some train"]
    parts = sorted(name for name in CONVERTED if name.startswith(("data_en/train/0", "data_en/dev/")))
    assert sorted(name for name in set(hub.asked) if name.startswith("data_en/")) == parts
    assert not {"data_en/train_small/0000.parquet", "data_en_hard/dev_x/0000.parquet"} & set(hub.asked)

    again, errors = from_hub(tmp_path, hub.url)
    assert {name: rows for name, rows in again.items() if "easy" in name or "hard" in name} \
        == {name: rows for name, rows in found.items() if "easy" in name or "hard" in name}
    assert "the hub is out of reach" in errors


def test_converted_files_of_the_only_configuration(tmp_path):
    for name in ("default/train/0000.parquet", "default/train-x/0000.parquet"):
        (tmp_path / "some/data" / name).parent.mkdir(parents=True)
        (tmp_path / "some/data" / name).write_bytes(CONVERTED["data_en/train/0000.parquet"])
    rows, _ = _load_from_hub(Source(str(tmp_path / "some/data"), None, "refs/convert/parquet"), "train",
                             str(tmp_path / "cache"))
    assert rows["text"][:] == ["a", "b"]


# ---- mix -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path, tokenizer):
    """Prepared training rows of a (80 rows), b (20 rows) and again a under another template; words tell whose."""
    (tmp_path / "tasks").mkdir()
    entries = []
    for name, count, offset in (("a", 80, 0), ("b", 20, 100)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TOY)
        for split in ("train", "validation"):
            write(tmp_path, split, [{"text": f"w{offset + i}", "label": 0} for i in range(count)], name)
        entries.append(prepare(load_task(name, tmp_path / "tasks"), tmp_path, tokenizer))
    entries.append(prepare(load_task("a", tmp_path / "tasks"), tmp_path, tokenizer, template=1))
    return entries


def shares(mixed, tokenizer):
    words = [next(w for w in tokenizer.decode(ids).split() if w[1:].isdecimal()) for ids in mixed["input_ids"]]
    tasks = Counter("a" if int(word[1:]) < 100 else "b" for word in words)
    return tasks, set(words)


def test_proportional_mix_is_each_row_once(three, tokenizer):
    tasks, words = shares(mix(three[:2]), tokenizer)
    assert tasks == {"a": 80, "b": 20} and len(words) == 100
    assert shares(mix(three), tokenizer)[0] == {"a": 160, "b": 20}


@pytest.mark.parametrize(("mixing", "temperature", "share"), [
    ("equal", 2.0, 0.5), ("temperature", 2.0, 1 / 3), ("temperature", 1.0, 0.2)])
def test_mixing_repeats_small_tasks(three, tokenizer, mixing, temperature, share):
    mixed = mix(three[:2], mixing, temperature, seed=1)
    tasks, words = shares(mixed, tokenizer)
    assert tasks["b"] / tasks.total() == pytest.approx(share, abs=0.1) and len(words) == 100
    assert mixed["input_ids"][:] == mix(three[:2], mixing, temperature, seed=1)["input_ids"][:]
    assert mixed["input_ids"][:] != mix(three[:2], mixing, temperature, seed=2)["input_ids"][:]


def test_templates_of_a_task_count_as_one_task(three, tokenizer):
    tasks, _ = shares(mix(three, "equal", seed=1), tokenizer)
    assert tasks["a"] / tasks.total() == pytest.approx(0.5, abs=0.1)
