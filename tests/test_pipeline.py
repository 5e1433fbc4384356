"""The pipeline `bcos-text-classification`: what the stock one says, and why."""

import json

import pytest
import torch
from test_remote_code import run
from transformers import AutoTokenizer, BertForSequenceClassification, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import bcos_transformers
from bcos_transformers import BcosExplainer, TextExplanation
from bcos_transformers.pipelines import TASK, register_pipelines
from conftest import bcos_model, make_tokenizer, tiny_config
from contract import tiny_model
from tiny_tokenizers import SlowTokenizer

LABELS = {0: "bad", 1: "good", 2: "so so"}
TEXTS = ["a very good film , not dull !", "the soup was bad", "funny"]
LONG = " ".join(["good", "soup", "."] * 20)


@pytest.fixture
def model():
    return bcos_model(id2label=LABELS)


@pytest.fixture
def classify(model, tokenizer):
    return pipeline(TASK, model=model, tokenizer=tokenizer)


def without(answers):
    """The answers as they are without explanations."""
    if isinstance(answers, list):
        return [without(answer) for answer in answers]
    return {"label": answers["label"], "score": pytest.approx(answers["score"], rel=1e-6)}


def assert_same(got: dict, wanted: TextExplanation) -> None:
    """An explanation of the pipeline equals the explainer's."""
    got, wanted = TextExplanation.from_dict(got).to_dict(), wanted.to_dict()
    for name, value in wanted.items():
        close = name in ("scores", "token_scores", "logit", "probability", "special_tokens_score")
        if name == "residual":
            assert abs(got[name]) < 1e-9
        else:
            close = close and value is not None
            assert got[name] == (pytest.approx(value, rel=1e-6, abs=1e-9) if close else value), name


def test_answers_are_those_of_the_stock_pipeline(classify, model, tokenizer):
    stock = pipeline("text-classification", model=model, tokenizer=tokenizer)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    for inputs in (TEXTS[0], TEXTS, [TEXTS[0]], pair, [pair, pair]):
        for options in (
            {},
            {"top_k": 1},
            {"top_k": 2},
            {"top_k": None},
            {"function_to_apply": "sigmoid"},
            {"function_to_apply": "none", "top_k": None},
        ):
            wanted = stock(inputs, **options)
            assert classify(inputs, explain=False, **options) == wanted, (inputs, options)
            got = classify(inputs, **options)
            assert without(got) == wanted, (inputs, options)
            assert json.loads(json.dumps(got)) == got


def test_each_label_has_its_explanation(classify, model, tokenizer):
    explainer = BcosExplainer(model, tokenizer)
    for text, (answer,) in zip(TEXTS, (classify(text) for text in TEXTS), strict=True):
        assert_same(answer["explanation"], explainer(text))
        e = answer["explanation"]
        assert sum(e["scores"]) + e["special_tokens_score"] == pytest.approx(e["logit"], rel=1e-9)
    for answer in classify(TEXTS[0], top_k=None):
        assert_same(answer["explanation"], explainer(TEXTS[0], target=answer["label"]))
    for granularity in ("token", "word", "sentence"):
        (answer,) = classify(LONG[:50], granularity=granularity, contrast="good", target="bad")
        assert_same(
            answer["explanation"], explainer(LONG[:50], granularity=granularity, contrast="good", target="bad")
        )
    pair = classify({"text": TEXTS[0], "text_pair": TEXTS[1]}, contrast="mean")
    assert_same(
        (pair[0] if isinstance(pair, list) else pair)["explanation"], explainer((TEXTS[0], TEXTS[1]), contrast="mean")
    )


