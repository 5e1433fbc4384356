"""Attributions by attention, what attributions cost, and the explainer over all of them."""

import pytest
import torch
from torch import nn

from attribution_toys import TARGET, TEXTS, classifiers, conventional, encoded, method_of
from bcos_transformers import BcosExplainer
from bcos_transformers.evaluation.baselines import METHODS, CostMeter, build_method
from bcos_transformers.evaluation.post_hoc_explainer import PostHocExplainer
from conftest import bcos_model, make_tokenizer
from contract import DECODERS, TINY, tiny_model


@pytest.fixture(scope="module")
def models():
    return classifiers()


# Attention


def test_attention_is_read_where_the_head_reads(models):
    for kind, position in (("bert", 0), ("gpt2", -1)):
        model = models[kind]
        eager = type(model)._from_config(model.config, attn_implementation="eager").double().eval()
        eager.load_state_dict(model.state_dict())
        inputs = encoded(TEXTS[:1])
        with torch.no_grad():
            layers = torch.stack(eager(**inputs, output_attentions=True).attentions)[
                :, 0
            ]  # layers, heads, tokens, tokens
        out = method_of("attention", model).attribute(inputs, TARGET[:1])
        torch.testing.assert_close(out.scores[0], layers.mean((0, 1))[position])
        one, two = (0.5 * layer + 0.5 * torch.eye(8, dtype=torch.float64) for layer in layers.mean(1))
        rollout = method_of("attention_rollout", model).attribute(inputs, TARGET[:1])
        torch.testing.assert_close(rollout.scores[0], (two @ one)[position])
        assert rollout.scores.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", TINY)
def test_attention_of_every_architecture(name):
    for model in (conventional(name), tiny_model(name, "sequence-classification")):
        inputs = encoded(pad=model.config.pad_token_id)
        for method in ("attention", "attention_rollout"):
            scores = method_of(method, model).attribute(inputs, TARGET).scores
            torch.testing.assert_close(scores.sum(-1), torch.ones(4, dtype=torch.float64))
            if name in DECODERS and method == "attention":
                last = inputs["attention_mask"].sum(-1) - 1
                assert (scores.gather(1, last[:, None]) > 0).all()


def test_mean_pooling_classifiers_read_every_token():
    model = conventional("modernbert", classifier_pooling="mean")
    first = conventional("modernbert", classifier_pooling="cls")
    inputs = encoded(TEXTS[:1])
    one, other = (method_of("attention", m).attribute(inputs, TARGET[:1]).scores for m in (model, first))
    assert (one - other).abs().max() > 1e-3


def test_the_eager_twin_shares_weights_and_buffers_now_and_later():
    model = conventional("llama")
    method = method_of("attention", model)
    (twin,) = method.models()
    assert method.models() == (twin,)
    assert twin.config._attn_implementation == "eager" != model.config._attn_implementation
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    before = method.attribute(encoded(), TARGET).scores
    model.to(torch.float32)
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    torch.testing.assert_close(method.attribute(encoded(), TARGET).scores, before, atol=1e-5, rtol=0)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(-3)
    assert (method.attribute(encoded(), TARGET).scores - before).abs().max() > 1e-3
    with torch.no_grad():
        assert model(**encoded(), output_attentions=False).logits.shape == (4, 3)


# Cost


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bcos"])
def test_cost_in_forward_passes(kind, models):
    inputs = encoded(TEXTS[:1])
    words = inputs["input_ids"].shape[1] - 2
    wanted = {
        "saliency": 2,
        "input_x_gradient": 2,
        "integrated_gradients": 40,
        "sequential_integrated_gradients": 20 * words,
        "deep_lift": 4,
        "gradient_shap": 10,
        "shapley_value_sampling": 10 * words + 1,
        "kernel_shap": 200,
        "lime": 200,
        "occlusion": words + 1,
        "attention": 1,
        "attention_rollout": 1,
        "random": 0,
        "bcos": 2,
    }
    assert list(wanted) == list(METHODS)
    for name, cost in wanted.items():
        if name == "bcos" and kind != "bcos":
            continue
        method = build_method(name, models[kind], make_tokenizer())
        with CostMeter(method) as meter:
            method.attribute(inputs, TARGET[:1])
        assert meter.tokens / inputs["input_ids"].numel() == cost, name
        assert not any(module._forward_hooks for module in models[kind].modules())


def test_cost_counts_padding_and_stops_with_the_block(models):
    inputs = encoded()
    model = models["bcos"]
    with CostMeter(model, model) as meter:
        model.explain(**inputs, target=0)
        assert meter.tokens == 2 * inputs["input_ids"].numel()
        model(**inputs)
        assert meter.tokens == 3 * inputs["input_ids"].numel()
    model.explain(**inputs, target=0)
    assert meter.tokens == 3 * inputs["input_ids"].numel()


