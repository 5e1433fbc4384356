"""Post-hoc attributions: closed forms, batches, models inside of others, and what they leave alone."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from attribution_toys import TARGET, TEXTS, Additive, alone, classifiers, conventional, encoded, method_of
from bcos_transformers.evaluation.baselines import METHODS, CostMeter
from bcos_transformers.evaluation.baselines.embedded import reference_token
from conftest import bcos_model, make_tokenizer
from tiny_tokenizers import sentencepiece

POST_HOC = [name for name in METHODS if name != "bcos"]
STOCHASTIC = ["gradient_shap", "shapley_value_sampling", "kernel_shap", "lime", "random"]
WITH_REFERENCE = ["integrated_gradients", "deep_lift", "gradient_shap", "shapley_value_sampling", "kernel_shap"]
MASK = 4


@pytest.fixture(scope="module")
def models():
    return classifiers()


@pytest.fixture(scope="module")
def roberta_inputs():
    return encoded(pad=1)


@pytest.mark.parametrize(
    "name",
    [
        "occlusion",
        "integrated_gradients",
        "sequential_integrated_gradients",
        "deep_lift",
        "gradient_shap",
        "shapley_value_sampling",
        "kernel_shap",
    ],
)
def test_additive_model_gets_what_each_token_adds(name):
    model, inputs = Additive(), encoded()
    ids = inputs["input_ids"]
    special = (ids == 0) | (ids == 2) | (ids == 3)
    wanted = model.terms(ids, TARGET) - model.terms(torch.full_like(ids, MASK), TARGET)
    wanted = wanted.masked_fill(special, 0.0)
    out = method_of(name, model).attribute(inputs, TARGET)
    assert out.scores.dtype == torch.float64
    torch.testing.assert_close(out.scores, wanted, atol=1e-4 if name == "kernel_shap" else 2e-6, rtol=0)
    if METHODS[name].complete:
        torch.testing.assert_close(out.explained, wanted.sum(-1))
        torch.testing.assert_close(out.residual, out.explained - out.scores.sum(-1), atol=0, rtol=0)


def test_gradients_of_the_additive_model():
    model, inputs = Additive(), encoded()
    real = inputs["attention_mask"]
    out = method_of("saliency", model).attribute(inputs, TARGET)
    torch.testing.assert_close(out.scores, model.weight.detach().norm(dim=0)[TARGET][:, None] * real)
    assert out.explained is None and out.residual is None  # noqa: PT018
    out = method_of("input_x_gradient", model).attribute(inputs, TARGET)
    torch.testing.assert_close(out.scores, model.terms(inputs["input_ids"], TARGET) * real)
    torch.testing.assert_close(out.explained, out.scores.sum(-1))


def test_lime_finds_the_terms_of_the_additive_model_up_to_its_shrinkage():
    model, inputs = Additive(), encoded(TEXTS[:1])
    ids = inputs["input_ids"]
    wanted = (model.terms(ids, TARGET[:1]) - model.terms(torch.full_like(ids, MASK), TARGET[:1]))[0, 1:-1]
    found = method_of("lime", model, n_samples=200).attribute(inputs, TARGET[:1]).scores[0, 1:-1]
    torch.testing.assert_close(found, wanted, atol=0.08, rtol=0)
    assert (found.abs() <= wanted.abs() + 1e-2).all()


@pytest.mark.parametrize(("baseline", "token"), [("mask", MASK), ("pad", 0), ("zero", None)])
@pytest.mark.parametrize("name", ["integrated_gradients", "deep_lift", "sequential_integrated_gradients"])
def test_baselines_say_what_a_token_is_exchanged_for(name, baseline, token):
    model, inputs = Additive(), encoded(TEXTS[:1])
    ids = inputs["input_ids"]
    wanted = model.terms(ids, TARGET[:1])
    if token is not None:
        wanted -= model.terms(torch.full_like(ids, token), TARGET[:1])
    found = method_of(name, model, baseline=baseline).attribute(inputs, TARGET[:1]).scores
    torch.testing.assert_close(found[0, 1:-1], wanted[0, 1:-1], atol=1e-6, rtol=0)


def test_deep_lift_rescales_activations_of_torch_and_is_complete_there():
    inputs = encoded()
    squashed = method_of("deep_lift", Additive(nn.Tanh()))
    assert squashed.rescaled_modules() == ["activation"]
    assert squashed.attribute(inputs, TARGET).residual.abs().max() < 1e-9
    assert method_of("input_x_gradient", Additive(nn.Tanh())).attribute(inputs, TARGET).residual.abs().max() > 1e-2
    assert method_of("deep_lift", conventional("bert")).rescaled_modules() == ["bert.pooler.activation"]
    assert method_of("deep_lift", bcos_model()).rescaled_modules() == []


def test_sampled_shapley_values_are_efficient_and_approach_the_exact_ones():
    model, text = Additive(nn.Tanh()), "film dull good"
    inputs, target = encoded([text]), torch.tensor([1])
    ids = inputs["input_ids"]

    def value(kept) -> float:
        masked = torch.full_like(ids, MASK)
        for place in (0, 4, *(i + 1 for i in kept)):
            masked[0, place] = ids[0, place]
        return model(masked, inputs["attention_mask"]).logits[0, 1].item()

    exact = [0.0] * 3
    for order in itertools.permutations(range(3)):
        for i, token in enumerate(order):
            exact[token] += (value(order[: i + 1]) - value(order[:i])) / 6
    for n in (1, 10, 600):
        out = method_of("shapley_value_sampling", model, n_permutations=n).attribute(inputs, target)
        assert out.explained.item() == pytest.approx(value(range(3)) - value(()), abs=1e-9)
        assert abs(out.residual.item()) < 1e-5  # captum sums in float32
    assert out.scores[0, 1:-1].tolist() == pytest.approx(exact, abs=0.05)
    kernel = method_of("kernel_shap", model, n_samples=2000).attribute(inputs, target)
    assert kernel.scores[0, 1:-1].tolist() == pytest.approx(exact, abs=0.05)


def test_integrated_gradients_residual_shrinks_with_steps(models):
    residuals = [
        method_of("integrated_gradients", models["bert"], n_steps=steps)
        .attribute(encoded(), TARGET)
        .residual.abs()
        .max()
        for steps in (1, 4, 40)
    ]
    assert residuals[0] > 10 * residuals[1] > 100 * residuals[2]
    assert residuals[2] < 1e-6


def test_sequential_integrated_gradients_integrate_what_occlusion_measures(models):
    for name in ("bert", "gpt2", "bcos"):
        one = method_of("sequential_integrated_gradients", models[name], n_steps=300, internal_batch_size=600)
        other = method_of("occlusion", models[name])
        rows = encoded(TEXTS[:1])
        gap = one.attribute(rows, TARGET[:1]).scores - other.attribute(rows, TARGET[:1]).scores
        assert gap.abs().max() < 2e-3


def test_internal_batches_change_nothing(models):
    for name, option in (
        ("integrated_gradients", "internal_batch_size"),
        ("sequential_integrated_gradients", "internal_batch_size"),
        ("occlusion", "perturbations_per_eval"),
        ("shapley_value_sampling", "perturbations_per_eval"),
        ("kernel_shap", "perturbations_per_eval"),
        ("lime", "perturbations_per_eval"),
    ):
        one, other = (
            method_of(name, models["gpt2"], **{option: size}).attribute(encoded(), TARGET) for size in (3, 50)
        )
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("bert", "bcos", "gpt2", "roberta")
        for name in METHODS
        if kind == "bcos" or name != "bcos"
    ],
)
def test_scores_do_not_depend_on_the_batch(name, kind, models, roberta_inputs):
    model = models[kind]
    inputs = roberta_inputs if kind == "roberta" else encoded(types=True)
    method = method_of(name, model)
    keys = [7, 3, 11, 5]
    out = method.attribute(inputs, TARGET, keys)
    assert (out.scores[inputs["attention_mask"] == 0] == 0).all()
    assert (out.explained is None) == (not method.complete)
    for row in range(4):
        single = method.attribute(alone(inputs, row), TARGET[row : row + 1], keys[row : row + 1])
        tokens = single.scores.shape[1]
        torch.testing.assert_close(single.scores[0], out.scores[row, :tokens], atol=1e-5, rtol=0)
        if method.complete:
            torch.testing.assert_close(single.explained[0], out.explained[row], atol=1e-5, rtol=0)
    if name not in ("random", "attention", "attention_rollout", "lime"):
        other = method.attribute(inputs, (TARGET + 1) % 3, keys).scores
        assert (other[0] - out.scores[0]).abs().max() > 1e-3
    assert out.scores[0].abs().max() > 1e-3


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_explained_is_the_models_own_difference_of_logits(name, models):
    for kind in ("bert", "bcos", "gpt2"):
        inputs = encoded(TEXTS[:1])
        ids = inputs["input_ids"]
        special = torch.isin(ids, torch.tensor([2, 3]))
        reference = {**inputs, "input_ids": torch.where(special, ids, MASK)}
        with torch.no_grad():
            wanted = models[kind](**inputs).logits[0, 2] - models[kind](**reference).logits[0, 2]
        out = method_of(name, models[kind]).attribute(inputs, torch.tensor([2]))
        torch.testing.assert_close(out.explained[0], wanted)


def test_a_reference_that_is_the_padding_token_moves_no_head():
    names = {"unk_token": "[UNK]", "pad_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, **names)
    model = conventional("gpt2")
    model.config.pad_token_id = tokenizer.pad_token_id
    inputs, tokens = encoded(TEXTS[:1], pad=1), 8
    ids = inputs["input_ids"][0]
    embed = model.get_input_embeddings()

    def logit(without: int | None) -> torch.Tensor:
        kept = torch.arange(tokens)[:, None] != (-1 if without is None else without)
        with torch.no_grad():
            rows = torch.where(kept, embed(ids), embed.weight[1])[None]
            return model.score(model.transformer(inputs_embeds=rows).last_hidden_state[0, -1])[0]

    wanted = torch.stack([logit(None) - logit(i) for i in range(tokens)])
    for name, options in (("occlusion", {}), ("sequential_integrated_gradients", {"n_steps": 400})):
        found = method_of(name, model, tokenizer, **options).attribute(inputs, TARGET[:1]).scores[0]
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_texts_without_words_get_nothing_from_methods_that_exchange_words(models):
    for name in (*WITH_REFERENCE, "sequential_integrated_gradients", "occlusion", "lime"):
        out = method_of(name, models["bert"]).attribute(encoded(["", "soup"]), TARGET[:2])
        assert (out.scores[0] == 0).all()
        assert out.scores[1].any()
        assert out.residual is None or out.residual[0] == 0


def test_empty_batches(models):
    nothing = torch.zeros(0, 5, dtype=torch.long)
    for name in ("saliency", "occlusion", "attention"):
        out = method_of(name, models["bert"]).attribute({"input_ids": nothing}, torch.zeros(0, dtype=torch.long))
        assert out.scores.shape == (0, 5)


@pytest.mark.parametrize("name", METHODS)
def test_model_and_generators_are_left_as_they_were(name):
    model = bcos_model() if name == "bcos" else conventional("bert")
    model.train()
    model.base_model.encoder.layer[0].eval()
    first = next(model.parameters())
    first.requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)

    def state():
        return {
            "modes": [module.training for module in model.modules()],
            "hooks": [
                len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
            ],
            "attributes": [sorted(module.__dict__) for module in model.modules()],
            "trained": [
                (p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()
            ],
            "weights": [p.detach().sum().item() for p in model.parameters()],
            "objects": [id(p) for p in (*model.parameters(), *model.buffers())],
            "config": (model.config.to_dict(), model.config._attn_implementation),
            "generators": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),
            "enabled": torch.is_grad_enabled(),
        }

    before = state()
    inputs = encoded()
    copies = {key: value.clone() for key, value in inputs.items()}
    method_of(name, model).attribute(inputs, TARGET)
    with torch.inference_mode():
        method_of(name, model).attribute(encoded(), TARGET.clone())
    assert state() == before
    assert all(torch.equal(inputs[key], copies[key]) for key in copies)


def test_an_error_in_the_model_leaves_no_hook_behind(models):
    model = conventional("bert")
    handle = model.classifier.register_forward_hook(lambda *_: 1 / 0)
    for name in POST_HOC[:-1]:
        if name not in ("attention", "attention_rollout"):
            with pytest.raises(ZeroDivisionError):
                method_of(name, model).attribute(encoded(), TARGET)
    handle.remove()
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


@pytest.mark.parametrize("name", STOCHASTIC)
def test_random_numbers_come_from_seed_and_key_alone(name, models):
    inputs, target = encoded(TEXTS[:1]), TARGET[:1]

    def scores(seed: int = 0, key: int = 0) -> torch.Tensor:
        options = {} if name == "random" else {"kernel_shap": {"n_samples": 12}}.get(name, {})
        return method_of(name, models["bert"], seed=seed, **options).attribute(inputs, target, [key]).scores

    first = scores()
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(scores(), first)
    assert not torch.equal(scores(seed=1), first)
    assert not torch.equal(scores(key=1), first)


def test_random_scores_are_normal(models):
    rows = encoded([" ".join(["soup"] * 20)] * 50)
    scores = method_of("random", models["bert"]).attribute(rows, torch.zeros(50, dtype=torch.long)).scores
    assert abs(scores.mean()) < 0.1
    assert abs(scores.std() - 1) < 0.1


# Models inside of others


def test_models_with_adapters_and_without_a_padding_token(models):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        conventional("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    ).eval()
    plain, no_padding = conventional("gpt2"), conventional("gpt2")
    no_padding.config.pad_token_id = None
    for name in ("saliency", "integrated_gradients", "occlusion", "attention"):
        method = method_of(name, adapted)
        with CostMeter(method) as meter:
            scores = method.attribute(encoded(), TARGET).scores
        assert meter.tokens > 0
        assert (scores - method_of(name, models["bert"]).attribute(encoded(), TARGET).scores).abs().max() > 1e-3
        one, other = (method_of(name, model).attribute(encoded(), TARGET).scores for model in (plain, no_padding))
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="pad_token_id"):
        method_of("deep_lift", no_padding)


def test_half_precision(models):
    model = conventional("bert").bfloat16()
    for name in ("saliency", "integrated_gradients", "occlusion", "attention"):
        half = method_of(name, model).attribute(encoded(), TARGET).scores
        whole = method_of(name, models["bert"]).attribute(encoded(), TARGET).scores
        assert half.dtype == torch.float64
        assert torch.corrcoef(torch.stack((half[0], whole[0])))[0, 1] > 0.95


def test_reference_tokens_of_tokenizers_without_a_mask_token():
    tokenizer = sentencepiece()
    assert reference_token(tokenizer, "mask") == tokenizer.unk_token_id
    tokenizer = make_tokenizer()
    for kind, nothing in (("mask", "unk"), ("unk", "pad"), ("pad", None)):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **_names(kind))
        if nothing:
            assert reference_token(tokenizer, "mask") == {"unk": 1, "pad": 0}[nothing]
        else:
            with pytest.raises(ValueError, match="none of the tokens"):
                method_of("occlusion", conventional("bert"), tokenizer)
            assert method_of("integrated_gradients", conventional("bert"), tokenizer, baseline="zero")


def _names(without: str) -> dict[str, str]:
    kinds = ("mask", "unk", "pad")
    return {f"{kind}_token": f"[{kind.upper()}]" for kind in kinds[kinds.index(without) + 1 :]}
