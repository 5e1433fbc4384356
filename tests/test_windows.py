"""Long texts in windows: exact in each, every token counted where it has most context."""

import pytest
import torch

from bcos_transformers import BcosExplainer, TextExplanation
from bcos_transformers.explanations.encoding import TextEncoder, cut, owners, windows
from conftest import bcos_model, make_tokenizer

WORDS = [
    "film",
    "good",
    "soup",
    "bad",
    "funny",
    "dull",
    "great",
    "it",
    "was",
    "not",
    "very",
    "and",
    "the",
    "a",
    "food",
]
TEXT = " ".join(WORDS[(7 * i) % 15] for i in range(25))
LIMIT, STRIDE = 12, 4  # 10 tokens of text a window


@pytest.fixture(scope="module")
def model():
    return bcos_model()


@pytest.fixture(scope="module")
def explainer(model):
    return BcosExplainer(model, make_tokenizer(), max_length=LIMIT, stride=STRIDE)


def encoded(*texts: str):
    return TextEncoder(make_tokenizer(), uses_types=True).texts([texts if len(texts) == 2 else texts[0]])[0]


def test_windows_cover_the_text_and_share_the_stride():
    whole = encoded(TEXT)
    parts = windows(whole, LIMIT, STRIDE)
    assert [part.columns for part in parts] == [
        [0, *range(1, 11), 26],
        [0, *range(7, 17), 26],
        [0, *range(13, 23), 26],
        [0, *range(16, 26), 26],  # moved back, so that it is as long as the others
    ]
    for part in parts:
        assert part.input_ids == [whole.input_ids[i] for i in part.columns]
        assert part.tokens[0] == "[CLS]"
        assert part.tokens[-1] == "[SEP]"
    assert windows(encoded("film"), LIMIT, STRIDE) == [encoded("film")]


def test_every_token_belongs_to_the_window_where_it_has_most_context():
    """Against the definition, written out token by token."""
    whole = encoded(TEXT)
    parts = windows(whole, LIMIT, STRIDE)
    found = owners(parts, len(whole))
    for column in range(1, 26):
        context = []
        for part in parts:
            inside = part.columns[1:-1]
            context.append(min(column - inside[0], inside[-1] - column) if column in inside else -1)
        assert found[column] == context.index(max(context))
    assert set(found[1:26]) == {0, 1, 2, 3}


def test_each_window_is_exact_and_the_text_is_their_mean(model, explainer):
    explanation = explainer(TEXT, target=1)
    assert len(explanation.windows) == 4
    tokenizer, whole = make_tokenizer(), encoded(TEXT)
    parts = windows(whole, LIMIT, STRIDE)
    owner = owners(parts, len(whole))
    words, special, outside = [0.0] * 25, 0.0, 0.0
    for index, (window, part) in enumerate(zip(explanation.windows, parts, strict=True)):
        text = TEXT[window.offsets[0][0] : window.offsets[-1][1]]
        out = model.explain(**tokenizer([text], return_tensors="pt"), target=1)
        assert window.logit == pytest.approx(float(out.values), abs=1e-9)
        assert window.token_scores == pytest.approx(out.contributions[0, 0].tolist(), abs=1e-9)
        assert sum(window.scores) + window.special_tokens_score == pytest.approx(window.logit, abs=1e-9)
        for column, score in zip(part.columns, out.contributions[0, 0].tolist(), strict=True):
            if column in (0, 26):
                special += score / 4
            elif owner[column] == index:
                words[column - 1] += score / 4
            else:
                outside += score / 4
    assert explanation.scores == pytest.approx(words, abs=1e-9)
    assert explanation.special_tokens_score == pytest.approx(special, abs=1e-9)
    assert explanation.outside_score == pytest.approx(outside, abs=1e-9)
    assert abs(outside) > 1e-3
    assert explanation.logit == pytest.approx(sum(w.logit for w in explanation.windows) / 4, abs=1e-9)
    assert abs(explanation.residual) < 1e-9
    assert explanation.words == TEXT.split()
    assert not explanation.truncated


