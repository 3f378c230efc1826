"""Metrics: predicted strings and accepted answers in, numbers from 0 to 1 (correlations: -1 to 1) out.

A prediction is compared with every accepted answer of its row and the best counts.
Nothing is downloaded: the classes of `evaluate` are subclassed here, not loaded from its hub.
"""

import functools
import math
import string
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

Predictions = Sequence[str]
References = Sequence[Sequence[str]]  # the accepted answers of each row, the gold target first
Choices = Sequence[str]  # the task's fixed answer choices; empty where it has none

_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"  # typographic ones
_AT_ENDS = ".,;:!?'\"()[]{}" + _QUOTES
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
CHOICE_METRICS = ("choice_accuracy", "choice_loss")  # of answer choices by their likelihood; trainer.py computes them
LOWER_IS_BETTER = ("loss", "choice_loss")  # loss is computed by trainer.py for every item, as is gen_len


def _bare_word(word: str) -> str:
    """`word` without the punctuation at its ends; the point of `.5` stays, and all that is within: `1.5`, `don't`."""
    bare = word.strip(_AT_ENDS)
    return f".{bare}" if bare[:1].isdecimal() and word.partition(bare)[0].endswith(".") else bare


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends of words; what carries meaning stays: `-1`, `C++`, `50%`.

    A text of nothing but punctuation stays as it is, so that it does not equal empty text.
    """
    return " ".join(filter(None, map(_bare_word, text.lower().split()))) or " ".join(text.split())


def colliding(choices: Choices) -> tuple[str, str] | None:
    """The first two of `choices` that the metrics cannot tell apart, or None."""
    seen: dict[str, str] = {}
    for choice in choices:
        key = normalise(choice)
        if key in seen:
            return seen[key], choice
        seen[key] = choice
    return None


def exact_match(predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """Share of predictions equal to an accepted answer after normalisation."""
    hits = [normalise(p) in {normalise(r) for r in refs} for p, refs in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def _leading(choices: Choices) -> Callable[[str], str]:
    """Return a function that cuts a text to its first words: as many as tell the choices apart, mostly one."""
    words = [normalise(choice).split() for choice in choices]
    longest = max(map(len, words), default=0)
    count = next((n for n in range(1, longest) if len({tuple(w[:n]) for w in words}) == len(words)), longest or None)
    return lambda text: " ".join(normalise(text).split()[:count])


def accuracy(predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """Share of predictions whose first word is the answer's.

    Where two choices begin alike, the first words that tell all choices apart; without fixed choices, all words.
    """
    lead = _leading(choices)
    hits = [lead(p) in {lead(r) for r in refs} for p, refs in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def _classes(predictions: Predictions, references: References, choices: Choices) -> tuple[list[int], list[int]]:
    """Predicted and gold class of each row; -1 for a text that is none of the choices."""
    lead = _leading(choices)
    index = {lead(choice): i for i, choice in enumerate(choices)}
    return [index.get(lead(p), -1) for p in predictions], [index.get(lead(refs[0]), -1) for refs in references]


def _squad_words(text: str) -> list[str]:
    """Words in lower case without any ASCII punctuation: those of SQuAD's evaluation, but with articles kept."""
    return text.lower().translate(_NO_PUNCTUATION).split() or text.split()


def _token_f1(prediction: str, reference: str) -> float:
    predicted, gold = _squad_words(prediction), _squad_words(reference)
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


