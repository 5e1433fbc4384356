"""The command line: evaluate, convert, info, push, doctor, help, and the installed command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import transformers

import bcos_transformers
from bcos_transformers import BcosExplainer, load_bcos_model
from command_line import LABELS, cli, csv_file, saved
from conftest import bcos_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TEXT = "a very good film , not dull !"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("bcos"), bcos_model(id2label=LABELS))


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
    file = csv_file(tmp_path, 'text,label\n"a\nfilm",good\nsoup,nice\n')
    said = cli("evaluate", model, "--file", file, code=1).stderr
    assert "The model has no label 'nice' (line 4 of" in said
    assert "its labels are: bad, good, so so" in said
    said = cli("evaluate", model, "--file", file, "--label-column", "stars", code=1).stderr
    assert "There is no column 'stars' in line 2 of" in said
    assert "text, label" in said


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


def test_push_in_one_commit_with_the_measured_facts(model, server, tmp_path):
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
