"""The catalogue in data/tasks: every file loads and every template renders rows of our own making (tests/rows)."""

import json
from pathlib import Path

import pytest

from src.metrics import METRICS
from src.tasks.catalogue import load_task, task_names
from src.tasks.task import GROUPS, SPLITS

ROOT = Path(__file__).parent.parent
TASK_DIR = ROOT / "data" / "tasks"
ROWS_DIR = ROOT / "tests" / "rows"

# As COMMANDS.md lists them for users of --target_task_group.
GROUP_MEMBERS = {
    0: {"sst2", "imdb", "yelp_review_full"},
    1: {"stsb", "qqp", "wic"},
    2: {"mnli", "rte", "wnli"},
    3: {"boolq", "copa", "multirc", "record"},
    4: {"social_i_qa", "wiki_qa", "fullwiki"},
    5: {"wsc.fixed", "winogrande_debiased", "quoref"},
    6: {"xsum", "samsum", "multi_news"},
    7: {"e2e_nlg_cleaned", "web_nlg_en", "common_gen"},
    None: {"cola", "mrpc", "qnli", "cb"},
}
NAMES = sorted(set().union(*GROUP_MEMBERS.values()))
MANY_TEMPLATES = ("rte", "boolq", "wic", "mnli")  # the tasks whose instructions users sample from
# The demo tasks and Natural Instructions files that may lie beside the catalogue have no rows here.
EXAMPLE_ROWS = {
    name: {
        split: [json.loads(line) for line in (ROWS_DIR / name / f"{split}.jsonl").read_text("utf-8").splitlines()]
        for split in ("train", "validation")
    }
    for name in NAMES
}

each_task = pytest.mark.parametrize("name", NAMES)


def templates(task):
    return [task.bare, *task.templates]


def rows(name):
    return EXAMPLE_ROWS[name]["train"] + EXAMPLE_ROWS[name]["validation"]


def test_groups_are_those_of_the_commands():
    assert set(NAMES) <= set(task_names(TASK_DIR))
    groups = {name: load_task(name, TASK_DIR).group for name in NAMES}
    assert groups == {name: group for group, members in GROUP_MEMBERS.items() for name in members}
    assert len(GROUPS) == 8


@each_task
def test_facts(name):
    task = load_task(name, TASK_DIR)
    assert task.name == name  # a dot in the name is no suffix
    assert task.description and "\n" not in task.description
    # One source is right where the main branch holds a script, which is never run.
    assert len(task.sources) >= (1 if name in ("e2e_nlg_cleaned", "quoref") else 2)
    assert len(set(task.sources)) == len(task.sources)
    assert task.metrics and set(task.metrics) <= set(METRICS)
    assert set(task.rows) <= set(task.splits) <= set(SPLITS)
    assert len(set(task.splits.values())) == len(task.splits), "no rows serve two splits"


@each_task
def test_templates(name):
    task = load_task(name, TASK_DIR)
    names = [template.name for template in task.templates]
    assert len(names) >= (10 if name in MANY_TEMPLATES else 5)
    assert names[0] == "default"
    assert len(set(names)) == len(names)
    assert all(template_name.isidentifier() and template_name.islower() for template_name in names)
    assert len({template.hash for template in templates(task)}) == len(templates(task))


@each_task
def test_rows_of_the_tests(name):
    task = load_task(name, TASK_DIR)
    assert len(EXAMPLE_ROWS[name]["train"]) == 8 and len(EXAMPLE_ROWS[name]["validation"]) == 4
    assert all(set(task.fields) <= set(row) for row in rows(name))
    train, validation = ({json.dumps(row, sort_keys=True) for row in part} for part in EXAMPLE_ROWS[name].values())
    assert len(train) == 8 and len(validation) == 4 and not train & validation


@each_task
def test_renders(name):
    task = load_task(name, TASK_DIR)
    for row in rows(name):
        inputs = []
        for template in templates(task):
            rendered = template.render(row)  # raises where input or target is empty
            assert rendered.target in rendered.references, template.name
            for text in (rendered.input, rendered.target, *rendered.references):
                # Signs of a list, a mapping or a missing value that was printed as Python prints it.
                assert not any(sign in text for sign in ("['", '["', "{'", "{{", "{%", "None", "Undefined")), text
            inputs.append(rendered.input)
        assert len(set(inputs)) == len(inputs), "two templates give the same input"


