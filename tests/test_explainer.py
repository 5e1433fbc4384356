"""Texts in, words out: every input and target, and sums that stay logits."""

import logging
import threading

import pytest
import torch
from datasets import Dataset

from bcos_transformers import BcosExplainer
from bcos_transformers.explanations import explainer as explainer_module
from conftest import bcos_model, make_tokenizer
from explainer_checks import ABSOLUTE, check_sum, same

TEXTS = ["The film is gripping, funny!", "<script>alert(1)</script> & dull", "", "soup", "not very good ."]


@pytest.fixture(scope="module")
def model():
    return bcos_model()


@pytest.fixture(scope="module")
def explainer(model):
    return BcosExplainer(model, make_tokenizer())


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


def test_logging_of_the_package_is_left_alone():
    assert not logging.getLogger("bcos_transformers").handlers
