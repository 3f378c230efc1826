"""Per-example gradients of the margin at one point of training, and their projection."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from torch.func import functional_call, grad, vmap

from src.cli import InputError
from src.training.families import IGNORED

if TYPE_CHECKING:
    from src.training.families import Family
    from src.training.tokenised import Prepared

TARGET, FIRST_TOKEN, CHOICES = "target", "first token", "choices"  # what the margin of an example is of

BATCH = 64  # examples whose gradients are taken at once, at most
COPIES = 4  # of an example's gradient that are in memory at the same time, at most
BLOCK = 64  # the projection sums that many stretches of parameters before it shuffles their coordinates
TAKES_EMBEDDED = ("t5", "mt5", "umt5")  # model types whose embedded tokens may be given in place of their ids
FLOOR = 1e-3  # of that scale, relative to its root mean square: Adam's epsilon


def trained_parameters(model) -> dict[str, torch.Tensor]:
    """The parameters that training would change, by name; raise InputError where there are none."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise InputError("--model_name_or_path: no parameter of the model takes a gradient; there is nothing to "
                         "estimate with")
    return found


def fingerprint(model) -> str:
    """Hash of all weights, and of which of them are trained."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.requires_grad} ".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def rows_at_once(model) -> int:
    """Examples whose gradients fit into memory at once, `BATCH` at most; raise InputError where not even one does."""
    size = sum(value.numel() for value in trained_parameters(model).values()) * 4
    cuda = next(model.parameters()).device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    count = int((free - 2 * size) // (COPIES * size))
    if count < 1:
        raise InputError(f"the gradient of one example needs {(COPIES + 2) * size / 2**30:.1f} GiB, "
                         f"{free / 2**30:.1f} GiB are free; --train_lora True trains fewer parameters")
    return min(count, BATCH)


def margin_of(prepared: "Prepared", score_choices: bool) -> str:
    """What the margin of these rows is: of the right one among the answer CHOICES, where they are scored; of the
    target's FIRST_TOKEN, where that tells fixed choices apart; or of the whole TARGET."""
    choices = prepared.template.answer_choices
    if not choices:
        return TARGET
    if score_choices:
        return CHOICES
    first = [ids[0] for ids in prepared.dataset[0]["choices"]]
    return FIRST_TOKEN if not isinstance(choices, str) and len(set(first)) == len(first) else TARGET


