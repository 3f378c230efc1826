"""Task files: what is refused and where it says so, Natural Instructions, promptsource, rendering."""

import json
import math
import os
import time
from collections import Counter
from pathlib import Path

import numpy
import pandas
import pytest
from jinja2 import nodes
from rich.cells import cell_len

from src.cli import InputError, print_table
from src.tasks import __main__ as tasks_command
from src.tasks import sandbox
from src.tasks.catalogue import expand_names, load_task, main_metrics, task_names
from src.tasks.shorten import shorten
from src.tasks.task import instruction_items, task_items
from src.tasks.template import AlikeChoices, EmptyRow, LeftOut, Unlabelled

TASK_DIR = Path(__file__).parent.parent / "data" / "tasks"

GOOD = """\
description: A toy task.
sources:
  - {path: some/hub, config: toy}
fields: [premise, hypothesis]
answer_choices: ["yes", "no"]
target: "{{ answer_choices[label] }}"
metrics: [accuracy]
templates:
  - name: first
    input: "{{ premise }} So {{ hypothesis }}?"
  - name: second
    answer_choices: ["true", "false"]
    input: "{{ hypothesis }} given {{ premise }}?"
"""
ROW = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}


def load(folder, text, name="toy.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return load_task(name.rpartition(".")[0], folder)


def test_good_file(tmp_path):
    task = load(tmp_path, GOOD)
    assert [task.template(i).name for i in (0, 1, -1)] == ["first", "second", "none"]
    rendered = task.template(1).render(ROW)
    assert (rendered.input, rendered.target) == ("It is wet. given It rains.?", "true")
    bare = task.template(-1).render(ROW)
    assert (bare.input, bare.target) == ("premise: It rains.\nhypothesis: It is wet.", "yes")
    assert task.template(-1).item == "toy_-1"


@pytest.mark.parametrize(("old", "new", "line", "message"), [
    ("fields: [premise, hypothesis]", "fields: [premise", 5, "expected ',' or ']'"),
    ("metrics: [accuracy]", "metrcs: [accuracy]", 7, "metrcs: unknown field; did you mean 'metrics'?"),
    ("metrics: [accuracy]", "metrics: [acuracy]", 7, "metrics[0]: unknown metric 'acuracy'; did you mean 'accuracy'?"),
    ('["yes", "no"]', "[yes, no]", 5, "answer_choices[0]: must be text, found True; put yes, no and numbers in quotes"),
    ('["true", "false"]', '["true", false]', 12, "templates[1].answer_choices[1]: must be text, found False"),
    ('target: "{{ answer_choices[label] }}"', 'target: "{{ label"', 6, "target: template does not parse"),
    ("{{ hypothesis }} given", "{{ hypothesis | uper }} given", 13, "templates[1].input: template does not parse: No "),
    ("name: second", "name: first", 11, "templates[1].name: 'first' is also the name of template 0"),
    ("name: second", "name: the second", 11, "templates[1].name: must be one word"),
    ("    input: \"{{ hypothesis", "    inptu: x\n    input: \"{{ hypothesis", 13, "did you mean 'input'?"),
    ("config: toy", "config: no", 3, "sources[0].config: must be text, found False"),
    ("metrics: [accuracy]", "metrics: [accuracy]\nbare: '{{ a b }}'", 8, "bare: template does not parse"),
    ("metrics: [accuracy]", "metrics: [accuracy]\ngroup: 8", 8, "group: must be 0 to 7"),
    ("description: A toy task.", "other: 1", 1, "other: unknown field"),
])
def test_errors_name_file_line_and_field(tmp_path, old, new, line, message):
    assert GOOD.count(old) == 1
    with pytest.raises(InputError) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert f"{tmp_path / 'toy.yaml'}, line {line}: " in str(error.value) and message in str(error.value)


def test_what_is_no_task_file(tmp_path):
    for text, message in (("", "a task file is a mapping"), ("- a", "a task file is a mapping"),
                          ("a: \x01", "special characters are not allowed")):
        with pytest.raises(InputError, match=message):
            load(tmp_path, text)
    with pytest.raises(InputError, match="field 'fields' is missing"):
        load(tmp_path, "description: x\nsources:\n")
    assert load(tmp_path, GOOD.replace("  - {path: some/hub, config: toy}\n", "")).sources == ()


def test_metrics_over_classes_need_fixed_choices(tmp_path):
    text = GOOD.replace("[accuracy]", "[accuracy, matthews]")
    assert load(tmp_path, text).metrics == ("accuracy", "matthews")
    with pytest.raises(InputError, match=r"line 7: metrics.1.: matthews needs fixed .* 'second'"):
        load(tmp_path, text.replace('["true", "false"]', '"[premise, hypothesis]"'))


def test_nearest_names_and_indices():
    with pytest.raises(InputError, match=r"unknown task 'rt' .* did you mean 'rte'?"):
        load_task("rt", TASK_DIR)
    with pytest.raises(InputError, match=r"--template_idx 99: task 'rte' has templates 0 to \d+, and -1"):
        load_task("rte", TASK_DIR).template(99)
    with pytest.raises(InputError, match="--template_idx -2"):
        load_task("rte", TASK_DIR).template(-2)
    with pytest.raises(InputError, match="--task_dir nowhere"):
        task_names("nowhere")


def test_expand_names(tmp_path):
    (tmp_path / "list.txt").write_text("rte cb\nboolq\n")
    assert expand_names(["w*c", f"@{tmp_path}/list.txt"], TASK_DIR) == ["wic", "rte", "cb", "boolq"]
    with pytest.raises(InputError, match="'rte' is given 2 times"):
        expand_names(["rt*", "rte"], TASK_DIR)
    with pytest.raises(InputError, match=r"unknown task 'bolq' .*did you mean 'boolq'"):
        expand_names(["bolq"], TASK_DIR)
    with pytest.raises(InputError, match=r"'zz\*' gives no task"):
        expand_names(["zz*"], TASK_DIR)
    with pytest.raises(InputError, match=r"@nowhere.txt: cannot read"):
        expand_names(["@nowhere.txt"], TASK_DIR)


@pytest.mark.parametrize("name", ["my task", "x#y", "-toy", "toy\x07", "t" * 101])
def test_task_files_with_names_against_the_rule(tmp_path, name):
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / f"{name}.yaml").write_text(GOOD)
    assert expand_names(["g*d"], tmp_path) == ["good"]  # what is not asked for harms nobody
    for use in (lambda: load_task(name, tmp_path), lambda: expand_names([name], tmp_path),
                lambda: expand_names(["*"], tmp_path)):
        with pytest.raises(InputError, match=r"\.yaml: the task name '.*' must be a plain file name: ") as error:
            use()
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_names_of_other_scripts(tmp_path):
    for name in ("कीमत", "новости_2", "v1.5"):
        load(tmp_path, GOOD.replace("name: first", f"name: {name}x"), f"{name}.yaml")
        assert load_task(name, tmp_path).template(0).name == f"{name}x"
    for name in ("a#b", "two words", "a/b", "-a", ".a"):
        with pytest.raises(InputError, match=r"toy.yaml, line 9: templates\[0\].name: must be one word"):
            load(tmp_path, GOOD.replace("name: first", f"name: '{name}'"))