def test_targets(classify):
    assert [a["label"] for a in classify(TEXTS[0], target="good")] == ["good"]
    assert [a["label"] for a in classify(TEXTS[0], target=0)] == ["bad"]
    every = classify(TEXTS[0], target="all")
    assert without(every) == classify(TEXTS[0], top_k=None, explain=False)
    two = classify(TEXTS, target=["bad", 1], batch_size=2)
    assert [sorted(a["label"] for a in answers) for answers in two] == [["bad", "good"]] * 3
    assert all(answers[0]["score"] >= answers[1]["score"] for answers in two)
    assert len(classify(TEXTS[0], target=["bad", 1], top_k=1)) == 1
    plain = classify(TEXTS[0], target=["bad", 1], explain=False)
    assert plain == [{k: a[k] for k in ("label", "score")} for a in classify(TEXTS[0], target=["bad", 1])]


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"batch_size": 3}, {"padding": "max_length", "max_length": 20}]
)
def test_batches_and_padding_change_nothing(classify, options):
    single = [classify(text, top_k=2) for text in TEXTS]
    batched = classify(TEXTS, top_k=2, **options)
    for one, other in zip(single, batched, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a["score"] == pytest.approx(b["score"])
            assert_same(a["explanation"], TextExplanation.from_dict(b["explanation"]))


def test_generators_and_nothing(classify):
    answers = list(classify(text for text in TEXTS))
    assert [a["explanation"]["text"] for a in answers] == TEXTS
    assert classify([]) == []


def test_a_long_text_is_cut_and_says_so(classify, tokenizer, caplog):
    before = tokenizer.backend_tokenizer.to_str()
    with caplog.at_level("WARNING"):
        (answer,) = classify(LONG)
    assert answer["explanation"]["truncated"]
    assert "32" in caplog.text
    assert len(answer["explanation"]["tokens"]) == 32
    assert not classify(TEXTS[0])[0]["explanation"]["truncated"]
    assert classify(LONG, max_length=8, truncation=True)[0]["explanation"]["tokens"][-1] == "[SEP]"
    assert len(classify(LONG, max_length=8)[0]["explanation"]["tokens"]) == 8
    assert tokenizer.backend_tokenizer.to_str() == before
    with pytest.raises(ValueError, match="32"):
        classify(LONG, truncation=False)
    with pytest.raises(ValueError, match="BcosExplainer"):
        classify(LONG, max_length=8, return_overflowing_tokens=True)


def test_a_tokenizer_without_offsets(model):
    words = [f"w{i}" for i in range(40)]
    tokenizer = SlowTokenizer(words)
    classify = pipeline(TASK, model=model, tokenizer=tokenizer)
    (answer,) = classify("w1 w2 w3")
    assert_same(answer["explanation"], BcosExplainer(model, tokenizer)("w1 w2 w3"))
    (answer,) = classify(" ".join(words))
    assert answer["explanation"]["truncated"]


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"problem_type": "regression"}, 3),
        ({"problem_type": "multi_label_classification"}, 3),
        ({"num_labels": 1, "id2label": {0: "score"}}, 1),
    ],
)
def test_regression_and_multi_label(tokenizer, fields, labels):
    model = bcos_model(**{"id2label": LABELS, **fields})
    classify, stock = (pipeline(task, model=model, tokenizer=tokenizer) for task in (TASK, "text-classification"))
    assert without(classify(TEXTS)) == stock(TEXTS)
    got = classify(TEXTS, top_k=None, batch_size=2)
    assert without(got) == stock(TEXTS, top_k=None)
    explainer = BcosExplainer(model, tokenizer)
    for text, answers in zip(TEXTS, got, strict=True):
        assert len(answers) == labels
        for answer in answers:
            assert_same(answer["explanation"], explainer(text, target=answer["label"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_in_other_dtypes(dtype):
    model = tiny_model("llama", "sequence-classification").to(dtype)
    tokenizer = make_tokenizer()
    model.config.pad_token_id = tokenizer.pad_token_id
    classify = pipeline(TASK, model=model, tokenizer=tokenizer)
    for answers in classify(TEXTS, batch_size=3, top_k=None):
        for answer in answers:
            e = answer["explanation"]
            total = sum(e["scores"]) + e["special_tokens_score"] + e["residual"]
            assert total == pytest.approx(e["logit"], abs=1e-6)


def test_mistakes(classify, tokenizer):
    conventional = BertForSequenceClassification(tiny_config())
    for other in (conventional, bcos_model("token-classification")):
        with pytest.raises(TypeError, match="from_pretrained_bcos"):
            pipeline(TASK, model=other, tokenizer=tokenizer)
    for options, error, words in (
        ({"granularity": "letter"}, ValueError, "token, word, sentence"),
        ({"target": "nice"}, ValueError, "not a label"),
        ({"target": 7}, ValueError, r"\[0, 3\)"),
        ({"target": []}, ValueError, "list of labels"),
        ({"target": ["bad", 0]}, ValueError, "twice"),
        ({"contrast": "nice"}, ValueError, "not a label"),
        ({"explain": "yes"}, TypeError, "True or False"),
    ):
        with pytest.raises(error, match=words):
            classify(TEXTS[0], **options)
    for wrong in (3, {"text": 5}, [3]):
        with pytest.raises((TypeError, ValueError)):
            classify(wrong)


def test_model_and_tokenizer_stay_as_they_were(model, tokenizer):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    configuration, backend = model.config.to_dict(), tokenizer.backend_tokenizer.to_str()
    pipeline(TASK, model=model, tokenizer=tokenizer)(TEXTS, batch_size=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.config.to_dict() == configuration
    assert tokenizer.backend_tokenizer.to_str() == backend


def test_a_tokenizer_that_cuts_and_pads_by_itself_goes_on_doing_so(model, tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(max_length=9)
    tokenizer.backend_tokenizer.enable_padding(length=12, pad_token="[PAD]")
    before = tokenizer.backend_tokenizer.to_str()
    pipeline(TASK, model=model, tokenizer=tokenizer)([*TEXTS, LONG], batch_size=2)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_registration_is_idempotent(caplog):
    entry = PIPELINE_REGISTRY.supported_tasks[TASK]
    with caplog.at_level("WARNING"):
        register_pipelines()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] is entry
    assert not caplog.text


def test_saved_models_carry_their_pipeline(model, tokenizer, tmp_path):
    """However a classifier is saved; other heads, and other pipelines of the user, are left alone."""
    model = model.float()
    model.config.custom_pipelines = {"mine": {"impl": "mine.Mine", "pt": [], "type": "text"}}
    model.save_pretrained(tmp_path / "beside")
    config = json.loads((tmp_path / "beside" / "config.json").read_text())
    assert set(config["custom_pipelines"]) == {"mine", TASK}
    del model.config.custom_pipelines
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pipeline(TASK, model=model, tokenizer=tokenizer).save_pretrained(tmp_path / "pipeline")
    for folder in ("model", "pipeline"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        entry = config["custom_pipelines"][TASK]
        assert entry["impl"] == "pipeline_bcos.BcosTextClassificationPipeline"
        assert (tmp_path / folder / "pipeline_bcos.py").is_file()
    head = bcos_transformers.BcosBertForTokenClassification.from_pretrained(tmp_path / "model")
    head.save_pretrained(tmp_path / "head")
    assert "custom_pipelines" not in json.loads((tmp_path / "head" / "config.json").read_text())

    wanted = pipeline(TASK, model=model, tokenizer=tokenizer)(TEXTS, top_k=None)
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    code = """
import json
from transformers import pipeline
for folder in ("model", "pipeline", "again"):
    classify = pipeline(model=folder, trust_remote_code=True)
    assert classify.task == "bcos-text-classification"
    assert type(classify).__module__.startswith("transformers_modules")
    got, wanted = classify(TEXTS, top_k=None), json.load(open("wanted.json"))
    for a, b in zip(sum(got, []), sum(wanted, [])):
        assert a["label"] == b["label"] and abs(a["score"] - b["score"]) < 1e-6
        for x, y in zip(a["explanation"]["scores"], b["explanation"]["scores"]):
            assert abs(x - y) < 1e-5
    classify.model.save_pretrained("again")
    classify.tokenizer.save_pretrained("again")
assert not pipeline("text-classification", model="again", trust_remote_code=True)("good")[0].get("explanation")
try:
    pipeline(TASK, model="again")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
print("all equal")
"""
    result = run(code.replace("TEXTS", repr(TEXTS)).replace("TASK", repr(TASK)), tmp_path)
    assert "all equal" in result.stdout, result.stderr[-3000:]


def test_with_the_package(model, tokenizer, tmp_path, monkeypatch):
    """A loaded model needs no flag; by name, transformers asks for it because the repository brings a pipeline."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = model.float()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = bcos_transformers.load_bcos_model(tmp_path / "model")
    (answer,) = pipeline(TASK, model=loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "model"))(TEXTS[0])
    own = pipeline(
        TASK, model=str(tmp_path / "model"), pipeline_class=bcos_transformers.BcosTextClassificationPipeline
    )
    assert own(TEXTS[0])[0]["explanation"]["words"] == answer["explanation"]["words"]