def _value(margin: str, logits: Sequence[torch.Tensor], labels: Sequence[torch.Tensor],
           gold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Margin of one example, and the loss of the target tokens beside it.

    Args:
        logits, labels: (t, vocabulary) and (t,), of the target or of each answer choice.
    """
    chosen = [one.gather(1, ids.clamp(min=0)[:, None])[:, 0] for one, ids in zip(logits, labels, strict=True)]
    losses = [(one.logsumexp(1) - right) * (ids != IGNORED)
              for one, right, ids in zip(logits, chosen, labels, strict=True)]
    if margin == CHOICES:
        scores = -torch.stack([loss.sum() for loss in losses])
        scores = scores.masked_fill(torch.stack([ids[0] == IGNORED for ids in labels]), -torch.inf)
        right = torch.arange(len(scores), device=scores.device) == gold
        f = scores.masked_fill(~right, 0).sum() - scores.masked_fill(right, -torch.inf).logsumexp(0)
        return f, torch.zeros_like(f)
    if margin == FIRST_TOKEN:
        others = logits[0][0].scatter(0, labels[0][:1], -torch.inf)
        return chosen[0][0] - others.logsumexp(0), losses[0][1:].sum()
    total = losses[0].sum().clamp(min=1e-6)  # log p / (1 - p) with log p = -total
    return -total - torch.log(-torch.expm1(-total)), torch.zeros_like(total)


@dataclass(frozen=True)
class PerExample:
    """Gradients of b examples: whole (b, *shape) by parameter; and of an embedding only the rows of the tokens that an
    example holds, by parameter: (token ids (b, l), gradients (b, l, width)), to be added where a token repeats."""

    whole: dict[str, torch.Tensor]
    rows: dict[str, tuple[torch.Tensor, torch.Tensor]]
    sizes: dict[str, torch.Size]  # of all parameters

    def of(self, i: int) -> dict[str, torch.Tensor]:
        """The gradient of one example, by parameter, as autograd would give it."""
        found = {name: value[i] for name, value in self.whole.items()}
        for name, (ids, values) in self.rows.items():
            gradient = found[name].clone() if name in found else values.new_zeros(self.sizes[name])
            found[name] = gradient.index_add_(0, ids[i], values[i])
        return {name: found[name] for name in self.sizes}


class Gradients:
    """Per-example gradients of the margin of `model`, vectorised over the examples of a batch.

    Without dropout, in float32, with the attention mask as a term to add: the form that `vmap` can follow.
    """

    def __init__(self, model, family: "Family"):
        self.model, self.family = model.float().eval(), family
        self.model.set_attn_implementation("eager")  # the fused one has no rule for vmap and falls back to a loop
        self.parameters = trained_parameters(model)
        self.device = next(iter(self.parameters.values())).device
        self.sizes = {name: value.shape for name, value in self.parameters.items()}
        self.embedding = self._embedding()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        self._whole = {name: value for name, value in self.parameters.items() if tied or name != self.embedding}

    def _embedding(self) -> str | None:
        """Name of the trained embedding where the model takes embedded tokens for both its parts: its gradient is
        nearly all zeros, and only what is not is made."""
        if self.model.config.model_type not in TAKES_EMBEDDED:
            return None
        weight = self.model.get_input_embeddings().weight
        parts = self.model.get_encoder(), self.model.get_decoder()
        if any(part.get_input_embeddings().weight is not weight for part in parts):
            return None
        return next((name for name, value in self.model.named_parameters()
                     if value is weight and name in self.parameters), None)

    def __call__(self, rows: Sequence[dict], margin: str) -> tuple[PerExample, torch.Tensor]:
        """Gradients, and (b, 3): margin, loss of the other target tokens, number of target tokens (of choices: 1).

        Args:
            rows: with input_ids and labels, for CHOICES choices and gold, too.
            margin: TARGET, FIRST_TOKEN or CHOICES.
        """
        batches, fixed = self._batches(rows, margin)
        gold = torch.tensor([row.get("gold", 0) for row in rows], device=self.device)
        embedded = [{} for _ in batches]
        if self.embedding:
            with torch.no_grad():
                embed = self.model.get_input_embeddings()
                embedded = [{"inputs_embeds": embed(batch["input_ids"]),
                             "decoder_inputs_embeds": embed(batch["decoder_input_ids"])} for batch in batches]

        def value(parameters, embedded, batches, gold):
            logits = []
            for vectors, batch in zip(embedded, batches, strict=True):
                ids = {} if vectors else {name: batch[name] for name in batch if name.endswith("input_ids")}
                rest = {name: batch[name] for name in batch if not name.endswith("input_ids")}
                inputs = {name: tensor[None] for name, tensor in (vectors | ids | rest).items()} | fixed
                logits.append(self.family.target_logits(
                    lambda **given: functional_call(self.model, parameters, (), given), inputs)[0][0].float())
            f, other = _value(margin, logits, [batch["labels"] for batch in batches], gold)
            return f, torch.stack([f, other])

        taken = grad(value, (0, 1) if self.embedding else 0, has_aux=True)
        found, values = vmap(taken, (None, 0, 0, 0))(self._whole, embedded, batches, gold)
        of_rows = {}
        if self.embedding:
            found, vectors = found
            ids = [batch[name] for batch in batches for name in ("input_ids", "decoder_input_ids")]
            vectors = [one[name] for one in vectors for name in ("inputs_embeds", "decoder_inputs_embeds")]
            of_rows[self.embedding] = torch.cat(ids, 1), torch.cat(vectors, 1)
        tokens = torch.ones_like(gold) if margin == CHOICES else (batches[0]["labels"] != IGNORED).sum(1)
        return PerExample(found, of_rows, self.sizes), torch.cat([values, tokens[:, None]], 1)

    def _batches(self, rows: Sequence[dict], margin: str) -> tuple[list[dict], dict]:
        """The tensors of the rows under their targets, or under each of their answer choices; and what is no tensor."""
        prompts, targets = ([row[name] for row in rows] for name in ("input_ids", "labels"))
        several = [targets]
        if margin == CHOICES:
            most = max(len(row["choices"]) for row in rows)
            several = [[row["choices"][k] if k < len(row["choices"]) else [] for row in rows] for k in range(most)]
        widths = max(map(len, prompts)), max(len(ids) for targets in several for ids in targets)
        batches = [self.family.for_vmap(self.family.collate(self.model, prompts, targets, widths))
                   for targets in several]
        fixed = {name: value for name, value in batches[0].items() if not torch.is_tensor(value)}
        return [{name: value.to(self.device) for name, value in batch.items() if name not in fixed}
                for batch in batches], fixed

    def scales(self, batches: Sequence[tuple[Sequence[dict], str]]) -> dict[str, torch.Tensor]:
        """What each parameter's gradient is multiplied by, so that plain descent moves like Adam from a fresh start.

        Adam divides the step by the root mean square r of the gradient; in the inner product of two gradients each of
        them is divided by the root of r. r is taken over the loss of the examples of `batches`.
        """
        squares = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        for batch, margin in batches:
            gradients, values = self(batch, margin)
            weight = torch.sigmoid(-values[:, 0])  # the loss log(1 + exp(-f)) changes by -(1 - p) times the margin
            for i in range(len(batch)):
                for name, gradient in gradients.of(i).items():
                    squares[name].addcmul_(gradient, gradient, value=float(weight[i]) ** 2)
        mean = sum(float(value.sum()) for value in squares.values()) / sum(v.numel() for v in squares.values())
        if not 0 < mean < float("inf"):
            raise InputError("--model_name_or_path: the gradients of the model are "
                             f"{'zero' if mean == 0 else 'no finite numbers'}; there is nothing to estimate with")
        return {name: ((value / mean).sqrt() + FLOOR).rsqrt() for name, value in squares.items()}


class Projection:
    """A random linear map of gradients to `dim` numbers that keeps inner products.

    A count sketch (Charikar, Chen and Farach-Colton, 2002): each parameter is added, with a random sign, to one of the
    `dim` coordinates. Inner products are right on average, with a variance of about |a|^2 |b|^2 / dim. It holds one
    number for each parameter, never parameters x dim.

    Args:
        parameters: by name, as `trained_parameters` gives them.
        seed: of signs and coordinates.
        scales: what each parameter's gradient is multiplied by first (default: 1).
    """

    def __init__(self, parameters: dict[str, torch.Tensor], dim: int, seed: int,
                 scales: dict[str, torch.Tensor] | None = None):
        self.dim, self.weights, self.places = dim, {}, {}
        generator = torch.Generator().manual_seed(seed)
        for name, value in parameters.items():
            weight = torch.randint(0, 2, (value.numel(),), generator=generator).to(value.device) * 2.0 - 1
            blocks = -(-value.numel() // (BLOCK * dim))
            self.places[name] = torch.rand(blocks, dim, generator=generator).argsort(1).to(value.device)
            self.weights[name] = weight if scales is None else weight * scales[name].flatten()

    def __call__(self, gradients: PerExample) -> torch.Tensor:
        """(b, dim)."""
        found = sum(self._sketch(gradient.flatten(1) * self.weights[name], self.places[name])
                    for name, gradient in gradients.whole.items())
        for name, (ids, values) in gradients.rows.items():
            places = ids[..., None] * values.shape[2] + torch.arange(values.shape[2], device=ids.device)
            values = values * self.weights[name][places]
            places = self.places[name].flatten()[places // (BLOCK * self.dim) * self.dim + places % self.dim]
            found.scatter_add_(1, places.flatten(1), values.flatten(1))
        return found

    def _sketch(self, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        # Parameter i of a block goes to coordinate i modulo dim, shuffled by block: no scattered writes.
        size = BLOCK * self.dim
        whole = values.shape[1] // size * size
        tail = torch.nn.functional.pad(values[:, whole:], (0, -values.shape[1] % size))
        blocks = [part.view(len(values), -1, BLOCK, self.dim).sum(2) for part in (values[:, :whole], tail)]
        sums = torch.cat(blocks, 1)
        return torch.zeros_like(sums).scatter_(2, places.expand_as(sums), sums).sum(1)