def test_a_task_named_like_a_template(tmp_path):
    tasks = [load(tmp_path, GOOD, f"{name}.yaml") for name in ("squad", "squad_1", "squad_7")]
    with pytest.raises(InputError, match=r"'squad_1' is both a task \(.*squad_1.yaml\) and template 1 of task 'squad'"):
        task_items(tasks, [0])
    with pytest.raises(InputError, match="'squad_1' is both"):
        task_items(tasks[1::-1], [1])
    assert [item.name for item in task_items(tasks[::2], [0, 1])] == ["squad", "squad_7"]  # squad has no template 7
    assert [item.name for item in instruction_items(tasks[0], [0, 1, -1])] == ["squad_0", "squad_1", "squad_-1"]
    assert main_metrics(["squad_1", "squad_0"], tmp_path) == {"squad_1": "accuracy", "squad_0": "accuracy"}
    load(tmp_path, GOOD.replace("[accuracy]", "[f1]"), "squad_1.yaml")
    assert main_metrics(["squad_1", "squad_0"], tmp_path) == {"squad_1": "f1", "squad_0": "accuracy"}


@pytest.mark.parametrize(("content", "message"), [
    ("täsk".encode("latin-1"), r"list.txt, line 1: not UTF-8: byte 0xe4"),
    (b"rte\n\ncb\n\xff", "line 4: not UTF-8: byte 0xff")])
