"""What the evaluation of one set gives: generated texts to metrics, sums to losses, answer choices by likelihood."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction

from src import metrics
from src.training.families import IGNORED, Family
from src.training.tokenised import Prepared


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, (b, t), 0 where it is IGNORED.

    As a list of tokens: along another dimension than the last a large vocabulary is summed up coarsely, and slowly.
    """
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED,
                         reduction="none").view_as(labels)


def choice_scores(family: Family, model, batch: dict, logits: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """Log-probability of each answer choice, the sum over its tokens: (b, choices), -inf where a row has fewer.

    Args:
        batch: as `Family.read` gives it.
        logits: (b, t, vocabulary) at the positions of the targets.
        choices: (b, choices, tokens), IGNORED after the end of each.
    """
    if choices.shape[2] == 1:  # all are decided at the first position, which the targets' own logits hold
        scores = logits[:, 0].float().log_softmax(1).gather(1, choices[:, :, 0].clamp(min=0))
    else:
        scores = -torch.stack([token_losses(*family.target_logits(model, family.with_targets(model, batch, ids))).sum(1)
                               for ids in choices.unbind(1)], dim=1)
    return scores.masked_fill(choices[:, :, 0] == IGNORED, -torch.inf)


class Scored:
    """The scores of one evaluation set, and what each of its rows gave.

    Args:
        output: generated ids, and for each row as `label_ids` the summed negative log-likelihood of its target, the
            number of its tokens, and where choices were scored whether the likeliest is right and the loss among them.
            Several processes fill the last batch up with repeated rows: those are left out.
        generates: whether the generated ids are any.

    Attributes:
        texts: what was generated for each row, or None.
    """

    def __init__(self, prepared: Prepared, family: Family, output: EvalPrediction, generates: bool):
        self.prepared, self.family, self.texts = prepared, family, None
        answers = prepared.template.answer_choices
        self.fixed_choices = () if isinstance(answers, str) else answers
        stats = output.label_ids[:len(prepared.dataset)]
        nll, tokens = stats[:, :2].sum(axis=0)
        self.scores, self.of_rows = {"loss": float(nll / tokens)}, {"loss": stats[:, 0] / stats[:, 1]}
        for name, values in zip(metrics.CHOICE_METRICS, stats[:, 2:].T, strict=False):
            self.of_rows[name], self.scores[name] = values, float(values.mean())
        if generates:
            self._generated(output.predictions[:len(prepared.dataset)])

    def _generated(self, ids: np.ndarray) -> None:
        given = ids != IGNORED
        self.texts = [text.strip() for text in self.family.tokenizer.batch_decode(
            np.where(given, ids, self.family.filler), skip_special_tokens=True)]
        ended = np.isin(ids, self.family.ends)  # what follows is filler, which may be the same token
        lengths = np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, given.sum(axis=1))
        self.scores |= metrics.compute(self.prepared.metrics, self.texts, self.prepared.dataset["references"],
                                       self.fixed_choices) | {"gen_len": float(lengths.mean())}

    def rows(self, item: str) -> Iterator[dict]:
        """What each row gave: input, accepted answers, scores, and the prediction where one was generated."""
        dataset = self.prepared.dataset
        inputs = self.family.tokenizer.batch_decode(dataset["input_ids"][:], skip_special_tokens=True)
        for i, (text, references) in enumerate(zip(inputs, dataset["references"], strict=True)):
            scores = {name: round(float(values[i]), 6) for name, values in self.of_rows.items()}
            row = {"item": item, "template": self.prepared.template.item, "input": text, "references": list(references)}
            if self.texts is not None:
                row["prediction"] = self.texts[i]
                scores |= metrics.of_row(self.prepared.metrics, self.texts[i], references, self.fixed_choices)
            yield row | {"scores": scores}