def test_the_predicted_class_is_that_of_the_mean_logits(model, explainer):
    explanation = explainer(TEXT)
    every = explainer(TEXT, target="all")
    best = max(every.logit, key=every.logit.get)
    assert explanation.target == best
    assert all(window.target == best for window in explanation.windows)
    logits = torch.tensor([every.logit[t] for t in range(3)])
    assert explanation.probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-6)
    assert explanation.scores == pytest.approx(every.scores[best], abs=1e-9)
    assert all(abs(residual) < 1e-9 for residual in every.residual.values())


def test_short_and_long_texts_together(explainer):
    together = explainer(["film", TEXT, "not good", TEXT[:80]])
    alone = [explainer(text) for text in ("film", TEXT, "not good", TEXT[:80])]
    for one, other in zip(together, alone, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-9)
        assert len(one.windows) == len(other.windows)
    assert [len(e.windows) for e in together][::2] == [0, 0]
    back = TextExplanation.from_json(together[1].to_json())
    assert back == together[1]
    assert back.windows[2] == together[1].windows[2]


def test_the_second_text_of_a_pair_is_read_in_windows(explainer):
    explanation = explainer(("is it good", TEXT), target=0)
    assert len(explanation.windows) > 2
    assert all(window.words[:3] == ["is", "it", "good"] for window in explanation.windows)
    assert explanation.words == ["is", "it", "good", *TEXT.split()]
    assert abs(explanation.residual) < 1e-9
    first = [sum(w.scores[i] for w in explanation.windows) / len(explanation.windows) for i in range(3)]
    assert explanation.scores[:3] == pytest.approx(first, abs=1e-9)


def test_token_classes_are_explained_where_the_token_has_most_context():
    model = bcos_model("token-classification")
    explainer = BcosExplainer(model, make_tokenizer(), max_length=LIMIT, stride=STRIDE)
    explanations = explainer(TEXT)
    assert [e.explained_word for e in explanations] == TEXT.split()
    parts = windows(encoded(TEXT), LIMIT, STRIDE)
    owner = owners(parts, 27)
    for index, explanation in enumerate(explanations):
        window = parts[owner[index + 1]]
        assert explanation.words == [TEXT.split()[c - 1] for c in window.columns[1:-1]]
        assert abs(explanation.residual) < 1e-9


def test_windows_that_cannot_be(model):
    with pytest.raises(ValueError, match="with 10 tokens a window it must be below that, got 10"):
        BcosExplainer(model, make_tokenizer(), max_length=LIMIT)(TEXT, stride=10)
    with pytest.raises(ValueError, match="`stride` must be an integer"):
        BcosExplainer(model, make_tokenizer())(TEXT, stride=-1)
    with pytest.raises(ValueError, match="first text of the pair alone"):
        BcosExplainer(model, make_tokenizer(), max_length=LIMIT, stride=1)((TEXT, "film"))
    with pytest.raises(ValueError, match="no room for a text"):
        BcosExplainer(model, make_tokenizer(), max_length=2)(TEXT)
    with pytest.raises(ValueError, match="are for classifiers"):
        BcosExplainer(bcos_model("masked-lm"), make_tokenizer(), stride=2)


@pytest.mark.parametrize(
    ("first", "second", "kept"), [(30, 3, (7, 3)), (3, 30, (3, 7)), (30, 30, (5, 5)), (6, 4, (6, 4))]
)
def test_the_longer_text_of_a_pair_is_cut_first(first, second, kept):
    pair = encoded("film " * first, "soup " * second)
    short = cut(pair, 13)
    assert tuple(short.segments.count(k) for k in (0, 1)) == kept
    assert short.truncated == (first + second > 10)
    assert short.segments.count(None) == 3


def test_the_beginning_can_be_cut_instead():
    short = cut(encoded("film " * 10 + "soup"), 5, keep_end=True)
    assert short.tokens == ["[CLS]", "film", "film", "soup", "[SEP]"]
