"""Per-example gradients against autograd, the projection, resumed collection, the small fits."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DECODER_ONLY, ROOT, family_of
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from src.cli import InputError
from src.estimate import features, fits, gradients
from src.estimate.features import Features
from src.estimate.gradients import CHOICES, FIRST_TOKEN, TARGET, Gradients, PerExample, Projection

TINY = ROOT / "data/models/tiny-t5"


def of(model):
    return Gradients(model, family_of(AutoTokenizer.from_pretrained(TINY), model.config))


def bart():
    torch.manual_seed(0)
    return BartForConditionalGeneration(BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32))


def t5():
    return AutoModelForSeq2SeqLM.from_pretrained(TINY, dtype=torch.float32)


def untied():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4,
                                               decoder_start_token_id=0, tie_word_embeddings=False))


def lora():
    import peft

    torch.manual_seed(0)
    model = peft.get_peft_model(t5(), peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, init_lora_weights=False))
    return model


def attention_alone():
    model = t5()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("SelfAttention.q" in name)
    return model


def embedding_alone():
    model = t5()
    model.requires_grad_(False)
    model.shared.weight.requires_grad_(True)
    return model


# The choices of the first two rows are of one token, so that one pass tells them all; those of the others are not.
ROWS = [{"input_ids": [5, 9, 12, 7, 1], "labels": [8, 1], "choices": [[8], [3], [20]], "gold": 0},
        {"input_ids": [11, 4, 1], "labels": [20, 6, 1], "choices": [[4, 5], [20, 6], [20, 7]], "gold": 1},
        {"input_ids": [30, 31, 32, 33, 34, 35, 1], "labels": [9, 1], "choices": [[7, 1], [9, 1]], "gold": 1}]


def log_likelihood(model, prompt, target):
    """Log-probabilities of the tokens of one target, without padding."""
    if model.config.is_encoder_decoder:
        logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([target])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1:-1]
    return logits.double().log_softmax(1)[range(len(target)), target]


def reference(model, row, margin):
    """Margin and its gradient by name, of one unpadded example, by plain autograd."""
    model.zero_grad()
    if margin == CHOICES:
        scores = torch.stack([log_likelihood(model, row["input_ids"], ids).sum() for ids in row["choices"]])
        right = torch.arange(len(scores)) == row["gold"]
        value = scores[right][0] - scores[~right].logsumexp(0)
    else:
        log_p = log_likelihood(model, row["input_ids"], row["labels"])
        log_p = log_p[0] if margin == FIRST_TOKEN else log_p.sum()
        value = log_p - torch.log(1 - log_p.exp())
    value.backward()
    return float(value), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def decoder_only(kind):
    def make():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **DECODER_ONLY[kind]))
    make.__name__ = kind
    return make


def lora_llama():
    import peft

    return peft.get_peft_model(decoder_only("llama")(), peft.LoraConfig(task_type="CAUSAL_LM", r=2,
                                                                        init_lora_weights=False))


@pytest.mark.parametrize("margin", [FIRST_TOKEN, TARGET, CHOICES])
@pytest.mark.parametrize("make", [t5, untied, lora, bart, attention_alone, embedding_alone,
                                  *map(decoder_only, DECODER_ONLY), lora_llama], ids=lambda make: make.__name__)
def test_equal_to_autograd_one_by_one(make, margin):
    model = make().eval()
    found, values = of(model)(ROWS, margin)
    assert found.sizes.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for i, row in enumerate(ROWS):
        expected_value, expected = reference(model, row, margin)
        assert float(values[i, 0]) == pytest.approx(expected_value, abs=1e-4)
        assert int(values[i, 2]) == (1 if margin == CHOICES else len(row["labels"]))
        for name, gradient in expected.items():
            scale = max(float(g.abs().max()) for g in expected.values())
            assert torch.allclose(found.of(i)[name], gradient, atol=1e-4 * scale), name


def test_loss_of_the_other_tokens_completes_the_loss():
    model = t5().eval()
    _, values = of(model)(ROWS, FIRST_TOKEN)
    for value, row in zip(values, ROWS, strict=True):
        whole = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        total = np.logaddexp(0, -float(value[0])) + float(value[1])
        assert total / len(row["labels"]) == pytest.approx(float(whole), rel=1e-4)


def test_nothing_to_train():
    model = t5()
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of the model takes a gradient"):
        of(model)


def test_scales_are_those_of_adam():
    """Known gradients: the scale is one over the root of their root mean square, over all parameters about 1."""
    model = t5()
    of_model = of(model)
    scales = of_model.scales([(ROWS, FIRST_TOKEN)])
    by_name, values = of_model(ROWS, FIRST_TOKEN)
    weight = torch.sigmoid(-values[:, 0])
    squares = {}
    for i in range(len(ROWS)):
        squares = {n: squares.get(n, 0) + (g * weight[i]).square() for n, g in by_name.of(i).items()}
    mean = sum(float(s.sum()) for s in squares.values()) / sum(s.numel() for s in squares.values())
    name = "decoder.final_layer_norm.weight"
    assert torch.allclose(scales[name], ((squares[name] / mean).sqrt() + gradients.FLOOR).rsqrt(), rtol=1e-4)
    model.requires_grad_(False)
    model.shared.weight.requires_grad_(True)
    model.lm_head.weight.data.zero_()  # tied to the embedding: nothing depends on anything
    with pytest.raises(InputError, match="gradients of the model are zero"):
        of(model).scales([(ROWS, FIRST_TOKEN)])


# ---- projection ----------------------------------------------------------------------------------------------------


def random_gradients(count, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (70, 90), "b": (3,), "c": (1000,)}
    whole = {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}
    return PerExample(whole, {}, {name: value.shape[1:] for name, value in whole.items()})


def exact(of, count):
    """The whole gradients of `count` examples, (count, parameters)."""
    return torch.stack([torch.cat([value.flatten() for value in of.of(i).values()]) for i in range(count)])


def test_projection_keeps_inner_products():
    of = random_gradients(8, 0)
    parameters = {name: value[0] for name, value in of.whole.items()}
    whole = exact(of, 8)
    errors = []
    for seed in range(20):
        found = Projection(parameters, 200, seed)(of)
        assert found.shape == (8, 200)
        errors.append((found @ found.T - whole @ whole.T) / whole.shape[1])
    errors = torch.stack(errors)
    # each error has a standard deviation of about sqrt(1 / 200) = .07, their mean over 20 seeds .016
    assert errors.mean(0).abs().max() < 0.07
    assert 0.04 < errors.std() < 0.1


def test_projection_has_a_seed_and_scales():
    of = random_gradients(2, 0)
    parameters = {name: value[0] for name, value in of.whole.items()}
    assert torch.equal(Projection(parameters, 50, 3)(of), Projection(parameters, 50, 3)(of))
    assert not torch.equal(Projection(parameters, 50, 3)(of), Projection(parameters, 50, 4)(of))
    scales = {name: torch.full_like(value, 2.0) for name, value in parameters.items()}
    assert torch.allclose(Projection(parameters, 50, 3, scales)(of), 2 * Projection(parameters, 50, 3)(of))


def test_rows_of_an_embedding_are_projected_as_the_whole():
    of_model = of(t5())
    found, _ = of_model([*ROWS, {"input_ids": [5, 5, 5, 1], "labels": [5, 1]}], TARGET)
    assert found.rows
    whole = {name: torch.stack([found.of(i)[name] for i in range(4)]) for name in found.sizes}
    for dim in (16, 400):
        projection = Projection(of_model.parameters, dim, 0)
        one, other = projection(found), projection(PerExample(whole, {}, found.sizes))
        assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


# ---- collection ----------------------------------------------------------------------------------------------------


def test_broken_off_and_resumed(tmp_path):
    of_model = of(t5())
    projection = Projection(of_model.parameters, 16, 0)
    rows = ROWS * 4
    whole, broken = tmp_path / "whole.npy", tmp_path / "broken.npy"
    assert sum(features.collect(whole, rows, TARGET, of_model, projection, 2)) == len(rows)
    collecting = features.collect(broken, rows, TARGET, of_model, projection, 2)
    assert [next(collecting) for _ in range(3)] == [0, 2, 2]
    collecting.close()  # as a kill would end it: the rest of the array is still zero
    assert features.cost(broken)["done"] == 4
    assert list(features.collect(broken, rows, TARGET, of_model, projection, 2)) == [4, 2, 2, 2, 2]
    assert np.array_equal(np.load(whole), np.load(broken))
    assert list(features.collect(broken, rows, TARGET, of_model, projection, 2)) == [len(rows)]
    found = features.read_features(whole)
    assert found.features.shape == (12, 16)
    assert found.tokens[:3].tolist() == [2, 3, 2]
    assert json.loads(whole.with_suffix(".json").read_text())["cpu_seconds"] > 0


def test_no_finite_number(tmp_path):
    model = t5()
    model.shared.weight.data[5] = torch.nan
    of_model = of(model)
    collecting = features.collect(tmp_path / "x.npy", ROWS, TARGET, of_model, Projection(of_model.parameters, 8, 0), 1)
    with pytest.raises(InputError, match="no finite number"):
        list(collecting)
    assert features.cost(tmp_path / "x.npy")["done"] == 0


@pytest.mark.parametrize("choices, ids, scored, expected", [
    (("red", "green"), [[5, 1], [6, 1]], False, FIRST_TOKEN),
    (("red words", "red"), [[5, 7, 1], [5, 1]], False, TARGET),  # both begin with the token of red
    (("red words", "red"), [[5, 7, 1], [5, 1]], True, CHOICES),
    ("options", [[5], [6]], False, TARGET),  # made of the row
    ((), [], True, TARGET),
])
def test_what_the_margin_is_of(choices, ids, scored, expected):
    prepared = SimpleNamespace(template=SimpleNamespace(answer_choices=choices), dataset=[{"choices": ids}])
    assert gradients.margin_of(prepared, scored) == expected


# ---- fits ----------------------------------------------------------------------------------------------------------


def planted(count, w, rng, shift=0.0):
    """Examples whose true move is w: margins after it are right for most."""
    phi = rng.normal(size=(count, len(w)))
    phi *= np.where(rng.random(count) < 1 / (1 + np.exp(-phi @ w)), 1, -1)[:, None]
    return Features(np.full(count, shift), np.zeros(count), np.ones(count), phi.astype(np.float32))


def loss(part, w):
    return np.logaddexp(0, -(part.margins + part.features @ w)).mean()


def test_descent_goes_down_to_the_minimum():
    rng = np.random.default_rng(0)
    parts = [planted(200, np.array([1.0, -1, 0.5, 0]), rng, 0.3), planted(100, np.array([1.0, -1, 0, 0.5]), rng)]
    rate = fits.step_size(parts)
    path = fits.descend(parts, [0.5, 0.5], rate, [1, 3, 10, 2000])
    losses = [np.mean([loss(part, w) for part in parts]) for w in path]
    assert losses == sorted(losses, reverse=True)
    slope = np.mean([(part.features / (1 + np.exp(part.margins + part.features @ path[-1]))[:, None]).mean(0)
                     for part in parts], 0)
    np.testing.assert_allclose(slope, 0, atol=1e-4)
    first = rate * np.mean([(part.features * (1 / (1 + np.exp(part.margins)))[:, None]).mean(0) for part in parts], 0)
    np.testing.assert_allclose(path[0], first, rtol=1e-4)


def test_weights_of_the_items_count():
    rng = np.random.default_rng(0)
    parts = [planted(200, np.array([2.0]), rng), planted(50, np.array([-2.0]), rng)]
    rate = fits.step_size(parts)
    assert fits.descend(parts, [1, 0], rate, [100])[0] > 0 > fits.descend(parts, [0, 1], rate, [100])[0]


def test_prediction_of_loss_and_right_answers():
    part = Features(np.array([1.0, -1.0]), np.array([0.5, 0.0]), np.array([2.0, 1.0]), np.array([[1.0], [1.0]]))
    losses, right = fits.predict(part, np.array([[0.0], [2.0]]))
    softplus = np.log1p(np.exp([-1.0, 1.0])).sum()
    np.testing.assert_allclose(losses, [(softplus + 0.5) / 3, (np.log1p(np.exp([-3.0, -1.0])).sum() + 0.5) / 3])
    assert right.tolist() == [0.5, 1.0]