def test_lists_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        expand_names([f"@{tmp_path}/list.txt"], TASK_DIR)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfrte cb\r\n")
    assert expand_names([f"@{tmp_path}/list.txt"], TASK_DIR) == ["rte", "cb"]
    for name, make in (("pipe", os.mkfifo), ("folder", os.mkdir)):
        make(tmp_path / name)
        with pytest.raises(InputError, match="cannot read the list of tasks: not a file"):
            expand_names([f"@{tmp_path}/{name}"], TASK_DIR)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot read the list of tasks: "):
        expand_names([f"@{tmp_path}/loop"], TASK_DIR)


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_rendered(tmp_path):
    template = load(tmp_path, GOOD).template(0)
    with pytest.raises(InputError, match=r"template 0 \(first\): field 'hypothesis' is missing .*label, premise"):
        template.render({"premise": "a", "label": 0})
    for label in (None, -1, -1.0):
        assert not template.is_labelled({**ROW, "label": label})
        with pytest.raises(InputError, match="no gold label"):
            template.render({**ROW, "label": label})
    assert template.is_labelled(ROW)
    with pytest.raises(InputError, match="has no element 2") as error:  # a label without a choice is no empty row
        template.render({**ROW, "label": 2})
    assert not isinstance(error.value, EmptyRow)
    with pytest.raises(EmptyRow, match="field 'premise' is null"):
        template.render({**ROW, "premise": None})
    bare = load(tmp_path, GOOD.replace("[premise, hypothesis]", "[premise]")).bare
    with pytest.raises(EmptyRow, match="input is empty"):
        bare.render({**ROW, "premise": "  "})


def test_references_and_choices_of_the_row(tmp_path):
    task = load(tmp_path, GOOD.replace('["yes", "no"]', '"[a, b]"').replace(
        "metrics:", "references: \"[answer_choices[label], alias | upper]\"\nmetrics:"))
    row = {**ROW, "a": "left", "b": "right", "label": 1, "alias": "r", "self": "a column may have any name"}
    rendered = task.template(0).render(row)
    assert (rendered.target, rendered.references) == ("right", ("right", "R"))
    assert task.template(0).variables == {"premise", "hypothesis", "a", "b", "label", "alias"}
    assert task.template(1).render(row).references == ("false", "R")  # its own choices go before the task's
    with pytest.raises(InputError, match=r"rows.jsonl: task 'toy', template 0 .* needs column 'alias'.*found: a, b"):
        task.template(0).check_columns(["a", "b", "label", *ROW], "rows.jsonl")


def test_what_templates_raise_is_bad_input(tmp_path):
    template = load(tmp_path, GOOD.replace("{{ premise }} So", "{{ 1 / label }}")).template(0)
    with pytest.raises(InputError, match="division by zero"):
        template.render(ROW)
    unsafe = load(tmp_path, GOOD.replace("{{ premise }} So", "{{ premise.__class__.__mro__ }}")).template(0)
    with pytest.raises(InputError, match="unsafe"):
        unsafe.render(ROW)


def template_of(folder, target="{{ answer_choices[label] }}", choices='["yes", "no"]', extra="", **parts):
    text = GOOD.replace('"{{ answer_choices[label] }}"', json.dumps(target)).replace('["yes", "no"]', choices)
    for old, new in parts.items():
        text = text.replace(f"{{{{ {old} }}}} So", new)
    return load(folder, text.replace("metrics:", f"{extra}metrics:")).template(0)


@pytest.mark.parametrize("value", [None, math.nan, pandas.NA, pandas.NaT, numpy.float32("nan"), "", " \n", [], [""],
                                   [None, ""], {"text": [], "start": []}])
def test_what_is_no_gold_answer(tmp_path, value):
    for target in ("{{ answer_choices[label] }}", "{{ label }}", "{{ label | join(', ') }}", "{{ label.text[0] }}",
                   "{% if label == 'a' %}yes{% else %}no{% endif %}", "{{ answer_choices[label | int - 1] }}"):
        template = template_of(tmp_path, target)
        assert not template.is_labelled({**ROW, "label": value})
        with pytest.raises(Unlabelled, match=r"the row has no gold label \(label = "):
            template.render({**ROW, "label": value})


