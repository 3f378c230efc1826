"""Metrics against hand-made cases and against scikit-learn, SciPy and rouge_score."""

import random

import pytest
import scipy.stats
import sklearn.metrics
from rouge_score.rouge_scorer import RougeScorer

from src.metrics import METRICS, colliding, compute, metric_names, normalise


def score(name, predictions, references, choices=()):
    references = [[r] if isinstance(r, str) else r for r in references]
    return compute([name], predictions, references, choices)[name]


@pytest.mark.parametrize(("text", "expected"), [
    ("  The Cat,\n sat. ", "the cat sat"),  # articles are kept
    ("not_entailment.", "not_entailment"),
    ("U.S.", "u.s"),
    ("(.25)", ".25"),
    ("\u201eEin \u00bbWort\u00ab.\u201c", "ein wort"),
    (" ?! ", "?!"),  # nothing but punctuation stays, so that it is not equal to empty text
    ("", ""),
])
def test_normalise(text, expected):
    assert normalise(text) == expected


SAME = [("The end.", "the  END"), ("(b)", "B"), ("\u2018left\u2019", "left"), ("[7]", "7"), ("$.75", "$.75."),
        ("\"yes!\"", "yes"), ("3.0,", "3.0"), ("a : b", "a b"), ("\u00abOui\u00bb", "oui"), ("...why?", "why")]
DIFFERENT = [("-7", "7"), ("2.75", "275"), (".75", "75"), ("3/4", "34"), ("F#", "F"), ("g++", "g"), ("12%", "12"),
             ("can't", "cant"), ("1,000", "1.000"), ("+5", "5"), ("10:30", "1030"), ("x*y", "xy"), ("<b>", "b")]


def test_exact_match_keeps_what_carries_meaning():
    assert len(SAME) + len(DIFFERENT) >= 20
    for name in ("exact_match", "accuracy"):
        assert score(name, *zip(*SAME, strict=True)) == 1
        assert score(name, *zip(*DIFFERENT, strict=True)) == 0
    for one, other in SAME:
        assert normalise(one) == normalise(other)
    for one, other in DIFFERENT:
        assert normalise(one) != normalise(other)


def test_choices_that_the_metrics_cannot_tell_apart():
    assert colliding(["left", "Right!", "up", "right"]) == ("Right!", "right")
    assert colliding(["good", "good"]) == ("good", "good")
    assert colliding(["?", "!"]) is None and colliding([]) is None


def test_exact_match_takes_any_accepted_answer():
    references = [["New York", "NYC"], ["five"], ["-"]]
    assert score("exact_match", ["nyc.", "Five", "-"], references) == 1
    assert score("exact_match", ["nyc city", "5", ""], references) == 0
    assert score("exact_match", ["New  york!", "six", "+"], references) == pytest.approx(1 / 3)


def test_accuracy_compares_first_words():
    assert score("accuracy", ["Yes, it is", "no", "", "nope"], ["yes", "no", "no", "no"], ["yes", "no"]) == 0.5
    alike = ["is the same", "is not the same"]
    assert score("accuracy", ["is not", "is the other", "is"], [alike[1], alike[0], alike[0]], alike) \
        == pytest.approx(2 / 3)
    prefix = ["definitely", "definitely not"]
    assert score("accuracy", ["definitely", "definitely not so"], prefix, prefix) == 1
    assert score("accuracy", ["definitely not"], ["definitely"], prefix) == 0
    assert score("accuracy", ["b"], [["a b", "b"]]) == 1  # without choices: whole texts, any answer


def classes(seed, choices, rows=200):
    draw = random.Random(seed)
    gold = draw.choices(choices, k=rows)
    predicted = [g if draw.random() < 0.5 else draw.choice(choices) for g in gold]
    return predicted, gold


@pytest.mark.parametrize("choices", [["no", "yes"], ["entailment", "neutral", "not entailed"]])
@pytest.mark.parametrize("garbage", [False, True])
def test_class_metrics_as_in_sklearn(choices, garbage):
    predicted, gold = classes(1, choices)
    if garbage:  # a generated text that is none of the choices is a wrong prediction
        predicted[::7] = ["garbage"] * len(predicted[::7])
    each = sklearn.metrics.f1_score(gold, predicted, labels=choices, average=None)
    assert score("f1", predicted, gold, choices) == pytest.approx(each[-1])
    assert score("macro_f1", predicted, gold, choices) == pytest.approx(each.mean())
    assert score("matthews", predicted, gold, choices) \
        == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, predicted))
    assert score("accuracy", predicted, gold, choices) == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted))


