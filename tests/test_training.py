"""The stock Trainer: training, resuming, accumulation, checkpointing, half precision, compilation, annealing."""

import json
import logging

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, Trainer, set_seed

from bcos_transformers import BcosAnnealingCallback, from_pretrained_bcos, set_b
from bcos_transformers.modeling.bcos_layers import BcosLinear
from conftest import HEADS, batch, bcos_model, relative_residual, training_arguments
from contract import CHECKPOINTING


def examples(count: int = 32) -> list[dict]:
    """Texts whose label depends on whether token 7 is there."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        ids = torch.randint(8, 60, (8,), generator=generator)
        ids[3] = 7 if i % 2 else 9
        rows.append({"input_ids": ids, "attention_mask": torch.ones(8, dtype=torch.long), "labels": i % 2})
    return rows


def train(model, folder, callbacks=(), resume=None, data=None, **overrides) -> Trainer:
    trainer = Trainer(
        model,
        training_arguments(folder, **{"max_steps": 8, "learning_rate": 5e-3, **overrides}),
        train_dataset=data or examples(),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def converted(checkpoint, **fields):
    set_seed(0)
    return from_pretrained_bcos(checkpoint, task="sequence-classification", num_labels=2, **fields)


def test_conversion_and_training_learn_the_label(checkpoint, tmp_path):
    model = converted(checkpoint, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    train(model, tmp_path, max_steps=60, learning_rate=1e-2)
    inputs = {k: torch.stack([torch.as_tensor(e[k]) for e in examples()]) for k in ("input_ids", "attention_mask")}
    model.eval()
    labels = torch.tensor([e["labels"] for e in examples()])
    assert (model(**inputs).logits.argmax(-1) == labels).float().mean() > 0.9
    assert relative_residual(model.double().explain(**inputs, target="all")) < 1e-9


def test_resuming_gives_the_same_model(checkpoint, tmp_path):
    whole = train(converted(checkpoint), tmp_path / "whole", save_strategy="steps", save_steps=4).model
    resumed = train(converted(checkpoint), tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-4")).model
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    saved = tmp_path / "whole" / "checkpoint-4"
    assert {"modeling_bcos_bert.py", "bcos_layers.py", "config.json"} <= {file.name for file in saved.iterdir()}
    loaded = AutoModelForSequenceClassification.from_pretrained(saved)
    assert relative_residual(loaded.double().explain(**batch())) < 1e-10


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_gradient_accumulation_equals_a_larger_batch(checkpoint, tmp_path, loss):
    fields = {"classifier_loss": loss, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    one = train(converted(checkpoint, **fields), tmp_path, max_steps=3).model
    two = train(
        converted(checkpoint, **fields),
        tmp_path,
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    ).model
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_gradient_checkpointing_gives_the_same_gradients(checkpoint):
    gradients = []
    for checkpointing in (False, True):
        model = converted(checkpoint)
        if checkpointing:
            getattr(model, f"{CHECKPOINTING}_enable")()
        model.train()
        torch.manual_seed(3)
        model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", [{CHECKPOINTING: True}, {"bf16": True}], ids=lambda o: next(iter(o)))
def test_trainer_options(checkpoint, tmp_path, options):
    before = converted(checkpoint).state_dict()
    model = train(converted(checkpoint), tmp_path, **options).model
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)  # in memory, training with bf16 leaves autocast in the forward pass
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert relative_residual(again.explain(**batch())) < 1e-4
    assert relative_residual(again.double().explain(**batch())) < 1e-10


def test_explaining_right_after_bf16_training_says_how_far_off_it_is(checkpoint, tmp_path, caplog):
    model = train(converted(checkpoint), tmp_path, bf16=True, max_steps=2).model
    out = model.explain(**batch())
    model.eval()
    assert torch.equal(out.logits, model(**batch()).logits)
    assert relative_residual(out) < 0.1


@pytest.mark.slow
def test_torch_compile_with_inductor(checkpoint, tmp_path):
    model = train(converted(checkpoint), tmp_path, torch_compile=True, max_steps=3).model
    assert relative_residual(model.double().explain(**batch())) < 1e-10


def test_whole_model_compiles_without_graph_breaks(checkpoint):
    model = converted(checkpoint, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    inputs, labels = batch(), torch.tensor([0, 1, 0])
    wanted = model(**inputs, labels=labels)
    wanted.loss.backward()
    gradient = model.bert.encoder.layer[0].output.dense.weight.grad.clone()
    model.zero_grad()
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs, labels=labels)
    got.loss.backward()
    torch.testing.assert_close(got.logits, wanted.logits)
    torch.testing.assert_close(model.bert.encoder.layer[0].output.dense.weight.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", HEADS)
def test_every_parameter_of_every_head_gets_a_gradient(task):
    model = bcos_model(task).train()
    labels = {
        "token-classification": {"labels": torch.zeros(3, 9, dtype=torch.long)},
        "masked-lm": {"labels": torch.full((3, 9), 6)},
        "question-answering": {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 3, 4])},
    }.get(task, {"labels": torch.tensor([0, 1, 2])})
    model(**batch(task=task), **labels).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


class TestLosses:
    def logits(self, model):
        return model(**batch()).logits

    def test_binary_cross_entropy_on_one_hot_targets(self):
        model, labels = bcos_model(), torch.tensor([2, 0, 1])
        logits = self.logits(model)
        p = torch.sigmoid(logits)
        wanted = -sum((p[i, c] if labels[i] == c else 1 - p[i, c]).log() for i in range(3) for c in range(3)) / 9
        torch.testing.assert_close(model(**batch(), labels=labels).loss, wanted)

    def test_cross_entropy(self):
        model, labels = bcos_model(classifier_loss="ce"), torch.tensor([2, 0, -100])
        wanted = F.cross_entropy(self.logits(model)[:2], labels[:2])
        torch.testing.assert_close(model(**batch(), labels=labels).loss, wanted)

    def test_ignored_labels(self):
        model = bcos_model()
        some = model(**batch(), labels=torch.tensor([2, 0, -100])).loss
        first = {name: value[:2] for name, value in batch().items()}
        torch.testing.assert_close(some, model(**first, labels=torch.tensor([2, 0])).loss)

    def test_regression_and_multi_label(self):
        model = bcos_model(num_labels=1)
        target = torch.tensor([0.1, 0.5, -1.0])
        wanted = F.mse_loss(self.logits(model).squeeze(-1), target.double())
        torch.testing.assert_close(model(**batch(), labels=target).loss, wanted)
        assert model.config.problem_type == "regression"
        model, target = bcos_model(), torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])
        wanted = F.binary_cross_entropy_with_logits(self.logits(model), target.double())
        torch.testing.assert_close(model(**batch(), labels=target).loss, wanted)
        assert model.config.problem_type == "multi_label_classification"

    def test_token_labels(self):
        model = bcos_model("token-classification", problem_type="multi_label_classification")
        labels = torch.randint(0, 3, (3, 9))
        labels[:, 5:] = -100
        p = torch.sigmoid(model(**batch()).logits[:, :5].flatten(0, 1))
        hot = F.one_hot(labels[:, :5].flatten(), 3)
        wanted = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean()
        torch.testing.assert_close(model(**batch(), labels=labels).loss, wanted)

    def test_tuples_and_positional_labels(self):
        model, labels = bcos_model(), torch.tensor([2, 0, 1])
        loss, logits = model(**batch(), labels=labels, return_dict=False)
        assert torch.equal(logits, self.logits(model))
        inputs = batch()
        given = (inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"], None, None, labels)
        torch.testing.assert_close(model(*given).loss, loss)

    def test_label_smoothing_warns_that_it_bypasses_the_loss(self, checkpoint, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            train(converted(checkpoint), tmp_path, max_steps=2, label_smoothing_factor=0.1)
        warnings = [record.message for record in caplog.records if "bypasses the loss" in record.getMessage()]
        assert len(warnings) == 1
        assert "label_smoothing_factor" in warnings[0]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            train(converted(checkpoint), tmp_path, max_steps=2)
        assert "bypasses" not in caplog.text


class TestAnnealing:
    def b_of(self, folder) -> float:
        return json.loads((folder / "config.json").read_text())["b"]

    def test_rises_to_the_target_and_is_in_the_checkpoints(self, checkpoint, tmp_path):
        model = converted(checkpoint, b=2.0)
        train(model, tmp_path, [BcosAnnealingCallback(0.5)], save_strategy="steps", save_steps=2)
        assert [self.b_of(tmp_path / f"checkpoint-{n}") for n in (2, 4, 6)] == [1.5, 2.0, 2.0]
        assert model.config.b == 2.0
        assert {m.b for m in model.modules() if isinstance(m, BcosLinear)} == {2.0}
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
        assert loaded.classifier.b == 1.5

    def test_resuming_goes_on_from_the_current_value(self, checkpoint, tmp_path):
        folder = tmp_path / "first"
        whole = converted(checkpoint, b=2.0, b_per_layer=[1.5, 3.0])
        train(whole, folder, [BcosAnnealingCallback(1.0)], save_strategy="steps", save_steps=4)
        middle = AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint-4")
        assert middle.config.b_per_layer == [1.25, 2.0]
        set_seed(0)
        train(middle, tmp_path / "second", [BcosAnnealingCallback(1.0)], resume=str(folder / "checkpoint-4"))
        assert (middle.config.b, middle.config.b_per_layer) == (2.0, [1.5, 3.0])
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(middle.state_dict()[name], value, msg=name)

    def test_best_checkpoint_brings_its_own_b(self, checkpoint, tmp_path):
        model = converted(checkpoint, b=3.0)
        callback = BcosAnnealingCallback(1.0)
        trainer = train(model, tmp_path, [callback], save_strategy="steps", save_steps=2)
        trainer.args.load_best_model_at_end = True
        trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-2")
        callback.on_train_end(trainer.args, trainer.state, trainer.control, model=model)
        assert model.config.b == model.classifier.b == self.b_of(tmp_path / "checkpoint-2") == 1.5

    @pytest.mark.parametrize("fraction", [0, -1, 1.5])
    def test_bad_fraction(self, fraction):
        with pytest.raises(ValueError, match="fraction"):
            BcosAnnealingCallback(fraction)

    def test_b_of_one_is_linear(self):
        model = bcos_model()
        set_b(model, 1.0)
        assert model.classifier.b == 1.0