def test_gold_answers_with_gaps(tmp_path):
    template = template_of(tmp_path, "{{ golds[0] }}", extra='references: "golds or [other]"\n')
    assert template.render({**ROW, "golds": ["a", "", None, " b", math.nan], "other": None}).references == ("a", "b")
    for golds in ([None, "b"], [math.nan, "b"]):
        with pytest.raises(Unlabelled, match="the target is null"):  # and not the text None or nan
            template.render({**ROW, "golds": golds, "other": "c"})
    optional = template_of(tmp_path, "{{ gold }}{% if why %} because {{ why }}{% endif %}")
    assert [optional.render({**ROW, "gold": "a", "why": why}).target for why in ("b", "", None)] \
        == ["a because b", "a", "a"]


def test_minus_one_is_a_label_where_it_is_no_index(tmp_path):
    for target, label, text in (("{{ label }}", -1.0, "-1.0"), ("{{ label * 2 }}", -1, "-2"),
                                ("{{ label }}", -3, "-3"), ("{{ {-1: 'bad', 1: 'good'}[label] }}", -1, "bad"),
                                ("{{ answer_choices[-1] }}", 0, "no")):
        template = template_of(tmp_path, target)
        assert template.is_labelled({**ROW, "label": label})
        assert template.render({**ROW, "label": label}).target == text
    for target in ("{{ answer_choices[label] }}", "{{ ['a', 'b'][label] }}", "{{ answer_choices[label | int] }}",
                   "{{ (answer_choices | list)[label] }}"):
        for label in (-1, -1.0, -100):
            assert not template_of(tmp_path, target).is_labelled({**ROW, "label": label})
    counted_from_one = template_of(tmp_path, "{{ answer_choices[label | int - 1] }}")
    with pytest.raises(InputError, match="has no element -1") as error:  # and not the last choice
        counted_from_one.render({**ROW, "label": "0"})
    assert not isinstance(error.value, LeftOut)
    assert template_of(tmp_path).render({**ROW, "label": 1.0}).target == "no"  # as pandas writes a column with gaps


def test_choices_that_are_alike(tmp_path):
    for choices, pair in (('["Up.", "down", "up"]', "'Up.' and 'up'"), ('["a  b", "c", "a b"]', "'a  b' and 'a b'")):
        with pytest.raises(InputError, match=f"toy.yaml, line 5: answer_choices: {pair} are one answer"):
            load(tmp_path, GOOD.replace('["yes", "no"]', choices))
    with pytest.raises(InputError, match=r"line 12: templates.1..answer_choices: 'T' and '\(t\)' are one"):
        load(tmp_path, GOOD.replace('["true", "false"]', '["T", "(t)"]'))
    template = template_of(tmp_path, choices='"[a, b]"')
    assert template.render({**ROW, "a": "-2", "b": "2"}).target == "-2"
    with pytest.raises(AlikeChoices, match="the answer choices 'Ann' and 'ann!' are alike"):
        template.render({**ROW, "a": "Ann", "b": "ann!"})
    outputs = [{"input": f"{i}", "output": [("Up", "up", "down")[i % 3]]} for i in range(9)]
    task = load(tmp_path, json.dumps(natural_instructions(Instances=outputs)), "other.json")
    assert task.template(0).answer_choices == () and task.metrics == ("exact_match",)


ENDLESS = ["{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
           "{% set ns = namespace(t='ab') %}{% for i in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
           "{% set ns = namespace(t='ab') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
           "{{ 'ab' * 10 ** 9 }}", "{{ [1] * 10 ** 9 }}", "{{ 10 ** 9 * [premise] }}", "{{ 7 ** (7 ** 9) }}",
           "{{ (2 ** 90000) * (2 ** 90000) }}", "{{ '%900000000d' % 1 }}", "{{ '%*d' % (900000000, 1) }}",
           "{{ '%900000000d' | format(1) }}", "{{ '{:900000000}'.format(1) }}", "{{ 'a'.ljust(10 ** 9) }}",
           "{{ premise.zfill(10 ** 9) }}", "{{ premise | center(10 ** 9) }}", "{{ premise | indent(10 ** 9) }}",
           "{{ ('ab' * 10 ** 6) | replace('a', 'ab' * 10 ** 6) }}", "{{ ('a' * 10 ** 6).replace('', 'b' * 10 ** 4) }}",
           "{{ (['a' * 10 ** 6] * 10 ** 4) | join }}", "{{ ''.join(['a' * 10 ** 6] * 10 ** 4) }}",
           "{% set a = 'b' * 10 ** 6 %}{% for i in range(9000) %}{{ a }}{% endfor %}",
           "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ [1] | batch(10 ** 9, 'a') | list }}"]


