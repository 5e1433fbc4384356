"""Running the command line in tests."""

from pathlib import Path
from types import SimpleNamespace

from typer.testing import CliRunner

from bcos_transformers.cli.app import app
from conftest import make_tokenizer

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


def csv_file(tmp_path: Path, text: str = "text,label\na film,good\n") -> Path:
    (tmp_path / "rows.csv").write_text(text)
    return tmp_path / "rows.csv"
