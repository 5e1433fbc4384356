"""Labelled texts with rationales: read, checked, and cut into words and tokens."""

import json

import pytest

from bcos_transformers.evaluation.benchmark_data import (
    Example,
    check_labels,
    choose,
    encode_examples,
    make_example,
    read_examples,
    word_spans,
)
from conftest import make_tokenizer


def lines(path, *rows):
    file = path / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_reading(tmp_path):
    file = lines(
        tmp_path,
        {"review": "a  good film", "stars": 1, "why": [0, 1, 0]},
        "",
        {"review": "bad soup é", "stars": 0, "why": [[0, 3], [9, 10]]},
        {"review": "the film", "stars": 0, "why": None},
        {"review": "the soup", "stars": 1},
    )
    assert read_examples(file, "review", "stars", "why") == [
        Example("a  good film", 1, (0, 1, 0)),
        Example("bad soup é", 0, (1, 0, 1)),
        Example("the film", 0),
        Example("the soup", 1),
    ]
    assert read_examples(file, "review", "stars")[0] == Example("a  good film", 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "rows.jsonl, line 2: "),
        ("[1]", "line 2: not a JSON object but list"),
        ({"text": "a"}, "line 2: no field 'label'; there are: text"),
        ({"label": 0, "why": []}, "line 2: no field 'text'; there are: label, why"),
        ({"text": 3, "label": 0}, "line 2: the text must be a string, got 3"),
        ({"text": None, "label": 0}, "line 2: the text must be a string, got None"),
        ({"text": "a", "label": "good"}, "line 2: the label must be a class index, got 'good'"),
        ({"text": "a", "label": True}, "line 2: the label must be a class index, got True"),
        ({"text": "a", "label": 1.0}, "line 2: the label must be a class index, got 1.0"),
        ({"text": "a film", "label": 0, "why": [1]}, "line 2: the rationale has 1 marks, the text 2 words"),
        ({"text": "a film", "label": 0, "why": "01"}, "line 2: the rationale must be a list of marks or character"),
        ({"text": "a film", "label": 0, "why": 1}, "line 2: the rationale must be a list of marks or character"),
        ({"text": "a film", "label": 0, "why": [0, 2]}, "line 2: the rationale must be 0 or 1 for each word, or char"),
        ({"text": "a film", "label": 0, "why": ["0", "1"]}, "line 2: the rationale must be 0 or 1 for each word, or "),
        ({"text": "a film", "label": 0, "why": [[0, 1], [2]]}, "line 2: the rationale must be 0 or 1 for each word, "),
    ],
)
def test_rows_that_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_examples(lines(tmp_path, {"text": "a", "label": 0, "why": [1]}, row), rationale_column="why")


def test_a_rationale_column_that_no_row_has(tmp_path):
    with pytest.raises(ValueError, match="No row of rows.jsonl has a field 'why'"):
        read_examples(lines(tmp_path, {"text": "a", "label": 0}), rationale_column="why")


def test_rationales(tokenizer):
    assert word_spans(" a  film\n. ") == [(1, 2), (4, 8), (9, 10)]
    assert make_example("a film .", 1, [False, True, 0]).rationale == (0, 1, 0)
    assert make_example("a film .", 1, [[3, 4]]).rationale == (0, 1, 0)  # a part of a word marks it
    assert make_example("a film .", 1, [(1, 2)]).rationale is None  # white space
    assert make_example("a film .", 1, [0, 0, 0]).rationale is None
    assert make_example("a film .", 1, []).rationale is None
    assert make_example("", 1, None) == Example("", 1)


def test_tokens_and_words(tokenizer):
    example = Example("gripping film, not dull!", 1, (1, 0, 0, 1), ((0, 2, 4), (2, 4, 1), (3, 4, 0)))
    (one,) = encode_examples(tokenizer, [example], None)
    # [CLS] gripp ##ing film , not dull ! [SEP]; the signs stand in the words film, and dull!
    assert one.word_of_token == (None, 0, 0, 1, 1, 2, 3, 3, None)
    assert one.word_scores([9.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 9.0]) == [3.0, 12.0, 16.0, 96.0]
    assert (one.rationale, one.phrases) == ((1, 0, 0, 1), [(0, 2, 4), (2, 4, 1), (3, 4, 0)])
    assert one.row.positions == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_cut_off_has_no_rationale_and_no_phrases(tokenizer):
    example = Example("gripping film, not dull!", 1, (0, 1, 0, 1), ((0, 2, 4), (2, 4, 1)))
    (one,) = encode_examples(tokenizer, [example], 5)  # [CLS] gripp ##ing film [SEP]
    assert (len(one.row), one.words) == (5, 2)
    assert (one.rationale, one.phrases) == ((0, 1), [(0, 2, 4)])
    late = Example("gripping film, not dull!", 1, (0, 0, 0, 1))
    assert encode_examples(tokenizer, [late], 5)[0].rationale is None


def test_texts_without_tokens_are_left_out(tokenizer):
    examples = [Example(text, 0) for text in ("", "a film", " \n", "[SEP] [PAD]", "soup")]
    assert [one.index for one in encode_examples(tokenizer, examples, None)] == [1, 4]


def test_slow_tokenizers_are_refused():
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="object does not know the characters of its tokens: use a fast tokenizer"):
        encode_examples(object(), [Example("a", 0)], None)
    assert encode_examples(tokenizer, [], None) == []


def test_choosing_and_labels():
    assert choose(5, None, 0) == choose(5, 5, 0) == choose(5, 9, 0) == [0, 1, 2, 3, 4]
    chosen = choose(100, 10, 0)
    assert chosen == sorted(set(chosen)) == choose(100, 10, 0) != choose(100, 10, 1)
    assert max(chosen) > 50
    check_labels([Example("a", 1)], [7], ["no", "yes"])
    with pytest.raises(ValueError, match="Text 7 has the label 2, but the model has 2 classes, 0 … 1: no, yes"):
        check_labels([Example("a", 2)], [7], ["no", "yes"])