@pytest.mark.parametrize("source", ENDLESS)
def test_templates_without_end(tmp_path, monkeypatch, source):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.3)
    start = time.process_time()
    template = load(tmp_path, GOOD.replace('"{{ premise }} So {{ hypothesis }}?"', json.dumps(source + "{{ premise }}"))
                    ).template(0)
    with pytest.raises(InputError, match=r"^task 'toy', template 0 \(first\): .*") as error:
        template.render(ROW)
    assert time.process_time() - start < 20 and "\n" not in str(error.value)
    assert template_of(tmp_path).render(ROW).target == "yes"  # nothing is left behind


def test_the_limits_leave_usual_templates_alone(tmp_path):
    usual = "{{ '%.1f' % 2.25 }} {{ 3 * 'ab' }} {{ 2 ** 10 }} {{ ['a', 'b'] | join('-') }} " \
            "{{ ', '.join(['a', 'b']) }} {{ 'x' | center(3) }} {{ 'aXa' | replace('X', '-') }} {{ [1] + [2] }} " \
            "{{ 'a' ~ 1 }} {{ '%s!' | format(1) }}"
    template = template_of(tmp_path, premise=usual.replace('"', '\\"'))
    assert template.render(ROW).input == "2.2 ababab 1024 a-b a, b  x  a-a [1, 2] a1 1! It is wet.?"


def test_deep_and_huge_files(tmp_path):
    bomb = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    merges = bomb.replace(" [", "\n  <<: [")
    for text, message in ((bomb, "more than 200,000 values with what aliases"), (merges, "more than 200,000 values"),
                          ("a: &a [1, *a]\n", "line 1: an alias .* within what it stands for"),
                          ("a: " + "[" * 5000, "nested too deeply"), ("a: 1\n" * 500_000, "2,500,000 characters"),
                          ("a: " + "9" * 5000, "toy.yaml: .*digits"), ("a: 2020-13-45", "toy.yaml: month"),
                          (GOOD.replace("{{ premise }} So", "{{ " + "(" * 900 + "1" + ")" * 900 + " }}"), "line 10: "),
                          (GOOD.replace("{{ premise }} So", "{{ " + "9" * 5000 + " }}"), "line 10: templates")):
        start = time.process_time()
        with pytest.raises(InputError, match=message) as error:
            load(tmp_path, text)
        assert "\n" not in str(error.value) and time.process_time() - start < 5
    (tmp_path / "toy.yaml").write_bytes(b"description: caf\xe9\n")
    with pytest.raises(InputError, match=r"toy.yaml, line 1: not UTF-8: byte 0xe9"):
        load_task("toy", tmp_path)
    assert load(tmp_path, "\ufeff" + GOOD).name == "toy"
    for text, message in (("[" * 100_000, "deep.json, line 1: lists or mappings nested too deeply"),
                          ('{"Definition":\n ' + "9" * 5000 + "}", "deep.json, line 1: a number too long"),
                          (json.dumps(natural_instructions(Definition="a \udc80")), r"half of a character .*\\udc80")):
        with pytest.raises(InputError, match=message):
            load(tmp_path, text, "deep.json")
    assert load(tmp_path, "\ufeff" + json.dumps(natural_instructions()), "deep.json").name == "deep"


# ---- inputs that are too long --------------------------------------------------------------------------------------


def over(limit):
    """A function for shorten that counts words, with the list of what it was asked."""
    asked = []

    def too_many(text):
        asked.append(text)
        return len(text.split()) - limit

    return too_many, asked


