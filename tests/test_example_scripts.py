"""The scripts to read from top to bottom, run as they are with a tiny model."""

import runpy
import sys
from pathlib import Path

import pytest

from bcos_transformers import load_explanations
from conftest import bcos_model, make_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bcos_model().float().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def run(monkeypatch, capsys, script: str, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return capsys.readouterr().out


def test_explain(monkeypatch, capsys, model_folder, tmp_path):
    output = run(monkeypatch, capsys, "explain.py", "--model", str(model_folder), "--output", str(tmp_path / "out"))
    assert output.count("= logit") == 3
    assert "LABEL_2 rather than LABEL_0" in output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "explanations.jsonl",
        "every-class.html",
        "bars.png",
        "heat-map.png",
    }
    assert len(load_explanations(tmp_path / "out" / "explanations.jsonl")) == 4


def test_long_document(monkeypatch, capsys, model_folder, tmp_path):
    (tmp_path / "document.txt").write_text("The film was very good. The soup was not!\n" * 12, encoding="utf-8")
    arguments = ["--model", str(model_folder), "--file", str(tmp_path / "document.txt"), "--window", "32"]
    output = run(
        *(monkeypatch, capsys, "long_document.py", *arguments),
        *("--stride", "8", "--output", str(tmp_path / "page.html")),
    )
    assert "108 words in 6 windows" in output
    assert "window 6: logit" in output
    assert "Read in 6 windows" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pipeline(monkeypatch, capsys, model_folder):
    output = run(monkeypatch, capsys, "pipeline.py", "--model", str(model_folder))
    assert "LABEL_0 rather than LABEL_1" in output
    assert output.count("(residual") == 3
    assert "= logit" in output
    assert "{'label': 'LABEL_" in output.splitlines()[-1]


@pytest.mark.parametrize("script", ["explain.py", "long_document.py", "pipeline.py"])
def test_without_a_model_the_way_to_one_is_named(monkeypatch, capsys, tmp_path, script):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"run_classification\.py` makes one"):
        run(monkeypatch, capsys, script, "--model", "runs/reviews")
