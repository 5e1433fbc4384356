"""Texts in, explanations by prototypes out: the numbers are the model's, and what cannot be explained is said."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import RobertaConfig

from bcos_transformers import (
    BcosBertConfig,
    BcosExplainer,
    ProtoConfig,
    ProtoExplainer,
    ProtoForSequenceClassification,
    project_prototypes,
)
from conftest import bcos_model, make_tokenizer, tiny_config
from tiny_tokenizers import SlowTokenizer

LABELS = {0: "negative", 1: "mixed", 2: "positive"}
TEXTS = [
    "The film is gripping, funny!",
    "soup",
    "not good , not bad",
    "a dull film \U0001f600 and bad food",
    "loved it",
]
ROWS = [
    {"text": "a gripping , funny film !", "label": 2},
    {"text": "very <script>good</script> & [bold]loved[/bold]", "label": 2},
    {"text": "great soup", "label": 2},
    {"text": "not bad", "label": 1},
    {"text": "good film , bad food", "label": 1},
    {"text": "hated it", "label": 0},
    {"text": "a very dull film", "label": 0},
]


def proto_model(bcos=True, distance="cosine", projected=True, regression=False, prototypes=6, **fields):
    """A model with prototypes over an encoder with random weights, in float64."""
    torch.manual_seed(0)
    values = tiny_config().to_dict()
    for name in ("model_type", "architectures", "id2label", "label2id"):
        values.pop(name, None)
    if regression:
        fields |= {"num_labels": 1, "regression_boundaries": [2.5], "regression_values": [1.25, 4.0]}
    else:
        fields |= {"id2label": LABELS, "label2id": {label: i for i, label in LABELS.items()}}
    backbone = BcosBertConfig(**values) if bcos else tiny_config()
    config = ProtoConfig(backbone_config=backbone, num_prototypes=prototypes, distance=distance, **fields)
    model = ProtoForSequenceClassification(config).double().eval()
    with torch.no_grad():
        for parameter in (model.prototypes, model.token_attention.context, model.classifier.weight):
            parameter.add_(torch.randn_like(parameter))
    if projected:
        project_prototypes(
            model, [{**row, "label": row["label"] + 1.5} for row in ROWS] if regression else ROWS, make_tokenizer()
        )
    return model


def with_bias(model):
    """Gives the last layer's bias values that matter."""
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.4, -0.3, 0.2]))
    return model


@pytest.fixture(scope="module")
def model():
    return proto_model()


@pytest.fixture(scope="module")
def explainer(model):
    return ProtoExplainer(model, make_tokenizer(), top_k=3)


@pytest.mark.parametrize(
    ("bcos", "distance", "bias"),
    [(True, "cosine", False), (True, "cosine", True), (True, "l2", True), (False, "cosine", True)],
)
@pytest.mark.parametrize("contrast", [None, "mean", "mixed", 0])
def test_numbers_are_those_of_the_model(bcos, distance, bias, contrast):
    model = proto_model(bcos, distance, classifier_bias=bias)
    model = with_bias(model) if bias else model
    tokenizer = make_tokenizer()
    for explanation in ProtoExplainer(model, tokenizer, top_k=4)(TEXTS, target="positive", contrast=contrast):
        encoded = tokenizer([explanation.text], return_tensors="pt")
        out = model.explain(**encoded, target=2, contrast=contrast)
        shares = {share.number: share for share in explanation.prototypes}
        expected = out.contributions[0, 0]
        assert list(shares) == expected.abs().argsort(descending=True)[:4].tolist()
        for number, share in shares.items():
            assert share.contribution == pytest.approx(expected[number].item(), abs=1e-10)
            assert share.weight * share.similarity == pytest.approx(share.contribution, abs=1e-10)
            assert share.similarity == pytest.approx(out.similarities[0, number].item(), abs=1e-10)
            assert (share.text, share.label) == tuple(
                model.config.prototypes[number][name] for name in ("text", "label")
            )
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        foil = {None: 0, "mean": logits.mean(), "mixed": logits[1], 0: logits[0]}[contrast]
        assert explanation.logit == pytest.approx((logits[2] - foil).item(), abs=1e-10)
        assert explanation.probability == pytest.approx(logits.softmax(-1)[2].item(), abs=1e-6)
        assert explanation.contrast == {0: "negative"}.get(contrast, contrast)
        assert explanation.bias == pytest.approx(out.bias.item(), abs=1e-12)
        assert abs(explanation.residual) < 1e-12
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-12)
        others = sum(value for number, value in enumerate(expected.tolist()) if number not in shares)
        assert explanation.other_prototypes_contribution == pytest.approx(others, abs=1e-10)
        assert explanation.other_prototypes == 2
        assert explanation.token_attention == pytest.approx(out.token_attention[0].tolist(), abs=1e-10)
        assert explanation.splits_over_words == (bcos and distance == "cosine")