def literals(source):
    """What a template always writes: its texts outside conditions and loops."""
    return [" ".join(data.data.split()) for node in sandbox.parse(source).body if isinstance(node, nodes.Output)
            for data in node.nodes if isinstance(data, nodes.TemplateData)]


@pytest.mark.parametrize("name", ["boolq", "multirc", "samsum", "xsum", "imdb", "fullwiki", "record", "web_nlg_en",
                                  "mnli"])
def test_the_words_of_a_template_survive(name):
    task = load_task(name, TASK_DIR)
    row = json.loads((TASK_DIR.parent.parent / "tests/rows" / name / "train.jsonl").read_text("utf-8").splitlines()[0])

    def longer(value):
        if isinstance(value, list):
            return [longer(part) for part in value] * (1 if isinstance(value[0], list) else 20)
        if isinstance(value, dict):
            return {key: longer(part) for key, part in value.items()}
        return " ".join([value] * 400) if isinstance(value, str) and len(value) > 30 else value

    for template in (task.bare, *task.templates):
        shortenable = sandbox.variables(template.input) - template.answer_variables
        long = {key: longer(value) if key in shortenable else value for key, value in row.items()}
        whole = template.render(long)
        too_many, asked = over(120)
        found = shorten(template, long, too_many)
        if len(whole.input.split()) > 120:
            assert 90 < len(found.input.split()) <= 120 and len(asked) <= 9, (template.name, len(found.input.split()))
            text, at = " ".join(found.input.split()), 0
            for part in literals(template.input):  # each after the one before
                at = text.find(part, at) + len(part)
                assert at >= len(part), (template.name, part)
        else:
            assert found == whole and len(asked) == 1
        assert (found.target, found.references) == (whole.target, whole.references)


def test_the_longest_text_is_shortened_first(tmp_path):
    template = template_of(tmp_path, premise="{{ premise }} / {{ third }} /")
    row = {**ROW, "premise": "p " * 300, "hypothesis": "h " * 100, "third": "t " * 20}
    words = {limit: Counter(shorten(template, row, over(limit)[0]).input.split()) for limit in (300, 150, 40)}
    assert words[300]["h"] == 100 and words[300]["t"] == 20 and 160 <= words[300]["p"] <= 180
    assert words[150]["t"] == 20 and abs(words[150]["p"] - words[150]["h"]) <= 1 and 53 <= words[150]["p"] <= 64
    assert max(words[40].values()) - min(words[40][name] for name in "pht") <= 1
    assert all(count["/"] == 2 for count in words.values())


def test_what_is_not_shortened(tmp_path):
    for template, row in (
            (template_of(tmp_path, "{{ premise }}", premise="{{ premise }}"), {**ROW, "premise": "p " * 90}),
            (template_of(tmp_path, premise="{% if kind == 'k ' * 90 %}so{% endif %}{{ kind }}"),
             {**ROW, "kind": "k " * 90, "hypothesis": ""}),  # it is asked for
            (template_of(tmp_path, premise="{{ 'word ' * 90 }}"), ROW),  # even without any text it is too long
            (template_of(tmp_path, premise="{{ numbers | join(' ') }}"),
             {**ROW, "numbers": [*range(90)], "hypothesis": ""})):
        assert shorten(template, row, over(50)[0]) == template.render(row)
    fragile = template_of(tmp_path, premise="{{ premise.split()[40] }} {{ premise }}")  # needs 41 words of it
    row = {**ROW, "premise": "p " * 100}
    assert len(shorten(fragile, row, over(60)[0]).input.split()) <= 60
    assert shorten(fragile, row, over(20)[0]) == fragile.render(row)


def test_lists_lose_their_ends(tmp_path):
    template = template_of(
        tmp_path, premise="{% for name, text in zip(d.name, d.text) %}[{{ name }}] {{ text }} {% endfor %}")
    row = {**ROW, "d": {"name": [f"n{i}" for i in range(30)], "text": [f"a{i} b{i} c{i}" for i in range(30)]}}
    found = shorten(template, row, over(60)[0]).input.split()
    assert 45 <= len(found) <= 60 and found[:8] == ["[n0]", "a0", "b0", "c0", "[n1]", "a1", "b1", "c1"]
    assert found[-3:] == ["It", "is", "wet.?"]


# ---- other people's formats ----------------------------------------------------------------------------------------


