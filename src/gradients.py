"""Per-example gradients at one point of training, and the small fits that stand in for training on a subset.

For each example the margin f = log p / (1 - p), the log-odds of its target, and the gradient g of f with respect to the
trained parameters, projected to a few hundred numbers. Near the point where they were taken, training moves the margin
of an example to f + <g, w>; so a subset's training becomes a logistic regression in w, which takes milliseconds: Li,
Sharma and Zhang, "Scalable Multitask Learning Using Gradient-based Estimation of Task Affinity", 2024 (arXiv
2409.06091); Li, Zhang, Wang and Zhang, "Scalable Fine-tuning from Multiple Data Sources: A First-Order Approximation
Approach", 2024 (arXiv 2409.19458).
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from src.errors import InputError
from src.results import locked, write_whole

if TYPE_CHECKING:
    from src.data import Prepared

FORMAT = 1  # of the stored arrays
COLUMNS = 3  # of a stored row, before its features: margin, loss of the other target tokens, target tokens
BLOCK = 64  # the projection sums that many stretches of parameters before it shuffles their coordinates
SAMPLE = 256  # training rows from which the scale of each parameter's gradient is estimated
TAKES_EMBEDDED = ("t5", "mt5", "umt5")  # model types whose embedded tokens may be given in place of their ids
FLOOR = 1e-3  # of that scale, relative to its root mean square: Adam's epsilon


# ---- gradients -----------------------------------------------------------------------------------------------------


def trained_parameters(model) -> dict[str, torch.Tensor]:
    """The parameters that training would change, by name; raise InputError where there are none."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise InputError("--start_from: no parameter of the model takes a gradient; there is nothing to estimate with")
    return found


def fingerprint(model) -> str:
    """Hash of all weights, and of which of them are trained."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.requires_grad} ".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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
            raise InputError("--start_from: the gradients of the model are "
                             f"{'zero' if mean == 0 else 'no finite numbers'}; there is nothing to estimate with")
        return {name: ((value / mean).sqrt() + FLOOR).rsqrt() for name, value in squares.items()}


class Projection:
    """A random linear map of gradients to `dim` numbers that keeps inner products, exactly so with `dim` 0.

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
        self.width = dim or sum(value.numel() for value in parameters.values())
        self.dim, self.weights, self.places = dim, {}, {}
        generator = torch.Generator().manual_seed(seed)
        for name, value in parameters.items():
            weight = torch.ones(value.numel())
            if dim:
                weight = torch.randint(0, 2, (value.numel(),), generator=generator) * 2.0 - 1
                blocks = -(-value.numel() // (BLOCK * dim))
                self.places[name] = torch.rand(blocks, dim, generator=generator).argsort(1).to(value.device)
            weight = weight.to(value.device)
            self.weights[name] = weight if scales is None else weight * scales[name].flatten()

    def __call__(self, gradients: PerExample) -> torch.Tensor:
        """(b, dim), or (b, number of parameters) with `dim` 0."""
        if not self.dim:
            count = len(next(iter(gradients.whole.values())))
            return torch.stack([torch.cat([(self.weights[name] * gradient.flatten()) for name, gradient
                                           in gradients.of(i).items()]) for i in range(count)])
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


# ---- collection ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """n examples: margins (n,), rest (n,) loss in nats of the target tokens beside the margin's, tokens (n,) of the
    target, features (n, d)."""

    margins: np.ndarray
    rest: np.ndarray
    tokens: np.ndarray
    features: np.ndarray


def collect(path: Path, rows: Sequence[dict], first_token: bool, gradients: Gradients, projection: Projection,
            batch_size: int) -> Iterator[int]:
    """Write margins and projected gradients of `rows` to `path` (.npy, memory-mapped), from where it was broken off.

    Args:
        path: its name holds a hash of all that decides the content.
        rows: with input_ids and labels, in an order that puts rows of like length together.

    Yields:
        the number of rows done at each step, those of an earlier collection first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):  # the same command started twice
        state = cost(path)
        shape = len(rows), COLUMNS + projection.width
        array = np.lib.format.open_memmap(path, "r+" if state["done"] else "w+", np.float32, shape=shape)
        yield state["done"]
        start, cpu = time.time(), time.process_time()
        while state["done"] < len(rows):
            done = state["done"]
            batch = [rows[i] for i in range(done, min(done + batch_size, len(rows)))]
            try:
                found = _projected(gradients, projection, batch, first_token)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            if not np.isfinite(found).all():
                raise InputError(f"{path.stem}: a gradient is no finite number; the training that led to this model "
                                 "broke down: lower --learning_rate, or give another --start_from")
            array[done:done + len(batch)] = found
            array.flush()
            state["done"] += len(batch)
            state["seconds"] += time.time() - start
            state["cpu_seconds"] += time.process_time() - cpu
            start, cpu = time.time(), time.process_time()
            write_whole(path.with_suffix(".json"), json.dumps(state))
            yield len(batch)


def _projected(gradients: Gradients, projection: Projection, batch: Sequence[dict], first_token: bool) -> np.ndarray:
    # A function of its own, so that one batch's gradients are freed before the next one's are taken.
    by_name, values = gradients(batch, first_token)
    return torch.cat([values, projection(by_name)], 1).cpu().numpy()