def test_shares_are_split_exactly_over_words(model, explainer):
    for explanation in explainer(TEXTS):
        out = model.explain(**make_tokenizer()([explanation.text], return_tensors="pt"))
        assert sum(explanation.scores) + explanation.special_tokens_score == pytest.approx(
            explanation.logit, abs=1e-10
        )
        assert explanation.token_scores == pytest.approx(out.input_contributions[0, 0].tolist(), abs=1e-10)
        assert abs(explanation.words_residual) < 1e-10
        for share in explanation.prototypes:
            expected = out.token_contributions[0, 0, share.number].tolist()
            assert share.token_scores == pytest.approx(expected, abs=1e-10)
            assert sum(share.scores) + share.special_tokens_score == pytest.approx(share.contribution, abs=1e-10)
            for word, score in enumerate(share.scores):
                pieces = [s for s, unit in zip(expected, explanation.unit_of_token, strict=True) if unit == word]
                assert score == pytest.approx(sum(pieces), abs=1e-10)


def test_words_and_their_attention(explainer):
    explanation = explainer(TEXTS[0])
    assert explanation.words == ["The", "film", "is", "gripping,", "funny!"]
    assert explanation.offsets[3] == (12, 21)
    assert explanation.tokens[4:7] == ["gripp", "##ing", ","]
    assert explanation.attention[3] == pytest.approx(sum(explanation.token_attention[4:7]), abs=1e-12)
    assert sum(explanation.attention) + explanation.special_tokens_attention == pytest.approx(1, abs=1e-12)


def test_a_list_gives_what_single_texts_give_in_its_order(model):
    tokenizer = make_tokenizer()
    together = ProtoExplainer(model, tokenizer, batch_size=2)(TEXTS)
    assert [explanation.text for explanation in together] == TEXTS
    for text, explanation in zip(TEXTS, together, strict=True):
        alone = ProtoExplainer(model, tokenizer)(text)
        assert [share.number for share in explanation.prototypes] == [share.number for share in alone.prototypes]
        assert explanation.label == alone.label
        assert explanation.logit == pytest.approx(alone.logit, abs=1e-10)
        assert explanation.attention == pytest.approx(alone.attention, abs=1e-10)
        assert explanation.scores == pytest.approx(alone.scores, abs=1e-10)
        for one, other in zip(explanation.prototypes, alone.prototypes, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-10)
    assert ProtoExplainer(model, tokenizer)([]) == []


def test_inputs_of_other_kinds(explainer):
    datasets = pytest.importorskip("datasets")
    column = datasets.Dataset.from_dict({"text": TEXTS[:2]})["text"]
    wanted = explainer(TEXTS[:2])
    assert explainer(column) == wanted
    tokenized = explainer(make_tokenizer()(TEXTS[1], return_tensors="pt"))
    assert tokenized[0].logit == pytest.approx(wanted[1].logit, abs=1e-10)
    with pytest.raises(TypeError, match=r"single texts.*entry 1"):
        explainer(["film", ("film", "soup")])
    with pytest.raises(TypeError, match="Expected a string"):
        explainer(3)


def test_targets(model, explainer):
    predicted = explainer(TEXTS)
    assert {explanation.target for explanation in predicted} == {
        int(model(**make_tokenizer()([text], return_tensors="pt")).logits.argmax()) for text in TEXTS
    }
    assert [e.label for e in explainer(TEXTS[:3], target=torch.tensor([2, 0, 1]))] == ["positive", "negative", "mixed"]
    assert explainer("film", target=1) == explainer("film", target="mixed")
    for several in ("all", [0, 1], torch.tensor([[0, 1]])):
        with pytest.raises(ValueError, match="one after the other"):
            explainer("film", target=several)
    with pytest.raises(ValueError, match="not a label of this model: negative, mixed, positive"):
        explainer("film", target="happy")
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\)"):
        explainer("film", target=3)
    with pytest.raises(ValueError, match="2 rows for 1 texts"):
        explainer("film", target=torch.tensor([0, 1]))


def test_more_prototypes_than_there_are(model):
    explanation = ProtoExplainer(model, make_tokenizer(), top_k=99)("film")
    assert len(explanation.prototypes) == 6
    assert explanation.other_prototypes == explanation.other_prototypes_contribution == 0


def test_long_texts_are_cut_with_one_warning(model, caplog):
    tokenizer = make_tokenizer()
    explainer = ProtoExplainer(model, tokenizer, max_length=6, batch_size=1)
    with caplog.at_level(logging.WARNING):
        explanations = explainer(["a very very very good film", "soup", "film " * 40])
    assert [record.getMessage() for record in caplog.records] == ["2 of 3 texts have more than 6 tokens and were cut."]
    assert [explanation.truncated for explanation in explanations] == [True, False, True]
    assert explanations[0].words == ["a", "very", "very", "very"]
    alone = explainer("a very very very", target=explanations[0].target)
    assert explanations[0].logit == pytest.approx(alone.logit, abs=1e-10)