def natural_instructions(**changes):
    return {
        "Definition": ["Say {{ if }} the {% word %} \"is\" red \\ blue \N{CAT FACE}.", "Colour?"],
        "Positive Examples": [],
        "Instances": [{"input": f"thing {i}", "output": [("red", "blue")[i % 2], "Any"]} for i in range(10)],
    } | changes


def test_natural_instructions(tmp_path):
    task = load(tmp_path, json.dumps(natural_instructions()), "toy.json")
    rows = task.embedded
    assert {split: len(part) for split, part in rows.items()} == {"train": 6, "validation": 2, "test": 2}
    assert sorted(row["input"] for part in rows.values() for row in part) == [f"thing {i}" for i in range(10)]
    assert load(tmp_path, json.dumps(natural_instructions()), "toy.json").embedded == rows
    rendered = task.template(0).render({"input": "thing 0", "output": ["red", "Any"]})
    # Braces, quotes and what lies beyond 16 bits stay text.
    assert rendered.input == "Say {{ if }} the {% word %} \"is\" red \\ blue \N{CAT FACE}.\n\nthing 0"
    assert (rendered.target, rendered.references) == ("red", ("red", "Any"))
    assert task.template(1).name == "definition_1" and task.template(1).answer_choices == ("Any", "blue", "red")
    assert task.template(-1).render({"input": "a", "output": ["b"]}).input == "a"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_natural_instructions_with_examples(tmp_path, count):
    """Behind the definitions, so that their indices stay, a template with as many examples as given, two at most."""
    examples = [{"input": f"{{{{ sky }}}} {i} ", "output": f"blue {i}", "explanation": "no"} for i in range(count)]
    task = load(tmp_path, json.dumps(natural_instructions(**{"Positive Examples": examples})), "toy.json")
    assert [template.name for template in task.templates] == [
        "definition_0", "definition_1", *["examples"] * (count > 0)]
    if count:
        row = {"input": "thing 0", "output": ["red"]}
        shown = "".join(f"Given: {{{{ sky }}}} {i}\nAnswer: blue {i}\n\n" for i in range(min(count, 2)))
        rendered = task.template(2).render(row)
        assert rendered.target == "red" and rendered.input == (
            "Say {{ if }} the {% word %} \"is\" red \\ blue \N{CAT FACE}.\n\nThis is how it is done:\n\n" + shown
            + "Now it is your turn.\n\nGiven: thing 0\nAnswer:")
        assert task.template(2).answer_choices == ("Any", "blue", "red")
        long = shorten(task.template(2), row | {"input": "thing " * 400}, over(80)[0]).input
        assert long.endswith("\nAnswer:") and shown in long and len(long.split()) <= 80
    without = natural_instructions()
    del without["Positive Examples"]
    assert len(load(tmp_path, json.dumps(without), "other.json").templates) == 2


