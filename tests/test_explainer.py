"""Texts in, words out: every input, task and target, and sums that stay logits."""

import itertools
import logging
import threading

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, pipeline

import bcos_transformers
from bcos_transformers import BcosExplainer, TextExplanation
from bcos_transformers.explanations import explainer as explainer_module
from conftest import bcos_model, make_tokenizer
from contract import HEADS, tiny_config, tiny_model
from tiny_tokenizers import SlowTokenizer, byte_level, sentencepiece

TEXTS = ["The film is gripping, funny!", "<script>alert(1)</script> & dull", "", "soup", "not very good ."]
ABSOLUTE = {"rel": 1e-9, "abs": 1e-9}


@pytest.fixture(scope="module")
def model():
    return bcos_model()


@pytest.fixture(scope="module")
def explainer(model):
    return BcosExplainer(model, make_tokenizer())


def check_sum(explanation: TextExplanation, tolerance: float = 1e-9) -> None:
    for target in explanation.targets:
        one = explanation.for_target(target)
        total = sum(one.scores) + one.special_tokens_score + one.outside_score
        assert total + one.residual == pytest.approx(one.logit, **ABSOLUTE)
        assert abs(one.residual) <= tolerance * max(1.0, *map(abs, one.token_scores))
        assert sum(one.token_scores) + one.outside_score == pytest.approx(total, **ABSOLUTE)


def same(one: TextExplanation, other: TextExplanation) -> bool:
    return one.words == other.words and one.scores == pytest.approx(other.scores, **ABSOLUTE)


def test_words_special_tokens_and_residual_sum_to_the_models_own_logit(model, explainer):
    for text, explanation in zip(TEXTS, explainer(TEXTS), strict=True):
        with torch.no_grad():
            logits = model(**explainer.tokenizer([text], return_tensors="pt")).logits[0]
        assert explanation.target == int(logits.argmax())
        assert explanation.logit == pytest.approx(float(logits.max()), **ABSOLUTE)
        assert explanation.probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-6)
        assert explanation.text == text
        assert explanation.words == text.split()
        assert explanation.tokens == explainer.tokenizer.convert_ids_to_tokens(explainer.tokenizer(text).input_ids)
        check_sum(explanation)


def test_word_scores_are_those_of_model_explain(model, explainer):
    text = "gripping , not very good"
    out = model.explain(**explainer.tokenizer([text], return_tensors="pt"), target="all")
    explanation = explainer(text, target="all")
    tokens = out.contributions[0]  # [CLS] gripp ##ing , not very good [SEP]
    wanted = torch.stack((tokens[:, 1] + tokens[:, 2], *(tokens[:, i] for i in range(3, 7))), dim=1)
    for target in range(3):
        assert explanation.scores[target] == pytest.approx(wanted[target].tolist(), **ABSOLUTE)
        assert explanation.special_tokens_score[target] == pytest.approx(
            float(tokens[target, [0, 7]].sum()), **ABSOLUTE
        )


def test_batches_order_and_padding_change_nothing(model):
    texts = [" ".join(["film", "not", "good"][: i % 4]) for i in range(11)] + TEXTS
    alone = [BcosExplainer(model, make_tokenizer(), batch_size=1)(text) for text in texts]
    for size in (2, 5, 32):
        together = BcosExplainer(model, make_tokenizer(), batch_size=size)(texts)
        assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_every_kind_of_input(explainer):
    wanted = explainer(TEXTS)
    column = Dataset.from_dict({"text": TEXTS})["text"]
    for texts in (column, (text for text in TEXTS), iter(TEXTS), [{"text": text} for text in TEXTS]):
        given = explainer(texts)
        assert isinstance(given, list)
        assert given == wanted
    assert same(explainer(TEXTS[0]), wanted[0])
    assert same(explainer({"text": TEXTS[0]}), wanted[0])
    assert explainer([]) == []
    assert explainer(Dataset.from_dict({"text": []})["text"]) == []
    assert list(explainer.iterate(iter(TEXTS))) == wanted


