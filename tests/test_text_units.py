"""Which token belongs to which word: WordPiece, BPE, SentencePiece, white space, emoji, sentences."""

import pytest

from bcos_transformers.modeling.bcos_text_units import text_units
from conftest import make_tokenizer
from tiny_tokenizers import byte_level, sentencepiece

TEXT = "The film  was\tgripping,\n\nfunny!  "
WORDS = ["The", "film", "was", "gripping,", "funny!"]
TOKENIZERS = {
    "wordpiece": make_tokenizer,
    "byte-level": byte_level,
    "byte-level-with-prefix": lambda: byte_level(add_prefix_space=True),
    "sentencepiece": sentencepiece,
    "sentencepiece-unsplit": lambda: sentencepiece(split=False),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", [make() for make in TOKENIZERS.values()], ids=list(TOKENIZERS))


def units(tokenizer, *texts: str, granularity: str = "word"):
    encoding = tokenizer(*[[text] for text in texts], verbose=False).encodings[0]
    return text_units(texts, encoding.offsets, encoding.word_ids, encoding.sequence_ids, granularity)


def words(tokenizer, text: str, granularity: str = "word") -> list[str]:
    return [text[a:b] for a, b in units(tokenizer, text, granularity=granularity).spans]


@every_tokenizer
@pytest.mark.parametrize("text", [TEXT, "  leading space", "one", "a\u00a0b", "x" * 40 + " y", "¿qué? (sí)… «no»"])
def test_words_are_what_stands_between_white_space(tokenizer, text):
    assert words(tokenizer, text) == text.split()


@every_tokenizer
def test_emoji_and_composed_characters_stay_whole(tokenizer):
    text = "\U0001f600 don't e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467 x\U0001f600y na\u00efve"
    assert words(tokenizer, text) == text.split()
    for piece in words(tokenizer, text, "token"):  # no half characters
        assert "\ufffd" not in piece
        assert piece


@every_tokenizer
def test_every_token_of_the_text_belongs_to_a_unit_and_units_are_in_order(tokenizer):
    for granularity in ("token", "word", "sentence"):
        found = units(tokenizer, TEXT, granularity=granularity)
        encoding = tokenizer([TEXT], verbose=False).encodings[0]
        for unit, segment in zip(found.of_token, encoding.sequence_ids, strict=True):
            assert (unit is None) == (segment is None)
        known = [unit for unit in found.of_token if unit is not None]
        assert known == sorted(known)
        assert set(known) == set(range(len(found.spans)))
        assert all(a < b for a, b in found.spans)
        assert all(before[1] <= after[0] for before, after in zip(found.spans, found.spans[1:], strict=False))


@every_tokenizer
def test_sums_keep_the_total(tokenizer):
    found = units(tokenizer, TEXT)
    numbers = [0.5**i for i in range(len(found.of_token))]
    scores, special = found.sums(numbers)
    assert sum(scores) + special == pytest.approx(sum(numbers), abs=1e-12)
    for index in range(len(scores)):
        assert scores[index] == sum(n for n, unit in zip(numbers, found.of_token, strict=True) if unit == index)


@every_tokenizer
def test_sentences(tokenizer):
    text = "A film. Very good! Is it? “Yes.” Then\nthe end… and more"
    wanted = ["A film.", "Very good!", "Is it?", "“Yes.”", "Then", "the end…", "and more"]
    assert words(tokenizer, text, "sentence") == wanted
    assert words(tokenizer, "no mark at 3.5 all", "sentence") == ["no mark at 3.5 all"]


def test_full_width_marks_end_sentences_without_space():
    assert words(byte_level(), "看好。电影！好", "sentence") == ["看好。", "电影！", "好"]


def test_letters_that_touch_are_words_where_the_tokenizer_says_so():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.add_tokens(["好", "看"])
    assert words(tokenizer, "好看, good") == ["好", "看,", "good"]


def test_white_space_is_a_unit_only_among_tokens():
    tokenizer = byte_level()
    assert "\n" in words(tokenizer, "a\n\nb", "token")
    assert words(tokenizer, "   ") == []
    assert set(units(tokenizer, "   ").of_token) == {None}
    assert words(tokenizer, "a\n\n") == ["a"]
    assert None not in units(tokenizer, "a\n\n").of_token


def test_a_pair_has_the_units_of_both(tokenizer):
    found = units(tokenizer, "good film", "bad soup!")
    assert found.segments == [0, 0, 1, 1]
    assert found.spans == [(0, 4), (5, 9), (0, 3), (4, 9)]
    assert [unit for unit in found.of_token if unit is None] == [None] * 3


def test_unknown_granularity():
    with pytest.raises(ValueError, match="must be one of token, word, sentence, got 'words'"):
        text_units(("a",), [(0, 1)], [0], [0], "words")