def test_class_metrics_at_their_ends():
    assert score("matthews", ["yes"] * 3, ["yes"] * 3, ["no", "yes"]) == 0  # constant: undefined
    assert score("f1", ["no"] * 3, ["no"] * 3, ["no", "yes"]) == 0
    assert score("f1", ["yes", "no"], ["yes", "unknown"], ["no", "yes"]) == 1


def test_f1_of_words():
    assert score("f1", ["the red cat"], ["red cat"]) == pytest.approx(0.8)
    assert score("f1", ["cat cat"], ["cat"]) == pytest.approx(2 / 3)  # each word counts once
    assert score("f1", ["red cat", "dog"], [["blue bird", "Red cat."], "cat"]) == 0.5


def test_correlations_as_in_scipy():
    draw = random.Random(2)
    gold = [round(draw.uniform(0, 5), 1) for _ in range(100)]
    predicted = [round(g + draw.gauss(0, 2), 1) for g in gold]
    texts = [list(map(str, predicted)), list(map(str, gold))]
    assert score("pearson", *texts) == pytest.approx(scipy.stats.pearsonr(predicted, gold).statistic)
    assert score("spearman", *texts) == pytest.approx(scipy.stats.spearmanr(predicted, gold).statistic)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_what_is_no_number_counts_as_zero(name):
    gold = ["1.0", "2.0", "3.0", "5.0"]
    expected = score(name, ["0", "2.5", "0", "4"], gold)
    for other in ("", "three", "nan", "inf"):
        assert score(name, [other, "2.5 of 5", other, "4.0"], gold) == pytest.approx(expected)
    assert score(name, ["three"] * 4, gold) == 0  # constant


def test_rouge_as_in_rouge_score():
    predictions = ["the cats were running home", "", "a dog"]
    references = [["The cat runs home.", "cats go home"], ["something"], ["a dog barks", "one dog"]]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeL"):
        best = [max(scorer.score(r, p)[name].fmeasure for r in refs)
                for p, refs in zip(predictions, references, strict=True)]
        assert score(name, predictions, references) == pytest.approx(sum(best) / 3)
    assert 0 < score("rouge2", predictions, references) < score("rouge1", predictions, references)


@pytest.mark.parametrize(("text", "half"), [
    ("机器学习很有趣", "机器学习"), ("إنه يوم جميل", "إنه يوم"), ("यह दिन सुंदर है", "यह दिन"), ("วันนี้อากาศดี", "วันนี้"),
    ("これはペンです", "これは"), ("오늘 날씨가 좋다", "오늘 날씨가"), ("Это хороший день", "Это хороший"),
    ("Ở đó", "đó")])
def test_rouge_of_any_script(text, half):
    for name in ("rouge1", "rougeL", *(["rouge2"] if " " not in half else [])):
        assert score(name, [text], [text]) == 1
    assert 0.5 <= score("rouge1", [half], [text]) < 1
    assert score("rouge1", ["none of it"], [text]) == 0
    # Vowel signs belong to their letters: words that differ by them alone are different.
    assert score("rouge1", ["कि"], ["की"]) == 0


def test_rouge_of_english_with_other_signs_is_unchanged():
    gold = "Özil's café — “naïve” fans (in São Paulo) paid £5.50 for 30 m² at 20°C; José won 3\N{EN DASH}2 à Nice…"
    predicted = "Fans in Sao Paulo paid 5.50 at Ozil's cafe, Jos won 2-3;"\
                " Hawai\N{MODIFIER LETTER TURNED COMMA}i's naïveté was winning."
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name, expected in scorer.score(gold, predicted).items():
        assert score(name, [predicted], [gold]) == pytest.approx(expected.fmeasure)


def test_compute():
    assert compute(["exact_match", "accuracy"], ["a", "b c"], [["a"], ["b"]], ["a", "b"]) \
        == {"exact_match": 0.5, "accuracy": 1.0}
    assert set(compute(METRICS, ["yes"], [["yes"]], ["no", "yes"])) == set(METRICS)
    for predictions, references in (([], []), (["a"], [["a"], ["b"]])):
        with pytest.raises(ValueError, match=f"{len(predictions)} predictions for {len(references)} rows"):
            compute(["exact_match"], predictions, references)


def test_metric_names():
    assert metric_names(("accuracy", "f1"), ("no", "yes")) == ("exact_match", "accuracy", "f1")
    assert metric_names(("f1",), ()) == ("exact_match", "f1", "rouge1", "rouge2", "rougeL")
    assert metric_names((), "[a, b]") == ("exact_match", "accuracy")
