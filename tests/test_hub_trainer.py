"""A Trainer that pushes as it trains, adapters, and the example, on a Hub on loopback."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bcos_transformers.hub import BcosHubCallback
from conftest import bcos_model, tiny_config
from hub_helpers import TEXT, missing_code

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def model():
    return bcos_model(id2label={0: "bad", 1: "good", 2: "so so"}).float()


class FinishedPush(TrainerCallback):
    """Waits for each push, so that no commit is left out for having the files of the next one already."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        self.trainer._finish_current_push()


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_every_commit_of_a_trainer_has_its_code(hub, model, tokenizer, tmp_path, strategy):
    rows = [{"text": f"the film was {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(8)]
    data = Dataset.from_list(rows).map(lambda row: tokenizer(row["text"]))
    repo = f"tester/trained-{strategy}"
    args = TrainingArguments(
        str(tmp_path / "out"),
        push_to_hub=True,
        hub_model_id=repo,
        hub_strategy=strategy,
        hub_always_push=True,
        save_strategy="epoch",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[BcosHubCallback()])
    trainer.add_callback(FinishedPush(trainer))
    trainer.train()
    trainer.push_to_hub()
    commits = hub.history(repo)
    with_config = [commit for commit in commits if "config.json" in commit.files]
    assert len(with_config) >= 3, [commit.message for commit in commits]
    assert any("step" in commit.message or "epoch" in commit.message for commit in with_config)
    for commit in commits:
        assert not missing_code(commit.files), commit.message
    assert not [path for path in os.listdir(args.output_dir) if path.startswith("_code")]
    if strategy == "checkpoint":
        assert "last-checkpoint/config.json" in commits[-1].files
    early = AutoModelForSequenceClassification.from_pretrained(repo, revision=with_config[0].sha)
    assert not torch.equal(early.classifier.weight, model.classifier.weight)


def test_the_callback_is_needed_and_for_bcos_models_only(tmp_path, model):
    """The stock Trainer alone uploads the configuration without the code."""
    model.save_pretrained(tmp_path)
    files = {"config.json": (tmp_path / "config.json").read_bytes()}
    assert missing_code(files)
    with pytest.raises(TypeError, match="from_pretrained_bcos"):
        BcosHubCallback().on_train_begin(None, None, None, model=BertForSequenceClassification(tiny_config()))


def test_an_adapter_alone_needs_no_code(tmp_path, model):
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, task_type="SEQ_CLS"))
    state = SimpleNamespace(is_world_process_zero=True)
    args = SimpleNamespace(output_dir=str(tmp_path / "out"))
    BcosHubCallback().on_train_begin(args, state, None, model=adapted)
    assert not (tmp_path / "out").exists()
    BcosHubCallback().on_train_begin(args, state, None, model=bcos_model())
    assert (tmp_path / "out" / "modeling_bcos_bert.py").is_file()


def test_the_example_runs(hub, checkpoint, tmp_path, capsys, monkeypatch):
    import runpy

    monkeypatch.chdir(tmp_path)
    script = ROOT / "examples" / "push_and_pull.py"
    arguments = [script.name, "--model", str(checkpoint), "--repo-id", "tester/example", "--text", TEXT]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert "tester/example" in printed
    assert hub.history("tester/example")[0].sha in printed
    assert "equal" in printed
    assert "explanation.png" in hub.files("tester/example")