def test_a_twin_that_is_built_while_a_meter_runs_does_not_feed_it_afterwards(models):
    method = method_of("attention", models["bert"])
    with CostMeter(models["bert"]) as meter:
        method.attribute(encoded(), TARGET)
    before = meter.tokens
    method.attribute(encoded(), TARGET)
    assert meter.tokens == before


def test_models_whose_tokens_cannot_be_counted_say_so():
    model = nn.Linear(2, 2)
    with CostMeter(model), pytest.raises(ValueError, match="hidden states"):
        model(torch.zeros(1, 2))


# The explainer


def test_explainer_sums_the_methods_scores_over_words(models):
    text = "gripping , not very good"
    model = models["bert"]
    explanation = PostHocExplainer(model, make_tokenizer(), method="integrated_gradients")(text)
    inputs = encoded([text])
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    scores = method_of("integrated_gradients", model).attribute(inputs, logits.argmax()[None]).scores[0]
    wanted = [scores[1] + scores[2], *scores[3:7]]
    assert explanation.words == text.split()
    assert explanation.scores == pytest.approx([float(score) for score in wanted])
    assert explanation.target == int(logits.argmax())
    assert explanation.logit == pytest.approx(float(logits.max()))
    assert explanation.probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-6)
    assert explanation.residual == pytest.approx(float(logits.max() - scores.sum()))
    assert "gripping" in explanation.to_html()
    assert type(explanation).from_json(explanation.to_json()) == explanation


@pytest.mark.parametrize("method", ["saliency", "gradient_shap", "kernel_shap", "attention"])
def test_explainer_answers_the_same_for_a_text_in_any_company(method, models):
    explainer = PostHocExplainer(models["gpt2"], make_tokenizer(), method=method, batch_size=2)
    for text, explanation in zip(TEXTS, explainer(TEXTS, target="all"), strict=True):
        single = explainer(text, target="all")
        assert sorted(explanation.scores) == [0, 1, 2]
        for target in range(3):
            assert single.scores[target] == pytest.approx(explanation.scores[target], abs=1e-5)


def test_explainer_with_the_models_own_contributions_is_the_bcos_explainer(models):
    own = BcosExplainer(models["bcos"], make_tokenizer())
    other = PostHocExplainer(models["bcos"], make_tokenizer(), method="bcos", granularity="token")
    for one, two in zip(own(TEXTS, granularity="token"), other(TEXTS), strict=True):
        assert one.scores == pytest.approx(two.scores)
        assert (one.label, one.words) == (two.label, two.words)
        assert abs(two.residual) < 1e-9


def test_explainer_reads_long_texts_in_windows_and_regressions(models):
    long = " ".join(["soup", "dull"] * 30)
    explanation = PostHocExplainer(models["bert"], make_tokenizer(), method="occlusion", stride=4)(long)
    assert len(explanation.scores) == 60
    assert len(explanation.windows) > 1
    several = conventional("bert", problem_type="multi_label_classification")
    assert PostHocExplainer(several, make_tokenizer(), method="saliency")("soup").target == [0, 1, 2]
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.model_max_length = "[UNK]", 10**31
    roberta = PostHocExplainer(models["roberta"], tokenizer, method="saliency")
    assert roberta.max_length == 32
    assert len(roberta(long).tokens) == 32


def test_explainer_loads_conventional_and_bcos_classifiers(models, tmp_path):
    for name in ("bert", "bcos"):
        models[name].save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
        explainer = PostHocExplainer.from_pretrained(str(tmp_path / name), method="occlusion", dtype=torch.float64)
        wanted = PostHocExplainer(models[name], make_tokenizer(), method="occlusion")
        assert explainer("good soup").scores == pytest.approx(wanted("good soup").scores)


def test_explainer_refuses_what_it_cannot_do(models):
    explainer = PostHocExplainer(models["bert"], make_tokenizer(), method="saliency")
    with pytest.raises(ValueError, match="leave `contrast`"):
        explainer("soup", contrast=1)
    with pytest.raises(ValueError, match="leave `contrast` and `position` out"):
        explainer("soup", position=1)
    with pytest.raises(TypeError, match="sequence classifiers, got BcosBertForMaskedLM"):
        PostHocExplainer(bcos_model("masked-lm"), make_tokenizer())
    with pytest.raises(TypeError, match="sequence classifiers, got BertModel"):
        PostHocExplainer(models["bert"].base_model, make_tokenizer())
    with pytest.raises(TypeError, match="no option 'speed'"):
        PostHocExplainer(models["bert"], make_tokenizer(), method="saliency", speed=2)