def test_pairs_however_they_are_given(model, explainer):
    pair = ("good film", "bad soup !")
    wanted = explainer(pair)
    assert wanted.words == ["good", "film", "bad", "soup", "!"]
    assert wanted.segments == [0, 0, 1, 1, 1]
    assert (wanted.text, wanted.text_pair) == pair
    check_sum(wanted)
    with torch.no_grad():
        logits = model(**explainer.tokenizer([pair[0]], [pair[1]], return_tensors="pt")).logits[0]
    assert wanted.logit == pytest.approx(float(logits.max()), **ABSOLUTE)
    ways = [[pair], [{"text": pair[0], "text_pair": pair[1]}]]
    assert all(explainer(way) == [wanted] for way in ways)
    assert explainer(pair[0], pair[1]) == wanted
    assert explainer([pair[0]], [pair[1]]) == [wanted]
    mixed = explainer(["soup", pair])
    assert same(mixed[1], wanted)
    assert mixed[0].text_pair is None


def test_tokenized_input(explainer):
    wanted = explainer(TEXTS[:2])
    encoded = explainer.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    given = explainer(encoded)
    assert [e.tokens for e in given] == [e.tokens for e in wanted]
    for one, other in zip(given, wanted, strict=True):
        assert one.logit == pytest.approx(other.logit, **ABSOLUTE)
        assert one.token_scores == pytest.approx(other.token_scores, **ABSOLUTE)
        check_sum(one)
    single = explainer({"input_ids": explainer.tokenizer("soup and film").input_ids})
    assert single.words == ["soup", "and", "film"]
    assert explainer({"input_ids": torch.tensor([2, 5, 7, 3])}).words == ["a", "film"]


def test_ids_that_no_text_gives_are_shown_token_by_token(model, caplog):
    explainer = BcosExplainer(model, make_tokenizer())
    explanation = explainer({"input_ids": [[2, 17, 7, 3, 8]]})[0]  # ends with a word
    assert explanation.granularity == "token"
    assert explanation.words == ["gripp", "film", "food"]
    assert "token by token" in caplog.text
    check_sum(explanation)


def test_words_given_as_lists(explainer):
    wanted = explainer("good film . bad")
    split = explainer(["good", "film", ".", "bad"], is_split_into_words=True)
    assert split.words == ["good", "film", ".", "bad"]
    assert split.text == "good film . bad"
    assert split.logit == pytest.approx(wanted.logit, **ABSOLUTE)
    several = explainer([["good", "film"], ["bad"]], is_split_into_words=True)
    assert [e.words for e in several] == [["good", "film"], ["bad"]]
    for wrong in ("good film", [[]], [["good", 3]], 4):
        with pytest.raises(TypeError, match="list of words"):
            explainer(wrong, is_split_into_words=True)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (3, "got int"),
        (None, "got NoneType"),
        (b"bytes", "got bytes"),
        (["fine", 3], r"got int \(entry 1\)"),
        ([None], r"got NoneType \(entry 0\)"),
        (("a", "b", "c"), "got one of 3"),
        ([["a", "b"]], "got list"),
        ({"texts": "a"}, "has `text`"),
        (("a", 3), "beside one string"),
    ],
)
def test_what_is_not_text_is_refused(explainer, texts, message):
    with pytest.raises(TypeError, match=message):
        explainer(texts)


def test_second_texts_must_fit(explainer):
    with pytest.raises(ValueError, match="2 texts need as many second texts, got 1"):
        explainer(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="must be a list"):
        explainer(["a"], "b")


def test_targets_by_index_name_list_and_tensor(model, explainer):
    labels = model.config.id2label
    every = explainer(TEXTS, target="all")
    for index in range(3):
        for target in (index, labels[index], torch.tensor([index] * len(TEXTS))):
            for one, all_of_it in zip(explainer(TEXTS, target=target), every, strict=True):
                assert one.target == index
                assert one.label == labels[index]
                assert same(one, all_of_it.for_target(labels[index]))
    two = explainer(TEXTS[0], target=[2, labels[0]])
    assert two.target == [2, 0]
    assert list(two.scores) == [2, 0]
    assert two.label == {2: labels[2], 0: labels[0]}
    assert same(two.for_target(2), every[0].for_target(2))
    assert explainer(TEXTS[0], target=[1]).target == [1]
    rows = explainer(TEXTS[:2], target=torch.tensor([[0, 2], [1, 0]]))
    assert [e.target for e in rows] == [[0, 2], [1, 0]]
    for explanation in (*every, two, *rows):
        check_sum(explanation)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (3, ValueError, r"\[0, 3\)"),
        ("great", ValueError, "not a label"),
        ([], ValueError, "empty"),
        ([1, 1], ValueError, "twice"),
        (1.5, TypeError, "got 1.5"),
        (torch.tensor([0]), ValueError, "1 rows for 2 texts"),
        (torch.tensor([0.5, 1]), ValueError, "class indices"),
    ],
)
def test_targets_that_do_not_exist(explainer, target, error, message):
    with pytest.raises(error, match=message):
        explainer(["a film", "soup"], target=target)