def test_broken_natural_instructions(tmp_path):
    whole = json.dumps(natural_instructions(), indent=1)
    half = whole[: len(whole) // 2]
    with pytest.raises(InputError) as error:
        load(tmp_path, half, "toy.json")
    line = half.count("\n") + 1
    assert f"toy.json, line {line}: not a whole JSON file" in str(error.value)
    for changes, message in (({"Definition": []}, "'Definition' is missing or empty"),
                             ({"Definition": [1]}, "Definition must be text"),
                             ({"Positive Examples": [{"input": "a"}]}, r"Positive Examples\[0\] needs"),
                             ({"Positive Examples": {"input": " ", "output": "b"}}, r"Positive Examples\[0\] needs"),
                             ({"Instances": {"a": 1}}, r"Instances\[0\] needs"),
                             ({"Instances": [{"input": "a", "output": []}]}, r"Instances\[0\] needs"),
                             ({"Instances": [{"input": "a", "output": [1]}]}, r"Instances\[0\] needs"),
                             ({"Instances": [{"input": "a", "output": "b"}, "c"]}, r"Instances\[1\] needs")):
        with pytest.raises(InputError, match=message):
            load(tmp_path, json.dumps(natural_instructions(**changes)), "toy.json")


PROMPTSOURCE = """\
dataset: toy
templates:
  b-id: !Template
    answer_choices: 'Yes ||| No'
    jinja: '{{ premise }} So {{ hypothesis }}? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Accuracy]
    name: a fixed one
  a-id: !Template
    answer_choices: '{{ premise }} ||| {{ hypothesis }}'
    jinja: '{{ answer_choices | join(" or ") }}? ||| {% if label != -1 %}{{ answer_choices[label] }}{% endif %}'
    name: of the row
  c-id: !Template
    answer_choices: '{{ [premise, hypothesis] | join("|||") }}'
    jinja: |-
      {% if label == 0 %}Which? {{ hypothesis }} ||| {{ premise }}{% endif %}
    name: whole in an if
  d-id: !Template
    answer_choices: null
    jinja: '{% set end = premise[-5:] %}Begin: {{ premise[:-5] }} ||| {{ end }}'
    name: set in the input
"""


def test_promptsource(tmp_path):
    (tmp_path / "prompts").mkdir()
    path = tmp_path / "prompts" / "templates.yaml"
    path.write_text(PROMPTSOURCE)
    text = GOOD.partition("templates:")[0] + "templates_from: prompts/templates.yaml\n"
    task = load(tmp_path, text)
    rendered = {t.name: t.render({**ROW, "label": 0}) for t in task.templates}
    assert list(rendered) == ["a_fixed_one", "of_the_row", "set_in_the_input", "whole_in_an_if"]
    assert task.template(0).answer_choices == ("Yes", "No")
    assert {name: (r.input, r.target) for name, r in rendered.items()} == {
        "a_fixed_one": ("It rains. So It is wet.?", "Yes"),
        "of_the_row": ("It rains. or It is wet.?", "It rains."),
        "set_in_the_input": ("Begin: It r", "ains."),
        "whole_in_an_if": ("Which? It is wet.", "It rains."),
    }
    with pytest.raises(EmptyRow):  # the if leaves nothing of this row
        task.template(3).render({**ROW, "label": 1})
    assert all(t.variables <= {"premise", "hypothesis", "label"} for t in task.templates)

    for broken, message in ((PROMPTSOURCE.replace(" So {{ hypothesis }}? |||", ""), r"'a fixed one' has no '\|\|\|'"),
                            (PROMPTSOURCE.replace("{{ end }}", "{{ end"), "'set in the input' does not parse"),
                            (PROMPTSOURCE.replace("'{{ premise }} |||", "'{{ premise }} and"), "between its answer_ch"),
                            (PROMPTSOURCE.replace("templates:", "prompts:"), "not a promptsource file: KeyError"),
                            (PROMPTSOURCE.replace("dataset: toy", "dataset: [toy"), "not a promptsource file.* line ")):
        path.write_text(broken)
        with pytest.raises(InputError, match=message):
            load(tmp_path, text)
    with pytest.raises(InputError, match="either 'templates' or 'templates_from'"):
        load(tmp_path, GOOD + "templates_from: prompts/templates.yaml\n")


# ---- tables of names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 50, 79, 80, 100, 300])
def test_list_shows_whole_names_at_any_width(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert tasks_command.main(["list"]) == 0
    words = capsys.readouterr().out.split()
    for name in task_names(TASK_DIR):
        assert name in words
        assert load_task(name, TASK_DIR).metrics[0] in words
    assert "Awesome075/multi_news_parquet" in words  # where the rows come from is a name, too


@pytest.mark.parametrize("width", [10, 30, 47, 60, 90, 200])
def test_tables_break_no_name(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["a-name-with-many-hyphens-in-it", "[bold]", "übung", "任务" * 6]
    print_table(("cluster", "members", "density"), [("0", " ".join(names), "1.5"), None, ("1", names[0], "")],
                title="clusters", caption="a word on them")
    out = capsys.readouterr().out
    words = out.replace("│", " ").replace(":", " ").split()
    assert {*names, "1.5", "density", "clusters"} <= set(words)
    if width >= 60:  # as columns, none of whose lines is longer than asked for
        assert "│" in out and max(map(cell_len, out.splitlines())) <= width


def test_a_pipe_gets_wide_lines(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("item", "trained with"), [("a", " ".join(f"task_{at}" for at in range(20)))])
    assert any(line.count("task_") == 20 for line in capsys.readouterr().out.splitlines())