def cost(path: Path) -> dict:
    """Rows done, and what they took over all collections: seconds, cpu_seconds."""
    try:
        if not path.exists():
            raise FileNotFoundError
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not begun, or its files were damaged: begin anew
        return {"done": 0, "seconds": 0.0, "cpu_seconds": 0.0}


def read_features(path: Path) -> Features:
    """What `collect` has written; the features stay on disk until they are used."""
    array = np.load(path, mmap_mode="r")
    return Features(*(np.array(array[:, column]) for column in range(COLUMNS)), array[:, COLUMNS:])


def shrink(train: dict[str, list[Features]], valid: dict[str, list[Features]]) -> None:
    """Replace exact gradients by as many coordinates as there are training rows, with the same inner products.

    With G = gradients of all training rows (n, p) and G G' = U L U', training rows become U L^(1/2) and any other
    gradient g becomes L^(-1/2) U' G g: descent from w = 0 stays in the span of G, so the fits are the same. p is read
    in slices, so that memory holds n x n numbers, not n x p.
    """
    rows = [part.features for parts in train.values() for part in parts]
    others = [part.features for parts in valid.values() for part in parts]

    def products(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
        total = np.zeros((sum(map(len, left)), sum(map(len, right))))
        width = max(1, 2**26 // max(total.shape))
        for start in range(0, left[0].shape[1], width):
            a, b = (np.concatenate([part[:, start:start + width] for part in side]) for side in (left, right))
            total += a @ b.T
        return total

    values, vectors = np.linalg.eigh(products(rows, rows))
    keep = values > values[-1] * 1e-6
    roots, vectors = np.sqrt(values[keep]), vectors[:, keep]
    for groups, new in ((train, vectors * roots), (valid, products(others, rows) @ (vectors / roots))):
        start = 0
        for parts in groups.values():
            for i, part in enumerate(parts):
                size = len(part.margins)
                parts[i] = Features(part.margins, part.rest, part.tokens, new[start:start + size].astype(np.float32))
                start += size


# ---- the small fits ------------------------------------------------------------------------------------------------


def step_size(items: Sequence[Features]) -> float:
    """A step with which descent surely converges for every subset of `items`.

    The loss of a subset has curvature at most a quarter of the top eigenvalue of its mean of phi phi', which is no
    larger than the largest one among its items.
    """
    def top(phi: np.ndarray) -> float:
        gram = phi.T @ phi if phi.shape[0] > phi.shape[1] else phi @ phi.T
        return float(np.linalg.eigvalsh(gram)[-1]) / len(phi)

    return 4 / max(top(np.asarray(item.features)) for item in items)


def descend(train: Sequence[Features], weights: Sequence[float], rate: float, steps: Sequence[int]) -> np.ndarray:
    """Fit a subset: w (len(steps), d) after each of `steps` steps of gradient descent from w = 0 on

        sum over items of weight x mean over its rows of log(1 + exp(-(f + phi . w))).

    Early stopping is the only regulariser: a short training moves little, and so does the fit.
    """
    phi, f, share = _joined(train, weights)
    out, w = np.zeros((len(steps), phi.shape[1]), np.float32), np.zeros(phi.shape[1], np.float32)
    places = {step: i for i, step in enumerate(steps)}
    for step in range(1, max(steps) + 1):
        w += np.float32(rate) * (phi.T @ (share * _sigmoid(-(f + phi @ w))))
        if step in places:
            out[places[step]] = w
    return out


def ridge(train: Sequence[Features], weights: Sequence[float], penalties: Sequence[float]) -> np.ndarray:
    """As `descend`, to the minimum of the loss plus penalty / 2 |w|^2: w (len(penalties), d)."""
    from scipy.optimize import minimize

    phi, f, share = (values.astype(float) for values in _joined(train, weights))
    out = np.zeros((len(penalties), phi.shape[1]), np.float32)

    def loss(w: np.ndarray, penalty: float):
        margins = f + phi @ w
        return (share @ np.logaddexp(0, -margins) + penalty / 2 * w @ w,
                penalty * w - phi.T @ (share * _sigmoid(-margins)))

    w = np.zeros(phi.shape[1])
    for i in np.argsort(penalties)[::-1]:  # the strongest first: each is a start for the next
        w = minimize(loss, w, (penalties[i],), "L-BFGS-B", jac=True, options={"maxiter": 500}).x
        out[i] = w
    return out


def predict(valid: Features, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validation loss in nats per target token, and share of targets with p > 1/2, for each of w (m, d): (m,), (m,)."""
    margins = valid.margins + w @ valid.features.T
    loss = (np.logaddexp(0, -margins) + valid.rest).sum(1) / valid.tokens.sum()
    return loss, (margins > 0).mean(1)


def _joined(train: Sequence[Features], weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, d), margins (n,) and weight of each row (n,) of a subset's training rows."""
    share = [np.full(len(part.margins), weight / len(part.margins), np.float32)
             for part, weight in zip(train, weights, strict=True)]
    return (np.concatenate([part.features for part in train]), np.concatenate([part.margins for part in train]),
            np.concatenate(share))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2