def test_contrast_is_part_of_the_explained_quantity(explainer):
    every = explainer(TEXTS[0], target="all")
    foil = explainer(TEXTS[0], target=2, contrast="LABEL_0")
    assert foil.contrast == "LABEL_0"
    assert foil.logit == pytest.approx(every.logit[2] - every.logit[0], **ABSOLUTE)
    assert foil.scores == pytest.approx(
        [a - b for a, b in zip(every.scores[2], every.scores[0], strict=True)], **ABSOLUTE
    )
    mean = explainer(TEXTS[0], target=2, contrast="mean")
    assert mean.logit == pytest.approx(every.logit[2] - sum(every.logit.values()) / 3, **ABSOLUTE)
    check_sum(foil)
    with pytest.raises(ValueError, match="not a label"):
        explainer(TEXTS[0], contrast="nothing")


@pytest.mark.parametrize("granularity", ["token", "word", "sentence"])
def test_granularities_have_the_same_total(explainer, granularity):
    text = "The film is gripping. Very dull soup!"
    explanation = explainer(text, granularity=granularity)
    counts = {"token": 9, "word": 7, "sentence": 2}
    assert len(explanation) == counts[granularity] + (granularity == "token")
    assert explanation.granularity == granularity
    assert explanation.total == pytest.approx(explainer(text).total, **ABSOLUTE)
    check_sum(explanation)


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


@pytest.mark.parametrize(
    "option", [{"batch_size": 0}, {"batch_size": True}, {"max_length": 0}, {"stride": -1}, {"granularity": "words"}]
)
def test_options_out_of_range(model, tokenizer, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        BcosExplainer(model, tokenizer, **option)


def test_nothing_of_the_users_is_changed(model):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    before = (
        tokenizer.backend_tokenizer.to_str(),
        dict(tokenizer.init_kwargs),
        model.config.to_dict(),
        model.training,
    )
    model.train()
    explanation = BcosExplainer(model, tokenizer)(["a film", "soup " * 60])
    assert model.training
    model.eval()
    assert explanation[1].truncated
    after = (tokenizer.backend_tokenizer.to_str(), dict(tokenizer.init_kwargs), model.config.to_dict(), model.training)
    assert after == before
    assert tokenizer.padding_side == "left"


def test_one_explainer_in_several_threads(explainer):
    wanted, results = explainer(TEXTS), {}
    threads = [threading.Thread(target=lambda k=k: results.update({k: explainer(TEXTS)})) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(result == wanted for result in results.values())


def test_many_texts_come_in_blocks_and_in_order(explainer, monkeypatch):
    monkeypatch.setattr(explainer_module, "BLOCK", 4)
    texts = [f"film {'good ' * (i % 5)}" for i in range(11)]
    read = []
    stream = explainer.iterate(read.append(text) or text for text in texts)
    first = next(stream)
    assert len(read) == 4  # no more than a block is read ahead
    assert [e.text for e in [first, *stream]] == texts
    assert [e.text for e in explainer(texts)] == texts


def test_progress_is_silent_outside_of_terminals(model, capfd):
    texts = ["film"] * 70
    BcosExplainer(model, make_tokenizer(), batch_size=8)(texts)
    assert "Explaining" not in capfd.readouterr().err
    BcosExplainer(model, make_tokenizer(), batch_size=8, progress=True)(texts)
    assert "Explaining: 100%" in capfd.readouterr().err


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


def test_logging_of_the_package_is_left_alone():
    assert not logging.getLogger("bcos_transformers").handlers


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
