"""`bcos-transformers explain`: what it prints where."""

import json
import re
from pathlib import Path

import pandas
import pytest

from bcos_transformers import BcosExplainer, load_bcos_model, load_explanations
from bcos_transformers.cli.output import printable
from bcos_transformers.explanations import TextExplanation
from command_line import LABELS, cli, saved
from conftest import bcos_model, make_tokenizer
from contract import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TEXT = "a very good film , not dull !"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("bcos"), bcos_model(id2label=LABELS))


def test_explain_shows_the_sum_that_is_the_logit(model):
    shown = cli("explain", model, TEXT).stdout
    expected = BcosExplainer(load_bcos_model(model), make_tokenizer())(TEXT)
    assert f"logit {expected.logit:+.4f}" in shown
    assert shown.startswith(expected.label)
    assert re.sub(r"[+-]\d+\.\d\d", "", shown.splitlines()[0]).endswith(TEXT)
    assert "\x1b" not in shown  # no colours where it is no terminal


def test_explain_json_is_what_python_gives(model):
    one, two = json.loads(cli("explain", model, TEXT, "soup", "--json").stdout)
    explainer = BcosExplainer(load_bcos_model(model), make_tokenizer())
    assert TextExplanation.from_dict(one) == explainer([TEXT, "soup"])[0]
    assert two["text"] == "soup"
    lines = cli("explain", model, TEXT, "soup", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == [TEXT, "soup"]


def test_explain_targets_contrast_granularity_and_top(model):
    def explained(*options):
        return json.loads(cli("explain", model, TEXT, "--json", *options).stdout)[0]

    assert explained("--target", "2")["label"] == explained("--target", "so so")["label"] == "so so"
    assert explained("--target", "all")["target"] == [0, 1, 2]
    assert explained("--target", "good", "--target", "0")["target"] == [1, 0]
    assert explained("--target", "good", "--contrast", "bad")["contrast"] == "bad"
    assert explained("--granularity", "sentence")["words"] == [TEXT]
    top = explained("--top", "2", "--target", "all")["top"]["1"]
    assert [len(top), abs(top[0]["score"]) >= abs(top[1]["score"])] == [2, True]
    assert "largest for good: " in cli("explain", model, TEXT, "--top", "2", "--target", "all").stdout


def test_a_label_that_is_a_number_is_a_name_first(tmp_path):
    path = saved(tmp_path, bcos_model(id2label={0: "1", 1: "2", 2: "3"}))
    assert json.loads(cli("explain", path, TEXT, "--target", "1", "--json").stdout)[0]["target"] == 0


def test_explain_as_a_table(model):
    table = cli("explain", model, TEXT, "--format", "table", "--target", "all", "--top", "3").stdout
    expected = BcosExplainer(load_bcos_model(model), make_tokenizer())(TEXT, target="all")
    assert "5 more words" in table
    for label, logit in zip(LABELS.values(), expected.logit.values(), strict=True):
        assert label in table
        assert f"{logit:+.4f}" in table.split("logit")[1].splitlines()[0]
    columns = [[float(n) for n in re.findall(r"[+-]\d+\.\d{4}", line)] for line in table.splitlines()]
    words = [row for row in columns if row][:4]
    for k, scores in expected.scores.items():
        assert sum(row[k] for row in words) == pytest.approx(sum(scores), abs=3e-4)


def test_explain_reads_standard_input_and_files(model, tmp_path):
    wanted = ["a good film", "the soup , é"]
    texts = tmp_path / "texts.txt"
    texts.write_bytes("﻿a good film\r\n\r\nthe soup , é\r\n".encode())
    frame = pandas.DataFrame({"review": wanted, "n": [1, 2]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\n\n".join(json.dumps({"review": text}) for text in wanted))
    sources = [("--file", texts), ("-",), ()]
    sources += [
        ("--file", tmp_path / f"t.{kind}", "--column", "review") for kind in ("csv", "tsv", "parquet", "jsonl")
    ]
    for source in sources:
        result = cli("explain", model, *source, "--json", stdin=texts.read_bytes())
        assert [row["text"] for row in json.loads(result.stdout)] == wanted, source
    assert "Left out 1 empty line of standard input." in cli("explain", model, stdin=texts.read_bytes()).stderr
    pair = json.loads(
        cli(
            "explain", model, "--file", tmp_path / "t.csv", "--column", "review", "--pair-column", "n", "--json"
        ).stdout
    )
    assert [row["text_pair"] for row in pair] == ["1", "2"]
    pair = cli("explain", model, "a film", "soup", "--pair", "food", "--pair", "it", "--json").stdout
    assert [row["text_pair"] for row in json.loads(pair)] == ["food", "it"]


def test_explain_writes_files(model, tmp_path):
    expected = BcosExplainer(load_bcos_model(model), make_tokenizer())([TEXT, "soup"])
    for name in ("e.html", "e.json", "e.jsonl", "e.parquet"):
        said = cli("explain", model, TEXT, "soup", "--output", tmp_path / name).stdout
        assert "2 texts" in said
        assert name in said
    assert load_explanations(tmp_path / "e.jsonl") == load_explanations(tmp_path / "e.parquet") == expected
    assert [TextExplanation.from_dict(e) for e in json.loads((tmp_path / "e.json").read_text())] == expected
    assert "<span" in (tmp_path / "e.html").read_text()
    facts = json.loads(cli("explain", model, "film " * 40, "--output", tmp_path / "e.html", "--json").stdout)
    assert facts == {"output": str(tmp_path / "e.html"), "texts": 1, "explanations": 1, "truncated": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.html", "e.json", "e.jsonl", "e.parquet"]


def test_long_texts_are_never_cut_in_silence(model):
    result = cli("explain", model, "film " * 40)
    assert (
        "1 of 1 texts have more than 32 tokens and were cut. --stride explains long texts in windows." in result.stderr
    )
    assert "[the text was cut]" in result.stdout
    result = cli("explain", model, "film " * 40, "--stride", 4)
    assert "windows]" in result.stdout
    assert "cut" not in result.stderr


def test_explain_decoders_and_token_classification(tmp_path):
    decoder = saved(tmp_path / "gpt2", tiny_model("gpt2", "causal-lm"))
    (row,) = json.loads(cli("explain", decoder, "the film was", "--target", "good", "--target", "9", "--json").stdout)
    assert row["target"] == [13, 9]
    assert row["label"]["13"] == "good"
    tagger = saved(tmp_path / "tagger", bcos_model("token-classification", id2label=LABELS))
    first, second = json.loads(cli("explain", tagger, "a film", "soup", "--json").stdout)
    assert [len(first), len(second)] == [2, 1]
    assert cli("explain", tagger, "a film", "soup").stdout.count("= logit") == 3
    assert "soup: " in cli("explain", tagger, "soup", "--format", "html").stdout
    cli("explain", tagger, "a film", "soup", "--output", tmp_path / "t.jsonl")
    assert len(load_explanations(tmp_path / "t.jsonl")) == 3


def test_empty_input_is_said_and_gives_an_empty_list(model, tmp_path):
    result = cli("explain", model, "--json", stdin="")
    assert json.loads(result.stdout) == []
    assert "There is nothing to explain: no text in standard input." in result.stderr
    (tmp_path / "empty.csv").write_text("text,label\n")
    assert json.loads(cli("explain", model, "--file", tmp_path / "empty.csv", "--json").stdout) == []
    cli("explain", model, "--output", tmp_path / "none.jsonl", stdin="\n\n")
    assert load_explanations(tmp_path / "none.jsonl") == []
    said = cli("explain", model, "--target", "nothing", stdin="", code=1).stderr
    assert "'nothing' is not a label of this model: bad, good, so so" in said
    said = cli("evaluate", model, "--file", tmp_path / "empty.csv", code=1).stderr
    assert "has no rows" in said


def test_control_characters_do_not_reach_the_terminal(model):
    hostile = "film\x1b[2J\x9b2J\x07 \u202esoup\u2028 👩\u200d🚀\u3000x"
    for form in ("terminal", "table", "json", "jsonl"):
        shown = cli("explain", model, hostile, "--format", form).stdout
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]", shown), form
    assert json.loads(cli("explain", model, hostile, "--json").stdout)[0]["text"] == hostile
    assert printable("👩\u200d🚀\u3000x\x9b") == "👩\u200d🚀\u3000x\ufffd"
    assert "\x1b" not in cli("explain", model, "x", "--target", "\x1b[31mno", code=1).stderr
