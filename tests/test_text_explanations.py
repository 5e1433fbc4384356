"""Words, terminal and page: sums stay logits, and users' text stays text."""

import dataclasses
import re

import pytest
import torch
from rich.console import Console

from bcos_transformers.data import load_reviews, reviews_file
from bcos_transformers.explanations import explain_texts
from bcos_transformers.explanations.html import render_html
from bcos_transformers.explanations.terminal import render_terminal
from bcos_transformers.extras import require
from bcos_transformers.model_card import CardFacts, render_model_card
from conftest import bcos_model
from contract import tiny_model

TEXTS = ["The film is gripping, funny!", "<script>alert(1)</script> & dull", "", "soup"]


@pytest.fixture
def explanations(tokenizer):
    return explain_texts(bcos_model().float(), tokenizer, TEXTS)


def test_words_and_special_tokens_sum_to_the_logit(tokenizer, explanations):
    model = bcos_model().float()
    for text, explanation in zip(TEXTS, explanations, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer([text], return_tensors="pt")).logits[0]
        assert explanation.target == int(logits.argmax())
        assert explanation.logit == pytest.approx(float(logits.max()), abs=1e-5)
        total = sum(explanation.scores) + explanation.special_tokens_score
        assert total + explanation.residual == pytest.approx(explanation.logit, abs=1e-5)
        assert explanation.probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


def test_words_are_the_readers_words(explanations):
    assert explanations[0].words == ["The", "film", "is", "gripping,", "funny!"]
    assert all(e.words == e.text.split() and len(e.words) == len(e.scores) for e in explanations)
    assert explanations[2].words == []


def test_batches_change_nothing(tokenizer, explanations):
    alone = explain_texts(bcos_model().float(), tokenizer, TEXTS, batch_size=1)
    for one, other in zip(alone, explanations, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "modernbert"])
def test_long_texts_are_cut_to_what_the_model_reads(tokenizer, name):
    """RoBERTa has fewer places for tokens than position embeddings."""
    model = tiny_model(name, "sequence-classification").float()
    tokenizer.model_max_length = 1000
    (explanation,) = explain_texts(model, tokenizer, ["film " * 50])
    assert explanation.truncated
    assert len(explanation.words) == 30


def test_truncation_is_said(tokenizer, caplog):
    model = bcos_model().float()
    long, short = explain_texts(model, tokenizer, ["film " * 40, "film " * 30])
    assert "1 of 2 texts have more than 32 tokens" in caplog.text
    assert "the rest was cut" in render_terminal(long).plain
    assert explain_texts(model, tokenizer, ["film " * 30], max_length=8)[0].truncated
    assert long.truncated
    assert not short.truncated
    assert "the text was cut" in render_html([long])
    assert "the text was cut" not in render_html([short])


def test_a_mark_stays_with_its_word_and_letters_that_touch_are_words_of_their_own(tokenizer):
    tokenizer.backend_tokenizer.add_tokens(["\u597d", "\u770b"])
    texts = ["don't re-use it!!", "\u597d\u770b, good"]
    words = [e.words for e in explain_texts(bcos_model().float(), tokenizer, texts)]
    assert words == [["don't", "re-use", "it!!"], ["\u597d", "\u770b,", "good"]]


def test_only_one_label_per_text(tokenizer):
    with pytest.raises(ValueError, match="one label per text"):
        explain_texts(bcos_model(problem_type="multi_label_classification"), tokenizer, ["soup"])


def test_rounding_is_not_called_equality(explanations):
    off = dataclasses.replace(explanations[0], logit=explanations[0].logit + 0.1)
    assert "≈ logit" in render_terminal(off).plain
    assert "≈ logit" in render_html([off])


@pytest.mark.parametrize("texts", ["one string", ["fine", 3], [None]])
def test_only_texts(tokenizer, texts):
    with pytest.raises(TypeError, match="sequence of strings"):
        explain_texts(bcos_model(), tokenizer, texts)


def test_page_escapes_and_fetches_nothing(explanations):
    page = render_html(explanations, title="<b>title</b>")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>title" not in page
    assert not re.search(r"https?://|src=|@import|url\(", page)
    shown = re.findall(r'title="([+-]\d+\.\d{4})">gripping,', page)
    assert shown == [f"{explanations[0].scores[3]:+.4f}"]
    for explanation in explanations:
        assert f"logit {explanation.logit:+.4f}" in page


def test_terminal_shows_text_and_sum(explanations):
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    for explanation in explanations:
        console.print(render_terminal(explanation))
    text = console.export_text()
    assert "<script>alert(1)</script>" in re.sub(r"[+-]\d\.\d\d", "", text)
    for explanation in explanations:
        total = sum(explanation.scores) + explanation.special_tokens_score
        assert f"sum {total:+.4f} = logit {explanation.logit:+.4f}" in text


def test_embedded_reviews():
    rows = {split: load_reviews(split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 576, "validation": 96, "test": 168}
    everything = [row for part in rows.values() for row in part]
    assert len({row["text"].lower() for row in everything}) == 840
    assert len({row["topic"] for row in everything}) == 12
    for part in rows.values():
        assert sum(row["label"] for row in part) * 2 == len(part)
    for row in everything:
        assert row["rationale"]
        for begin, end in row["rationale"]:
            marked = row["text"][begin:end]
            assert marked
            assert marked == marked.strip()
    with pytest.raises(ValueError, match="split"):
        reviews_file("dev")


def test_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"pip install 'bcos-transformers\[viz\]'"):
        require("no_such_package.module", "viz")


def test_model_card_says_what_was_measured():
    facts = CardFacts("org/name", "data", {"accuracy": 0.5}, "Test split", {"accuracy": 0.75}, largest_residual=2e-7)
    card = render_model_card(bcos_model(converted_from="org/base"), facts)
    assert card.startswith("---\nlibrary_name: transformers\nbase_model: org/base\n")
    assert "| | this model | conventional fine-tune |\n|---|---|---|\n| accuracy | 50.0 % | 75.0 % |\n\n" in card
    assert "2e-07" in card
    alone = render_model_card(bcos_model(), CardFacts("n", "data", {"accuracy": 0.5}, "Test split"))
    assert "| | this model |\n|---|---|\n| accuracy | 50.0 % |\n\n" in alone
    assert "base_model" not in alone