def f1(predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """With fixed choices F1 of the last one as the positive class; otherwise mean word-overlap F1 (SQuAD)."""
    if not choices:
        best = [max(_token_f1(p, r) for r in refs) for p, refs in zip(predictions, references, strict=True)]
        return sum(best) / len(best)
    return _class_f1(*_classes(predictions, references, choices), len(choices) - 1)


def _class_f1(predicted: list[int], gold: list[int], positive: int) -> float:
    hits = sum(p == g == positive for p, g in zip(predicted, gold, strict=True))
    total = predicted.count(positive) + gold.count(positive)
    return 2 * hits / total if total else 0.0


def macro_f1(predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """Mean over the answer choices of each one's F1."""
    predicted, gold = _classes(predictions, references, choices)
    return sum(_class_f1(predicted, gold, i) for i in range(len(choices))) / len(choices)


def matthews(predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """Matthews correlation of predicted and gold class; 0 where either is constant."""
    from sklearn.metrics import matthews_corrcoef

    predicted, gold = _classes(predictions, references, choices)
    return float(matthews_corrcoef(gold, predicted)) if len({*predicted, *gold}) > 1 else 0.0


def _scores(predictions: Predictions, references: References) -> tuple[list[float], list[float]]:
    """Predicted and gold numbers; a prediction that is no finite number counts as 0."""

    def number(text: str) -> float:
        try:
            value = float(text.split()[0])
        except (ValueError, IndexError):
            return 0.0
        return value if math.isfinite(value) else 0.0

    return [number(p) for p in predictions], [number(refs[0]) for refs in references]


def _correlation(kind: str, predictions: Predictions, references: References) -> float:
    import scipy.stats

    predicted, gold = _scores(predictions, references)
    if len(set(predicted)) < 2 or len(set(gold)) < 2:
        return 0.0  # undefined: one side is constant
    return float(getattr(scipy.stats, kind)(predicted, gold).statistic)


def pearson(predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """Pearson correlation of predicted and gold numbers; 0 where either is constant."""
    return _correlation("pearsonr", predictions, references)


def spearman(predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """Spearman rank correlation of predicted and gold numbers; 0 where either is constant."""
    return _correlation("spearmanr", predictions, references)


_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")  # scripts without space between words
_LATIN = ("LATIN", "MODIFIER LETTER", "MICRO SIGN", "FEMININE", "MASCULINE")


@functools.cache
def _kind(sign: str) -> str:
    """How a sign goes into words: ascii, latin (what else looks like it), mark, single, letter; empty: not at all."""
    category, name = unicodedata.category(sign), unicodedata.name(sign, "")
    if category[0] not in "LM" and category != "Nd":
        return ""
    if category[0] == "M":
        return "mark"
    return ("ascii" if sign.isascii() else "single" if name.startswith(_UNSPACED) else
            "latin" if name.startswith(_LATIN) else "letter")


def _words(text: str) -> Iterator[str]:
    """Words of any script, or single characters where a script has no spaces between words.

    In a text with ASCII letters the other Latin ones separate, as they do in rouge-score (`caf` of `café`).
    """
    text = unicodedata.normalize("NFC", text.lower())
    dropped = ("latin", "mark") if any(_kind(sign) == "ascii" for sign in text) else ()
    for word in "".join(sign if _kind(sign) else " " for sign in text).split():
        piece = last = ""
        for sign in word:
            kind = _kind(sign)
            if kind == "mark" and last in ("latin", "single", "letter") and last not in dropped:
                piece += sign
                continue
            if piece and (kind != last or kind == "single"):
                yield piece
                piece = ""
            last = kind
            if kind not in dropped:
                piece += sign
        if piece:
            yield piece


class _AnyScript:
    """A tokenizer for rouge-score: its own with stemming for ASCII words, `_words` for what it would drop."""

    def __init__(self):
        from rouge_score.tokenizers import DefaultTokenizer

        self.stem = DefaultTokenizer(use_stemmer=True).tokenize

    def tokenize(self, text: str) -> list[str]:
        if text.isascii():
            return self.stem(text)
        return [token for word in _words(text) for token in (self.stem(word) if word.isascii() else [word])]


@functools.cache
def _rouge_scorer(name: str):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], tokenizer=_AnyScript())


def _rouge(name: str, predictions: Predictions, references: References, choices: Choices = ()) -> float:
    """Mean F-measure of ROUGE (Lin, 2004) with stemming, as the package rouge-score computes it; for any script."""
    scores = [_rouge_scorer(name).score_multi(refs, p)[name].fmeasure
              for p, refs in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)


_FUNCTIONS: dict[str, Callable[[Predictions, References, Choices], float]] = {
    function.__name__: function for function in (exact_match, accuracy, f1, macro_f1, matthews, pearson, spearman)
} | {name: functools.partial(_rouge, name) for name in ("rouge1", "rouge2", "rougeL")}
METRICS = tuple(_FUNCTIONS)  # what a task file may name
OF_MANY_ROWS = ("macro_f1", "matthews", "pearson", "spearman")
NEED_CHOICES = ("macro_f1", "matthews")  # only for fixed answer choices


def metric_names(declared: Sequence[str], choices: Choices | str) -> tuple[str, ...]:
    """Names of all metrics that a task yields: exact_match, those it declares, accuracy or ROUGE by its kind."""
    by_kind = ("accuracy",) if choices else ("rouge1", "rouge2", "rougeL")
    return tuple(dict.fromkeys(("exact_match", *declared, *by_kind)))


@functools.cache
def _metric_class():
    # The import takes seconds, so it waits until something is measured.
    import datasets
    import evaluate

    class TextMetrics(evaluate.Metric):
        """The named metrics of one item as one `evaluate.Metric`."""

        def __init__(self, names: Sequence[str], choices: Choices):
            # it writes no file, but makes a folder for them all the same, by default at home
            super().__init__(keep_in_memory=True, cache_dir=tempfile.gettempdir())
            self.names, self.choices = names, choices

        def _info(self):
            return evaluate.MetricInfo(
                description=__doc__, citation="", inputs_description="predictions, lists of accepted answers",
                features=datasets.Features({"predictions": datasets.Value("string"),
                                            "references": datasets.Sequence(datasets.Value("string"))}),
            )

        def _compute(self, predictions, references):
            return {name: _FUNCTIONS[name](predictions, references, self.choices) for name in self.names}

    return TextMetrics


def of_row(names: Sequence[str], prediction: str, references: Sequence[str], choices: Choices = ()) -> dict[str, float]:
    """Those of the named metrics that one row has: correlations and F1 over classes are of many rows."""
    of_classes = ("f1",) if choices else ()
    return {name: _FUNCTIONS[name]([prediction], [references], choices) for name in names
            if name not in (*OF_MANY_ROWS, *of_classes)}


def compute(names: Sequence[str], predictions: Predictions, references: References,
            choices: Choices = ()) -> dict[str, float]:
    """Compute the named metrics.

    Args:
        names: a selection of METRICS.
        predictions: one string a row.
        references: the accepted answers of each row, the gold target first.
        choices: the task's fixed answer choices, empty where it has none.

    Raises:
        ValueError: no rows, or a different number of predictions and references.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} rows; expected as many, and not none")
    metric = _metric_class()(names, choices)
    return metric.compute(predictions=list(predictions), references=list(map(list, references)))
