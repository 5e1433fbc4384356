"""Texts in, words out: every architecture, head and kind of tokenizer, and models that do not fit."""

import itertools

import pytest
import torch
from transformers import AutoTokenizer, pipeline

import bcos_transformers
from bcos_transformers import BcosExplainer
from conftest import bcos_model, make_tokenizer
from contract import HEADS, tiny_config, tiny_model
from explainer_checks import ABSOLUTE, check_sum, same
from tiny_tokenizers import SlowTokenizer, byte_level, sentencepiece


@pytest.fixture(scope="module")
def model():
    return bcos_model()


def test_regression_and_multi_label_explain_every_output():
    multi = BcosExplainer(bcos_model(problem_type="multi_label_classification"), make_tokenizer())("not good")
    assert multi.target == [0, 1, 2]
    sigmoid = [1 / (1 + torch.tensor(-multi.logit[t]).exp().item()) for t in range(3)]
    assert list(multi.probability.values()) == pytest.approx(sigmoid, abs=1e-6)
    one = BcosExplainer(bcos_model(num_labels=1), make_tokenizer())("not good")
    assert one.target == 0
    assert one.probability is None
    for explanation in (multi, one):
        check_sum(explanation)


@pytest.mark.parametrize(("name", "task"), HEADS)
def test_every_architecture_and_head(name, task):
    """Words and special tokens add up to the logit."""
    fields = {"vocab_size": 400, "pad_token_id": 0, "mask_token_id": 4}
    model = tiny_model(name, task, **fields)
    tokenizer = make_tokenizer()
    texts = ["the film was good [MASK]", "not very gripping [MASK] soup"]
    inputs = [("it is the soup ?", text) for text in texts] if task == "question-answering" else texts
    explanations = BcosExplainer(model, tokenizer)(inputs, granularity="word")
    flat = list(itertools.chain(*explanations)) if task == "token-classification" else explanations
    for explanation in flat:
        check_sum(explanation)
        assert explanation.task == task
        assert 0 < explanation.probability <= 1
    alone = BcosExplainer(model, tokenizer, batch_size=1)(inputs)
    for one, other in zip(explanations, alone, strict=True):
        pairs = zip(one, other, strict=True) if task == "token-classification" else [(one, other)]
        assert all(same(a, b) for a, b in pairs)


def test_token_classification_explains_each_word_at_its_first_token():
    model = bcos_model("token-classification")
    explainer = BcosExplainer(model, make_tokenizer())
    text = "gripping film , soup"
    explanations = explainer(text)
    assert [e.explained_word for e in explanations] == ["gripping", "film", ",", "soup"]
    assert [e.position for e in explanations] == [1, 3, 4, 5]
    with torch.no_grad():
        logits = model(**explainer.tokenizer([text], return_tensors="pt")).logits[0]
    for explanation in explanations:
        row = logits[explanation.position]
        assert explanation.target == int(row.argmax())
        assert explanation.logit == pytest.approx(float(row.max()), **ABSOLUTE)
        assert explanation.probability == pytest.approx(float(row.softmax(-1).max()), abs=1e-6)
    assert same(explainer(text, position=3), explanations[1])
    assert [e.position for e in explainer(text, position=[1, -2])] == [1, 5]
    batch = explainer(["soup", text])
    assert [len(e) for e in batch] == [1, 4]
    assert all(same(a, b) for a, b in zip(batch[1], explanations, strict=True))
    assert explainer(text, target="all")[2].target == [0, 1, 2]
    with pytest.raises(ValueError, match="no words"):
        explainer("")


def test_language_models_explain_tokens_by_name():
    explainer = BcosExplainer(bcos_model("masked-lm"), make_tokenizer())
    text = "the film was [MASK]"
    explanation = explainer(text)
    assert "[MASK]" in explanation.words
    assert explanation.position == 4
    good = explainer(text, target="good", contrast="bad")
    token = explainer.tokenizer.convert_tokens_to_ids("good")
    assert (good.target, good.label, good.contrast) == (token, "good", "bad")
    assert good.logit == pytest.approx(
        explainer(text, target=token).logit - explainer(text, target="bad").logit, abs=1e-9
    )
    two = explainer(text, target=["good", "dull"])
    assert list(two.label.values()) == ["good", "dull"]
    with pytest.raises(ValueError, match="is not one token"):
        explainer(text, target="gripping")
    with pytest.raises(ValueError, match="exactly one mask token"):
        explainer("no gap")


def test_causal_language_models_without_padding_or_end(caplog):
    tokenizer = byte_level()
    config = {"vocab_size": 400, "pad_token_id": None, "n_positions": 16}
    model = tiny_model("gpt2", "causal-lm", **config)
    explainer = BcosExplainer(model, tokenizer)
    texts = ["The film was", "funny"]
    for text, explanation in zip(texts, explainer(texts), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer([text], return_tensors="pt")).logits[0, -1]
        assert explanation.logit == pytest.approx(float(logits.max()), **ABSOLUTE)
        assert explanation.words == text.split()
    long = explainer("film " * 30 + "funny")  # the end is what the next token follows from
    assert long.truncated
    assert long.words[-1] == "funny"
    assert len(long.tokens) == 16
    assert "1 of 1 texts have more than 16 tokens" in caplog.text
    with pytest.raises(ValueError, match="has no tokens"):
        explainer("")


