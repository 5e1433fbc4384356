"""The object: arithmetic, access, comparison, export and files."""

import json
import stat
from dataclasses import replace

import pandas
import pytest

from bcos_transformers import BcosExplainer, TextExplanation, WordScore, load_explanations, save_explanations
from conftest import bcos_model, make_tokenizer

TEXT = "the film was gripping, not dull \U0001f600"


@pytest.fixture(scope="module")
def explainer():
    return BcosExplainer(bcos_model(), make_tokenizer())


@pytest.fixture(scope="module")
def one(explainer):
    return explainer(TEXT)


@pytest.fixture(scope="module")
def several(explainer):
    return explainer(TEXT, target="all")


def test_units_by_index_and_iteration(one):
    assert len(one) == 7
    assert one[3] == WordScore("gripping,", one.scores[3], (13, 22))
    assert [unit.word for unit in one] == one.words
    assert one[-1].word == "\U0001f600"
    with pytest.raises(IndexError):
        one[7]


def test_slices_keep_the_total(one, several):
    part = one[2:5]
    assert part.words == one.words[2:5]
    assert part.scores == one.scores[2:5]
    assert part.outside_score == pytest.approx(sum(one.scores[:2] + one.scores[5:]), abs=1e-12)
    assert part.total == pytest.approx(one.total, abs=1e-12)
    assert part.tokens == ["[CLS]", "was", "gripp", "##ing", ",", "not", "[SEP]"]
    assert part.unit_of_token == [None, 0, 1, 1, 1, 2, None]
    assert part[1:].words == one.words[3:5]
    assert one[:] == one
    every = several[:2]
    assert every.total == pytest.approx(several.total, abs=1e-12)
    assert every[1].score == {target: several.scores[target][1] for target in (0, 1, 2)}
    with pytest.raises(ValueError, match="step -1"):
        one[::-1]


def test_top(one, several):
    largest = one.top(3)
    assert [abs(unit.score) for unit in largest] == sorted(map(abs, one.scores), reverse=True)[:3]
    assert all(unit.score > 0 for unit in one.top(9, sign="positive"))
    assert all(unit.score < 0 for unit in one.top(9, sign="negative"))
    assert len(one.top(99)) == 7
    with pytest.raises(ValueError, match="Several targets"):
        several.top(1)
    with pytest.raises(ValueError, match="`sign`"):
        one.top(1, sign="both")


def test_one_of_several_targets(explainer, several):
    for target in range(3):
        alone = several.for_target(target)
        assert alone.target == target
        assert alone.scores == several.scores[target]
        assert alone == several.for_target(f"LABEL_{target}")
        assert alone.for_target(target) is alone
        assert alone.scores == pytest.approx(explainer(TEXT, target=target).scores, abs=1e-9)
    with pytest.raises(KeyError, match=r"explained: 0 \(LABEL_0\)"):
        several.for_target("happy")


def test_equality(one, explainer):
    assert explainer(TEXT) == one
    assert one != explainer("soup")
    assert one != replace(one, granularity="token")
    assert one != "text"


@pytest.mark.parametrize("target", [None, "all", [2, 0]])
@pytest.mark.parametrize("text", [TEXT, "", ("good", "bad soup")])
def test_json_round_trip(explainer, target, text):
    explanation = explainer(text, target=target)
    values = explanation.to_dict()
    assert json.loads(json.dumps(values)) == json.loads(explanation.to_json())
    back = TextExplanation.from_json(explanation.to_json(indent=2))
    assert back == explanation
    assert TextExplanation.from_dict(values) == explanation
    assert type(back.offsets) is list
    assert all(type(offset) is tuple for offset in back.offsets)


def test_values_are_plain_numbers(several):
    for value in (several.logit[0], several.probability[0], several.scores[0][0], several.token_scores[0][0]):
        assert type(value) is float
    assert all(type(target) is int for target in several.target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not an explanation of the format"),
        ({"scores": [1.0] * 7}, "do not add up|add up to"),
        ({"scores": [1.0]}, "need as many scores"),
        ({"words": ["a"]}, "needs an offset"),
        ({"tokens": ["a"]}, "entries in `unit_of_token`"),
        ({"logit": 77.0}, "not to the logit 77"),
        ({"residual": float("nan")}, "add up to nan"),
        ({"extra": 1}, "missing or too many: \\['extra'\\]"),
        ({"target": [0, 1]}, "must be a dict with these keys"),
    ],
)
def test_numbers_that_were_changed_are_noticed(one, change, message):
    with pytest.raises(ValueError, match=message):
        TextExplanation.from_dict({**one.to_dict(), **change})


def test_what_is_no_explanation_at_all():
    for text in ("[]", "3", '{"a": 1}', "no json"):
        with pytest.raises(ValueError, match=r"not an explanation|Expecting"):
            TextExplanation.from_json(text)


def test_data_frame(one, several):
    frame = one.to_dataframe()
    assert list(frame.columns) == ["word", "start", "end", "segment", "score"]
    assert frame["score"].sum() + one.special_tokens_score + one.residual == pytest.approx(one.logit, abs=1e-9)
    assert frame["word"].tolist() == one.words
    frame = several.to_dataframe()
    assert list(frame.columns[-3:]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert frame["LABEL_2"].tolist() == several.scores[2]
    same_name = replace(several, label={0: "x", 1: "x", 2: "y"})
    assert list(same_name.to_dataframe().columns[-3:]) == [0, 1, 2]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_files_keep_everything(explainer, several, tmp_path, ending):
    explanations = [*explainer(["soup", "", "<b>film</b>\n\u2028good"]), several, explainer(("a film", "soup"))]
    path = tmp_path / f"explanations.{ending}"
    save_explanations(explanations, path)
    assert load_explanations(path) == explanations
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    save_explanations([], path)
    assert load_explanations(path) == []


def test_parquet_has_columns_for_other_tools(one, several, tmp_path):
    save_explanations([one, several], tmp_path / "e.parquet")
    frame = pandas.read_parquet(tmp_path / "e.parquet")
    assert frame["text"].tolist() == [TEXT, TEXT]
    assert frame["scores"][0].tolist() == one.scores
    assert frame["label"][1] == several.label[0]


def test_a_file_that_fails_leaves_nothing_behind(one, tmp_path, monkeypatch):
    path = tmp_path / "e.jsonl"
    save_explanations([one], path)
    before = path.read_bytes()
    calls = iter([one.to_json()])
    monkeypatch.setattr(TextExplanation, "to_json", lambda self: next(calls))
    with pytest.raises(RuntimeError):  # a StopIteration in a generator: the second explanation cannot be written
        save_explanations([one, one], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["e.jsonl"]


def test_files_that_cannot_be(one, tmp_path):
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        save_explanations([one], tmp_path / "e.csv")
    with pytest.raises(TypeError, match="got list"):
        save_explanations([[one]], tmp_path / "e.jsonl")
    with pytest.raises(OSError, match="nowhere"):
        save_explanations([one], tmp_path / "nowhere" / "e.jsonl")
    (tmp_path / "bad.jsonl").write_text(one.to_json() + '\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"Entry 2 of .*bad\.jsonl"):
        load_explanations(tmp_path / "bad.jsonl")
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))


def test_short_representation(one, several):
    assert repr(one) == f"TextExplanation({TEXT!r}, logits {{{one.label!r}: {one.logit:+.4f}}}, 7 words)"
    assert "LABEL_2" in repr(several)