@each_task
def test_targets_are_answer_choices(name):
    task = load_task(name, TASK_DIR)
    for template in templates(task):
        if not template.answer_choices:
            continue
        targets = [template.render(row).target for row in EXAMPLE_ROWS[name]["train"]]
        if isinstance(template.answer_choices, str):  # of the row: a column of its options holds the target
            for row, target in zip(EXAMPLE_ROWS[name]["train"], targets, strict=True):
                assert target in row.values(), template.name
        else:
            assert set(targets) == set(template.answer_choices), template.name


@each_task
def test_answer_choices_differ_in_their_first_word(name):
    """First-word accuracy and the gradient estimate tell the choices apart by how they begin."""
    for template in templates(load_task(name, TASK_DIR)):
        if isinstance(template.answer_choices, tuple):
            first = [choice.split()[0].lower() for choice in template.answer_choices]
            assert len(set(first)) == len(first), template.name


@each_task
def test_prompts_name_their_answer_choices(name):
    """A prompt that asks for fixed answers says which ones there are."""
    task = load_task(name, TASK_DIR)
    row = rows(name)[0]
    for template in task.templates:
        if isinstance(template.answer_choices, tuple):
            text = template.render(row).input.lower()
            missing = [choice for choice in template.answer_choices if choice.lower() not in text]
            assert not missing, (template.name, missing)


def test_scores_are_rounded_to_fifths():
    target = load_task("stsb", TASK_DIR).bare
    row = {"sentence1": "a", "sentence2": "b"}
    assert [target.render({**row, "label": x}).target for x in (0, 3.75, 4.25, 5)] == ["0.0", "3.8", "4.2", "5.0"]
    assert not target.is_labelled({**row, "label": -1.0})


def test_several_gold_answers():
    record = load_task("record", TASK_DIR).bare.render(rows("record")[0])
    assert record.target == "Maria Kent" and record.references == ("Maria Kent", "Kent")
    web_nlg = load_task("web_nlg_en", TASK_DIR).bare
    assert len(web_nlg.render(rows("web_nlg_en")[0]).references) == 1  # the train split gives none: the target
    assert len(web_nlg.render(rows("web_nlg_en")[-1]).references) == 2
    # All spans together are the answer.
    assert load_task("quoref", TASK_DIR).bare.render(rows("quoref")[2]).references == ("Jan, Pieter",)


def test_scripts_are_no_sources():
    scripts = {"GEM/web_nlg", "GEM/gem", "tuetschek/e2e_nlg_cleaned", "allenai/quoref", "allenai/social_i_qa",
               "alexfabbri/multi_news", "Samsung/samsum"}
    sources = [source for name in NAMES for source in load_task(name, TASK_DIR).sources]
    assert all(source.revision == "refs/convert/parquet" for source in sources if source.path in scripts)
    assert load_task("social_i_qa", TASK_DIR).sources[0].path == "lighteval/siqa"
    assert load_task("samsum", TASK_DIR).sources[1].label == "knkarthick/samsum (refs/convert/parquet)"


def test_marks_that_are_there_already():
    for question in ("who was it", "who was it?", "who was it ? "):
        row = {**rows("wiki_qa")[0], "question": question}
        assert all("??" not in text and "? ?" not in text for text in (
            template.render(row).input for template in load_task("wiki_qa", TASK_DIR).templates))
    news = load_task("multi_news", TASK_DIR).bare
    for summary in ("\N{EN DASH} Two \N{EN DASH} or three.", "Two \N{EN DASH} or three."):
        assert news.render({**rows("multi_news")[0], "summary": summary}).target == "Two \N{EN DASH} or three."
    nested = load_task("rte", TASK_DIR).template(5).render({**rows("rte")[0], "premise": 'He said "no" twice.'}).input
    assert "\"He said 'no' twice.\"" in nested


def test_the_pronoun_in_question_is_marked():
    bare = load_task("wsc.fixed", TASK_DIR).bare
    row = rows("wsc.fixed")[0]
    assert "because *he* had burnt" in bare.render(row).input
    assert "because he had burnt" in bare.render({**row, "span2_index": 99}).input