def test_limits_of_encoders():
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = int(1e30)
    assert ProtoExplainer(proto_model(), tokenizer).max_length == 32
    assert ProtoExplainer(proto_model(bcos=False), tokenizer).max_length == 32
    assert ProtoExplainer(proto_model(bcos=False), tokenizer, max_length=9).max_length == 9
    encoder = RobertaConfig(**{**tiny_config().to_dict(), "pad_token_id": 0, "max_position_embeddings": 20})
    roberta = ProtoForSequenceClassification(ProtoConfig(backbone_config=encoder, num_labels=2)).eval()
    tokenizer.model_max_length = 512
    explainer = ProtoExplainer(roberta, tokenizer)
    assert explainer.max_length == 19  # positions begin after that of padding
    assert explainer("film " * 40).truncated


def test_regression():
    model = proto_model(regression=True, prototypes=4)
    explanation = ProtoExplainer(model, make_tokenizer())("good film")
    value = model(**make_tokenizer()(["good film"], return_tensors="pt")).logits.item()
    assert explanation.logit == pytest.approx(value, abs=1e-10)
    assert explanation.probability is None
    labels = {share.number: share.label for share in explanation.prototypes}
    assert labels == {n: f"{row['label']:g}" for n, row in enumerate(model.config.prototypes)}
    unprojected = ProtoExplainer(proto_model(regression=True, prototypes=4, projected=False), make_tokenizer())("film")
    assert {s.number: s.label for s in unprojected.prototypes} == {0: "1.25", 1: "1.25", 2: "4", 3: "4"}


def test_prototypes_that_are_no_texts_yet():
    explanation = ProtoExplainer(proto_model(projected=False), make_tokenizer(), top_k=6)("good film")
    for share in explanation.prototypes:
        assert share.text is None
        assert share.index is None
        assert share.label == LABELS[share.number // 2]
        assert share.name == f"prototype {share.number} (not projected onto a text)"


def test_neither_model_nor_tokenizer_is_changed():
    model, tokenizer = proto_model().train(), make_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config, settings = model.config.to_dict(), repr(tokenizer)
    backend = tokenizer.backend_tokenizer.to_str()
    first, second = (ProtoExplainer(model, tokenizer, max_length=5)(TEXTS) for _ in range(2))
    assert first == second  # dropout is off, though the model is in training mode
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config.to_dict() == config
    assert (tokenizer.backend_tokenizer.to_str(), repr(tokenizer)) == (backend, settings)


def test_a_tokenizer_without_offsets_explains_tokens(model):
    explanation = ProtoExplainer(model, SlowTokenizer(["film", "soup"]))("film soup")
    assert explanation.granularity == "token"
    assert explanation.words == ["film", "soup"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_adds_up_too(dtype):
    for explanation in ProtoExplainer(proto_model().to(dtype), make_tokenizer())(TEXTS, contrast="mean"):
        assert abs(explanation.residual) < 1e-5
        assert abs(explanation.words_residual) < (1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("contrast", [None, "mean", 1])
def test_an_adapter_on_the_last_layer_counts(contrast):
    model = with_bias(proto_model(classifier_bias=True))
    before = ProtoExplainer(model, make_tokenizer())(TEXTS[0], target=2, contrast=contrast)
    config = LoraConfig(target_modules=["classifier"], r=2, init_lora_weights=False)
    adapted = get_peft_model(model, config).double().eval()
    explanation = ProtoExplainer(adapted, make_tokenizer(), top_k=6)(TEXTS[0], target=2, contrast=contrast)
    assert explanation.logit != pytest.approx(before.logit, abs=1e-3)
    assert abs(explanation.residual) < 1e-10
    for share in explanation.prototypes:
        assert share.weight * share.similarity == pytest.approx(share.contribution, abs=1e-10)


def test_what_cannot_be_explained(model, explainer):
    tokenizer = make_tokenizer()
    with pytest.raises(TypeError, match="BcosBertForSequenceClassification has no prototypes.*BcosExplainer explains"):
        ProtoExplainer(bcos_model(), tokenizer)
    with pytest.raises(TypeError, match="Linear has no prototypes.*from_pretrained_proto"):
        ProtoExplainer(torch.nn.Linear(2, 2), tokenizer)
    with pytest.raises(TypeError, match=r"classifies by prototypes: ProtoExplainer\(model, tokenizer\)"):
        BcosExplainer(model, tokenizer)
    with pytest.raises(TypeError, match="`tokenizer` must be a tokenizer"):
        ProtoExplainer(model, "bert-base-uncased")
    larger = make_tokenizer()
    larger.add_tokens([f"word{i}" for i in range(60)])
    with pytest.raises(ValueError, match="belongs to another model"):
        ProtoExplainer(model, larger)
    for options in ({"top_k": 0}, {"batch_size": 1.5}, {"max_length": True}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be an integer of at least 1"):
            ProtoExplainer(model, tokenizer, **options)
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match="Text 1 has no words"):
            explainer(["film", empty])
