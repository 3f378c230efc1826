"""Per-example gradients of the margin at one point of training, and their projection."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from torch.func import functional_call, grad, vmap

from src.cli import InputError

if TYPE_CHECKING:
    from src.training.tokenised import Prepared

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


def first_token_decides(prepared: "Prepared", tokenizer) -> bool:
    """Whether the first token of the target tells the answer choices apart."""
    choices = prepared.template.answer_choices
    if not choices or isinstance(choices, str):
        return False
    first = [ids[0] for ids in tokenizer(text_target=list(choices), verbose=False)["input_ids"]]
    return len(set(first)) == len(first)


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

    def __init__(self, model):
        self.model = model.eval()
        self.model.set_attn_implementation("eager")  # the fused one has no rule for vmap and falls back to a loop
        self.parameters = trained_parameters(model)
        self.device = next(iter(self.parameters.values())).device
        self.sizes = {name: value.shape for name, value in self.parameters.items()}
        # An embedding's gradient is nearly all zeros: where the model takes embedded tokens, only what is not is made.
        weight = model.get_input_embeddings().weight
        names = [name for name, value in model.named_parameters() if value is weight and name in self.parameters]
        parts = model.get_encoder(), model.get_decoder()
        shared = all(part.get_input_embeddings().weight is weight for part in parts)
        self.embedding = names[0] if names and shared and model.config.model_type in TAKES_EMBEDDED else None
        tied = model.get_output_embeddings().weight is weight
        self._whole = {name: value for name, value in self.parameters.items() if tied or name != self.embedding}

    def __call__(self, batch: Sequence[dict], first_token: bool) -> tuple[PerExample, torch.Tensor]:
        """Gradients, and (b, 3): margin, loss of the other target tokens, number of target tokens.

        Args:
            batch: rows with input_ids and labels.
            first_token: whether the margin is that of the target's first token alone, or of the whole target.
        """
        ids, mask = self._padded([row["input_ids"] for row in batch], 0)
        labels, given = self._padded([row["labels"] for row in batch], -100)
        blocked = (~mask).float()[:, None, None, :] * torch.finfo(torch.float32).min
        shifted, inputs = None, {"input_ids": ids, "labels": labels}
        if self.embedding:
            shifted = self.model.prepare_decoder_input_ids_from_labels(labels)
            with torch.no_grad():
                embed = self.model.get_input_embeddings()
                inputs = {"inputs_embeds": embed(ids), "decoder_inputs_embeds": embed(shifted)}

        def margin(parameters, inputs, blocked, labels):
            logits = functional_call(self.model, parameters, (), {
                **{name: value[None] for name, value in inputs.items()}, "attention_mask": blocked[None],
                "use_cache": False}).logits[0].float()
            target = labels.clamp(min=0)[:, None]
            chosen = logits.gather(1, target)[:, 0]
            loss = (logits.logsumexp(1) - chosen) * (labels >= 0)
            if first_token:
                others = logits[0].scatter(0, target[0], -torch.inf)
                f, rest = chosen[0] - others.logsumexp(0), loss[1:].sum()
            else:
                total = loss.sum().clamp(min=1e-6)  # log p / (1 - p) with log p = -total
                f, rest = -total - torch.log(-torch.expm1(-total)), torch.zeros_like(total)
            return f, torch.stack([f, rest])

        taken = grad(margin, (0, 1) if self.embedding else 0, has_aux=True)
        found, values = vmap(taken, (None, 0, 0, 0))(self._whole, inputs, blocked, labels)
        rows = {}
        if self.embedding:
            found, embedded = found
            rows[self.embedding] = torch.cat([ids, shifted], 1), torch.cat(list(embedded.values()), 1)
        return PerExample(found, rows, self.sizes), torch.cat([values, given.sum(1, keepdim=True)], 1)

    def _padded(self, rows: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        values = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return values, torch.arange(width, device=self.device) < lengths[:, None]

    def scales(self, batches: Sequence[tuple[Sequence[dict], bool]]) -> dict[str, torch.Tensor]:
        """What each parameter's gradient is multiplied by, so that plain descent moves like Adam from a fresh start.

        Adam divides the step by the root mean square r of the gradient; in the inner product of two gradients each of
        them is divided by the root of r. r is taken over the loss of the examples of `batches`.
        """
        squares = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        for batch, first_token in batches:
            gradients, values = self(batch, first_token)
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