def test_question_answering_explains_the_span():
    model = bcos_model("question-answering")
    explainer = BcosExplainer(model, make_tokenizer())
    pair = ("is it good ?", "the film was gripping .")
    explanation = explainer(pair)
    assert explanation.label == "span"
    out = model.explain(**explainer.tokenizer([pair[0]], [pair[1]], return_tensors="pt"))
    assert explanation.position == tuple(out.position[0, 0].tolist())
    assert explanation.logit == pytest.approx(float(out.values), **ABSOLUTE)
    start, end = (out.logits[0, :, side].softmax(0)[explanation.position[side]] for side in (0, 1))
    assert explanation.probability == pytest.approx(float(start * end), abs=1e-6)
    assert explainer(pair, target="all").label == {0: "start", 1: "end", 2: "span"}
    with pytest.raises(ValueError, match="must be one of"):
        explainer(pair, target="answer")


@pytest.mark.parametrize("make", [byte_level, sentencepiece, lambda: sentencepiece(split=False)])
def test_other_tokenizers(make):
    tokenizer = make()
    model = tiny_model("llama", "sequence-classification", vocab_size=400, max_position_embeddings=128)
    text = "The film was\n gripping, \U0001f600 funny!"
    explanation = BcosExplainer(model, tokenizer)(text)
    assert explanation.words == text.split()
    check_sum(explanation)


def test_slow_tokenizers_work_from_token_ids_and_say_so(model, caplog):
    tokenizer = SlowTokenizer(["good", "film"])
    explainer = BcosExplainer(model, tokenizer)
    explanations = explainer(["good film", "film good nothing"])
    assert explanations[0].words == ["good", "film"]
    assert explanations[0].granularity == "token"
    assert explanations[1].tokens == ["[CLS]", "film", "good", "[UNK]", "[SEP]"]
    assert caplog.text.count("does not know where in the text") == 1
    for explanation in explanations:
        check_sum(explanation)


def test_long_texts_are_cut_and_say_so(model, caplog):
    explainer = BcosExplainer(model, make_tokenizer())
    long, short = explainer(["film " * 40, "film " * 30])
    assert long.truncated
    assert not short.truncated
    assert len(long.tokens) == 32
    assert "1 of 2 texts have more than 32 tokens and were cut. `stride=`" in caplog.text
    assert BcosExplainer(model, make_tokenizer(), max_length=8)("film " * 30).truncated
    pair = explainer(("film " * 40, "bad soup"))
    assert pair.words[-2:] == ["bad", "soup"]
    assert len(pair.tokens) == 32
    check_sum(pair)
    both = explainer(("film " * 40, "soup " * 40))
    assert [both.segments.count(k) for k in (0, 1)] == [15, 14]


@pytest.mark.parametrize("name", ["roberta", "distilbert", "modernbert"])
def test_long_texts_are_cut_to_what_the_model_reads(name):
    """RoBERTa has fewer places for tokens than position embeddings."""
    model = tiny_model(name, "sequence-classification", pad_token_id=0 if name != "roberta" else 1)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 1000
    if name == "roberta":
        tokenizer.pad_token = "[UNK]"
    explanation = BcosExplainer(model, tokenizer)("film " * 50)
    assert explanation.truncated
    assert len(explanation.words) == 30


def test_a_model_that_is_not_bcos_is_told_how_to_become_one(tokenizer):
    from transformers import BertForSequenceClassification

    conventional = BertForSequenceClassification(tiny_config("bert", conventional=True))
    with pytest.raises(TypeError, match="from_pretrained_bcos"):
        BcosExplainer(conventional, tokenizer)
    with pytest.raises(TypeError, match="has no head"):
        BcosExplainer(bcos_model("base"), tokenizer)
    with pytest.raises(TypeError, match="must be a tokenizer"):
        BcosExplainer(bcos_model(), "bert-base-uncased")


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(ValueError, match="30 tokens but the model embeds 20"):
        BcosExplainer(bcos_model(vocab_size=20), tokenizer)
    with pytest.raises(ValueError, match="pad_token_id is 7, the tokenizer's is 0"):
        BcosExplainer(bcos_model(pad_token_id=7), tokenizer)


def test_from_pretrained(model, tmp_path, checkpoint):
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    explainer = BcosExplainer.from_pretrained(str(tmp_path), granularity="token")
    assert type(explainer.model) is bcos_transformers.BcosBertForSequenceClassification
    assert explainer.granularity == "token"
    with pytest.raises(ValueError, match="not a B-cos model but a conventional one"):
        BcosExplainer.from_pretrained(str(checkpoint))
    with pytest.raises(OSError, match="nowhere"):
        BcosExplainer.from_pretrained(str(tmp_path / "nowhere"))


def test_too_many_targets_are_refused_unless_meant():
    explainer = BcosExplainer(bcos_model("masked-lm", vocab_size=1200), make_tokenizer())
    with pytest.raises(ValueError, match="allow_large"):
        explainer("[MASK]", target="all")
    assert len(explainer("[MASK]", target="all", allow_large=True).target) == 1200


def test_a_model_with_an_adapter():
    from peft import LoraConfig, get_peft_model

    model = bcos_model()
    adapted = get_peft_model(
        model, LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="SEQ_CLS")
    )
    explainer = BcosExplainer(adapted.eval(), make_tokenizer(), max_length=12, stride=2)
    for text in ("not very good", "film good " * 12):
        check_sum(explainer(text))
    with torch.no_grad():
        logits = adapted(**make_tokenizer()(["not very good"], return_tensors="pt")).logits
    assert explainer("not very good").logit == pytest.approx(float(logits.max()), **ABSOLUTE)


def test_a_model_saved_without_its_tokenizer(tmp_path):
    """transformers makes a tokenizer of five special tokens there; every word would be unknown."""
    bcos_model().float().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="save_pretrained"):
        BcosExplainer.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="special tokens and no others"):
        pipeline("bcos-text-classification", model=bcos_model(), tokenizer=tokenizer)
