"""`bcos-transformers evaluate --faithfulness`: its document, its table, its files, and what its user's mistakes look like."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attribution_toys import conventional
from bcos_transformers.cli.app import app
from bcos_transformers.evaluation.baselines import METHODS
from bcos_transformers.evaluation.baselines.direct import Random
from bcos_transformers.evaluation.benchmark import BenchmarkSettings, FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_data import Example
from benchmark_toys import EXAMPLES, models
from command_line import cli, saved
from conftest import bcos_model, make_tokenizer
from contract import tiny_model

TWO = ("--methods", "bcos", "--methods", "random")
FILES = {"table.csv", "table.md", "table.tex", "records.jsonl", "faithfulness.png", "differences.csv", "cells"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models")
    saved(path / "bcos", models()["B-cos"][0])
    saved(path / "plain", models()["plain"][0])
    rows = [{"text": one.text, "label": one.label, "why": one.rationale} for one in EXAMPLES]
    (path / "texts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return path


def evaluate(folder: Path, *options: object, code: int = 0):
    return cli("evaluate", folder / "bcos", "--file", folder / "texts.jsonl", *options, code=code)


def test_the_document_is_what_the_benchmark_gives(folder, tmp_path):
    result = evaluate(folder, "--faithfulness", tmp_path / "out", *TWO, "--limit", "4", "--json")
    found = json.loads(result.stdout)
    assert found["texts"] == 14  # the accuracy is that of all texts
    assert "accuracy" in found
    rows = found["faithfulness"]
    assert [(row["model"], row["method"], row["texts"]) for row in rows] == [
        (str(folder / "bcos"), method, 4) for method in ("bcos", "random")
    ]
    examples = [Example(one.text, one.label) for one in EXAMPLES]
    settings = BenchmarkSettings(limit=4, max_length=32)
    direct = FaithfulnessBenchmark({"m": str(folder / "bcos")}, examples, tmp_path / "b", ["bcos"], settings).run()
    values = [record["comprehensiveness"] for record in direct[0]["records"]]
    assert rows[0]["comprehensiveness"] == pytest.approx(sum(values) / 4, abs=1e-9)
    assert rows[0]["cost"] == pytest.approx(2.0)
    assert rows[0]["seqpg"] is None
    assert rows[0]["error"] is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert "SeqPG is left out." in result.stderr
    evaluate(folder, "--faithfulness", tmp_path / "quiet", *TWO, "--limit", "4", "--pairs", "0", "--json")


def shown(folder: Path, columns: int, *options: object) -> str:
    arguments = ["evaluate", str(folder / "bcos"), "--file", str(folder / "texts.jsonl"), *map(str, options)]
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_table(folder, tmp_path):
    more = ("--rationale-column", "why", "--limit", "5", "--methods", "shapley_value_sampling", "--pairs", "0")
    alone = (*TWO, *more, "--faithfulness", tmp_path)
    for columns in (80, 120):
        lines = shown(folder, columns, *alone).splitlines()
        header = next(line for line in lines if "comp." in line)
        assert header.split() == ["method", "comp.", "↑", "suff.", "↓", "AUPRC", "↑", "cost"]
        assert any(line.split()[0] == "bcos" and line.split()[-1] == "2.0" for line in lines if line.strip())
        assert max(len(line.rstrip()) for line in lines[lines.index(header) : -1]) <= 79
        assert f"Table, figure and records: {tmp_path}" in lines[-1]
    both = shown(folder, 80, *alone, "--against", folder / "plain")
    lines = both[both.index("method") :].splitlines()[2:9]
    first = [re.match(r" ( *[a-z ]+?)(?:  |$)", line)[1] for line in lines]
    assert first == [
        *("bcos", "  bcos", "  random", "  shapley value sampling"),  # the last part of the path
        *("plain", "  random", "  shapley value sampling"),
    ]


def test_rationales_and_another_model(folder, tmp_path):
    options = ("--faithfulness", tmp_path, *TWO, "--against", folder / "plain", "--rationale-column", "why", "--json")
    rows = json.loads(evaluate(folder, *options).stdout)["faithfulness"]
    names = [str(folder / "bcos"), str(folder / "plain")]
    assert [(row["model"], row["method"]) for row in rows] == [
        (names[0], "bcos"),
        (names[0], "random"),
        (names[1], "random"),
    ]
    assert all(0 <= row["auprc"] <= 1 and 0 <= row["f1"] <= 1 for row in rows)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert sum("f1" in record for record in records) == 3 * sum(one.rationale is not None for one in EXAMPLES)


def test_interrupted_and_resumed(folder, tmp_path, monkeypatch, explained):
    options = ("--faithfulness", tmp_path, *TWO, "--methods", "occlusion", "--limit", "4")

    def interrupted(self, batch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["occlusion"], "_scores", interrupted)
        arguments = ["evaluate", str(folder / "bcos"), "--file", str(folder / "texts.jsonl"), *map(str, options)]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code != 0
    assert "Interrupted. The same command goes on from here; what is finished is in" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"cells"}
    explained.clear()
    assert "occlusion" in evaluate(folder, *options).stdout
    assert set(explained) == {"occlusion"}
    explained.clear()
    evaluate(folder, *options)
    assert explained == []


def test_a_method_that_fails_is_shown(folder, tmp_path, monkeypatch):
    def broken(self, batch):
        raise ValueError("nothing \x1b[2J drawn")

    monkeypatch.setattr(Random, "_scores", broken)
    result = evaluate(folder, "--faithfulness", tmp_path, *TWO, "--limit", "3")
    assert [line.split()[:2] for line in result.stdout.splitlines() if "random" in line] == [["random", "failed"]]
    assert "random failed: nothing" in result.stderr
    assert "\x1b[2J" not in result.everything
    said = evaluate(folder, "--faithfulness", tmp_path, "--methods", "random", "--limit", "3", code=1).stderr
    assert "No method could be measured. random failed on" in said


def test_decoders_hide_tokens_in_the_attention_mask(tmp_path, folder):
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    path = saved(tmp_path / "gpt2", tiny_model("gpt2", "sequence-classification"), tokenizer)
    options = ("--faithfulness", tmp_path / "out", *TWO, "--limit", "3", "--json")
    result = cli("evaluate", path, "--file", folder / "texts.jsonl", *options)
    assert "The tokenizer has no mask token, so tokens are hidden by taking them out" in result.stderr
    assert json.loads(result.stdout)["faithfulness"][0]["comprehensiveness"] is not None


# mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "x"), "--against needs --faithfulness DIR."),
        (("--methods", "bcos"), "--methods needs --faithfulness DIR."),
        (("--rationale-column", "why"), "--rationale-column needs --faithfulness DIR."),
        (("--limit", "3"), "--limit needs --faithfulness DIR."),
        (("--pairs", "0"), "--pairs needs --faithfulness DIR."),
        (("--faithfulness", "DIR", "--pair-column", "b"), "leave out --pair-column and --stride"),
        (("--faithfulness", "DIR", "--stride", "4"), "leave out --pair-column and --stride"),
        (("--faithfulness", "FILE"), "is a file."),
        (("--faithfulness", "DIR", "--against", "MODEL"), "--against needs another model than"),
        (("--faithfulness", "DIR", "--methods", "grad-cam"), "Unknown methods 'grad-cam'; there are: saliency,"),
        (("--faithfulness", "DIR", "--limit", "0"), "--limit"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_computed(folder, tmp_path, explained, monkeypatch, options, message):
    monkeypatch.setattr("bcos_transformers.cli.evaluate.load_model", lambda *_: pytest.fail("a model was loaded"))
    paths = {"DIR": tmp_path / "out", "FILE": folder / "texts.jsonl", "MODEL": folder / "bcos"}
    result = evaluate(folder, *(paths.get(option, option) for option in options), code=2)
    # The frame around the message breaks it into lines.
    assert message.replace(" ", "") in "".join(c for c in result.everything if not c.isspace() and c not in "│╭╮╰╯─")
    assert not (tmp_path / "out").exists()


def test_mistakes_are_said_before_the_model_explains(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("bcos_transformers.cli.evaluate.measure", lambda *_: pytest.fail("texts were explained"))
    out = ("--faithfulness", tmp_path / "out", *TWO)
    assert "There is no directory" in evaluate(folder, *out, "--against", tmp_path / "no", code=1).stderr
    untrained = saved(tmp_path / "base", conventional("bert").bert)
    assert "has no trained classifier" in evaluate(folder, *out, "--against", untrained, code=1).stderr
    other = saved(tmp_path / "four", bcos_model(num_labels=4))
    assert "need the same classes in the same order" in evaluate(folder, *out, "--against", other, code=1).stderr
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["excellent"])
    unlike = saved(tmp_path / "unlike", conventional("bert"), tokenizer)
    assert "Leave it out (`pairs` 0)" in evaluate(folder, *out, "--against", unlike, code=1).stderr
    said = evaluate(folder, *out, "--rationale-column", "because", code=1).stderr
    assert "'because' of line 1 of" in said
    assert not (tmp_path / "out").exists()


def test_rationales_that_do_not_fit(folder, tmp_path):
    def said(*rows, name="rows.jsonl", text=None) -> str:
        (tmp_path / name).write_text(text or "\n".join(map(json.dumps, rows)))
        options = ("--faithfulness", tmp_path / "out", "--rationale-column", "why", *TWO)
        return cli("evaluate", folder / "bcos", "--file", tmp_path / name, *options, code=1).stderr

    good = {"text": "a film", "label": 0, "why": [0, 1]}
    assert "In line 2 of" in said(good, {**good, "why": [1]})
    assert "the rationale has 1 marks, the text 2 words." in said(good, {**good, "why": [1]})
    assert "must be a list of marks or character spans, got '0 1'" in said({**good, "why": "0 1"})
    assert "the rationale must be 0 or 1 for each word" in said({**good, "why": [0, 7]})
    assert "Rationales are lists, which" in said(name="rows.csv", text="text,label,why\na film,0,x\n")
