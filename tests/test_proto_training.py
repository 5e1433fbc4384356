"""The stock Trainer with prototypes: what losses do, projection midway, resuming, the last layer alone."""

import json
import logging

import pytest
import torch
from transformers import TrainerCallback

from bcos_transformers import (
    BcosHubCallback,
    ProtoForSequenceClassification,
    ProtoProjectionCallback,
    from_pretrained_bcos,
    prototype_parameter_groups,
    regression_bins,
    train_last_layer_only,
)
from bcos_transformers.modeling.proto_losses import class_of_labels
from conftest import training_arguments
from contract import CHECKPOINTING
from proto_training_toys import embedding, proto_model, rows, scores, train


class Watch(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def mean_distances(model, tokenizer) -> tuple[float, float]:
    """To prototypes of the own class and of others."""
    data = rows()
    inputs = tokenizer([row["text"] for row in data], padding=True, return_tensors="pt")
    model.eval()
    with torch.no_grad():
        distances = model(**inputs).distances
    own = model.prototype_classes == torch.tensor([row["label"] for row in data])[:, None]
    return distances[own].mean().item(), distances[~own].mean().item()


def assert_projected(model, tokenizer):
    assert len(model.config.prototypes) == model.config.num_prototypes
    for one, prototype in zip(model.config.prototypes, model.prototypes.detach(), strict=True):
        torch.testing.assert_close(prototype, embedding(model, tokenizer, one["text"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_training_lowers_the_own_distance_and_raises_the_other(distance, tokenizer, tmp_path):
    model = proto_model(distance=distance, dropout=0.0)
    before = mean_distances(model, tokenizer)
    train(model, tokenizer, tmp_path, max_steps=100)
    after = mean_distances(model, tokenizer)
    assert after[0] < 0.9 * before[0]
    assert after[1] > 1.1 * before[1]


@pytest.mark.parametrize(("bf16", "accumulation"), [(False, 2), (True, 1)])
def test_projection_midway_then_the_last_layer_alone(bf16, accumulation, tokenizer, tmp_path):
    model = proto_model(bcos=True, distance="cosine")
    watch = Watch()
    callback = ProtoProjectionCallback(rows(), tokenizer, project_at=0.5, batch_size=7)
    groups = prototype_parameter_groups(model, 5e-3, 1e-2, weight_decay=0.3)
    options = {"bf16": bf16, "gradient_accumulation_steps": accumulation}
    optimizer = torch.optim.AdamW(groups)
    train(model, tokenizer, tmp_path, [callback, watch], optimizer=optimizer, weight_decay=0.3, **options)
    assert callback.projected_at == 4
    assert model.config.prototypes == callback.prototypes
    for name, value in watch.weights[8].items():  # weight decay and momentum would have moved them
        assert torch.equal(value, watch.weights[4][name]) == (name != "classifier.weight"), name
    assert not any(
        torch.equal(watch.weights[3][name], watch.weights[2][name]) for name in ("prototypes", "classifier.weight")
    )
    assert_projected(model, tokenizer)
    model.save_pretrained(tmp_path)
    assert_projected(ProtoForSequenceClassification.from_pretrained(tmp_path), tokenizer)


def test_by_default_projection_comes_with_the_last_step_and_its_checkpoint(tokenizer, tmp_path):
    model = proto_model()
    train(
        model, tokenizer, tmp_path, [ProtoProjectionCallback(rows(), tokenizer)], save_strategy="steps", save_steps=4
    )
    assert_projected(model, tokenizer)
    early, last = (json.loads((tmp_path / f"checkpoint-{i}" / "config.json").read_text()) for i in (4, 8))
    assert not early.get("prototypes")
    assert last["prototypes"] == model.config.prototypes
    assert_projected(ProtoForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8"), tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, tokenizer, tmp_path, max_steps=3, weight_decay=0.3)  # the last layer by a second Trainer
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["classifier.weight"]


@pytest.mark.parametrize("step", [2, 4, 6])
def test_resuming_gives_the_same_model(step, tokenizer, tmp_path):
    def run(folder, resume=None):
        callback = ProtoProjectionCallback(rows(), tokenizer, project_at=0.5)
        model = proto_model()
        options = {"save_strategy": "steps", "save_steps": 2, "weight_decay": 0.3}
        train(model, tokenizer, tmp_path / folder, [callback], resume, **options)
        return model, callback

    model, callback = run("whole")
    resumed, again = run("again", str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert (again.projected_at, again.prototypes) == (4, callback.prototypes)
    assert resumed.config.prototypes == model.config.prototypes
    assert [p.requires_grad for p in resumed.parameters()] == [p.requires_grad for p in model.parameters()]
    for (name, one), other in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(("best", "again"), [(2, True), (6, False)])
def test_the_best_checkpoint_may_be_older_than_the_projection(best, again, tokenizer, tmp_path, caplog):
    class Scores(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            metrics["eval_score"] = float(state.global_step == best)

    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    model = proto_model()
    callback = ProtoProjectionCallback(rows(), tokenizer, project_at=0.5)
    with caplog.at_level(logging.WARNING, "bcos_transformers"):
        train(model, tokenizer, tmp_path, [Scores(), callback], **options)
    assert_projected(model, tokenizer)
    assert callback.projected_at == (8 if again else 4)
    assert [f"checkpoint-{best}, is older" in record.getMessage() for record in caplog.records] == [True] * again


@pytest.mark.parametrize("hub_last", [True, False])
def test_the_hub_callback_stands_after_the_projection(hub_last, tokenizer, tmp_path):
    callbacks = [ProtoProjectionCallback(rows(), tokenizer), BcosHubCallback()]
    model = proto_model()
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    train(model, tokenizer, tmp_path, callbacks if hub_last else callbacks[::-1], **options)
    listed = tmp_path / "prototypes.jsonl"  # what an upload of the last step takes
    assert listed.exists() == hub_last
    if hub_last:
        assert [json.loads(line) for line in listed.read_text().splitlines()] == model.config.prototypes


def test_an_early_stop_projects_too(tokenizer, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    model, callback = proto_model(num_labels=1), ProtoProjectionCallback(scores(), tokenizer, project_at=0.9)
    train(model, tokenizer, tmp_path, [Stop(), callback], data=scores())
    assert callback.projected_at == 3
    assert_projected(model, tokenizer)


def test_refused_when_training_begins(checkpoint, tokenizer, tmp_path):
    other = from_pretrained_bcos(checkpoint, task="sequence-classification")
    with pytest.raises(TypeError, match="ProtoForSequenceClassification is needed"):
        train(other, tokenizer, tmp_path, [ProtoProjectionCallback(rows(), tokenizer)])
    of_one_class = [row for row in rows() if row["label"]]
    with pytest.raises(ValueError, match="none of class 0"):
        train(proto_model(), tokenizer, tmp_path, [ProtoProjectionCallback(of_one_class, tokenizer)])
    callback = ProtoProjectionCallback(rows(), tokenizer, label_column="y")
    with pytest.raises(ValueError, match="no column 'y'"):
        train(proto_model(), tokenizer, tmp_path, [callback])


def test_distributed_training_that_waits_for_frozen_parameters(tokenizer, monkeypatch):
    callback = ProtoProjectionCallback(rows(), tokenizer, project_at=0.5)
    state = type("State", (), {"max_steps": 8, "global_step": 0, "stateful_callbacks": {}})
    arguments = training_arguments(**{CHECKPOINTING: True})
    callback.on_train_begin(arguments, state, None, model=proto_model())
    monkeypatch.setattr(type(arguments), "world_size", 2)
    with pytest.raises(ValueError, match="ddp_find_unused_parameters"):
        callback.on_train_begin(arguments, state, None, model=proto_model())
    callback.on_train_begin(training_arguments(), state, None, model=proto_model())


@pytest.mark.parametrize("share", [0, 1.5, "half", float("nan")])
def test_refused_arguments(share, tokenizer):
    with pytest.raises(ValueError, match="must lie in"):
        ProtoProjectionCallback(rows(), tokenizer, project_at=share)
    with pytest.raises(TypeError, match="'text_colum' is no option"):
        ProtoProjectionCallback(rows(), tokenizer, text_colum="sentence")
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint"):
        ProtoProjectionCallback(**ProtoProjectionCallback(rows(), tokenizer).state()["args"])


class TestParameterGroups:
    def test_every_parameter_is_in_the_group_that_it_belongs_to(self):
        model = proto_model(classifier_bias=True)
        found = {}
        for group in prototype_parameter_groups(model, 1e-4, 1e-2, weight_decay=0.1):
            for parameter in group["params"]:
                name = next(name for name, p in model.named_parameters() if p is parameter)
                assert name not in found
                found[name] = (group["lr"], group["weight_decay"])
        assert found.keys() == dict(model.named_parameters()).keys()
        for name, (rate, decay) in found.items():
            assert rate == (1e-4 if name.startswith("backbone.") else 1e-2)
            free = name.endswith("bias") or "LayerNorm" in name or name == "prototypes"
            assert decay == (0.0 if free else 0.1), name

    def test_one_rate_by_default_and_frozen_parameters_left_out(self):
        model = proto_model(freeze_backbone=True)
        groups = prototype_parameter_groups(model, 1e-3)
        assert {group["lr"] for group in groups} == {1e-3}
        assert sum(len(group["params"]) for group in groups) == 5
        train_last_layer_only(model)
        (group,) = prototype_parameter_groups(model, 1e-3)
        assert [id(p) for p in group["params"]] == [id(model.classifier.weight)]

    def test_refused(self):
        with pytest.raises(ValueError, match="`prototype_learning_rate` must be"):
            prototype_parameter_groups(proto_model(), 1e-3, -1.0)
        with pytest.raises(ValueError, match="No parameter"):
            prototype_parameter_groups(proto_model().requires_grad_(False), 1e-3)


def test_last_layer_only_drops_gradients_and_the_dropout_of_the_encoder(tokenizer):
    model = proto_model().train()
    inputs = tokenizer(["the film was good"], return_tensors="pt")
    model(**inputs, labels=torch.tensor([1])).loss.backward()
    train_last_layer_only(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"classifier.weight"}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"classifier.weight"}
    assert model.training
    assert torch.equal(model(**inputs).similarities, model(**inputs).similarities)


class TestRegressionBins:
    def test_quantiles(self):
        bins = regression_bins([4.0, 1.0, 3.0, 2.0, 5.0, 6.0], 3)
        assert bins == {"regression_boundaries": [2.5, 4.5], "regression_values": [1.5, 3.5, 5.5]}
        assert regression_bins([3, 1], 1) == {"regression_boundaries": [], "regression_values": [2.0]}

    def test_equal_targets_stay_together_and_no_bin_is_empty(self):
        targets = [0.0] * 50 + [0.25] * 2 + [0.5] + [1.0]
        bins = regression_bins(targets, 4)
        assert bins == {"regression_boundaries": [0.125, 0.375, 0.75], "regression_values": [0.0, 0.25, 0.5, 1.0]}
        narrow = regression_bins([1.0, 1.0 + 2**-23], 2)
        assert narrow["regression_boundaries"] == [1.0 + 2**-23]  # which belongs to the upper bin

    @pytest.mark.parametrize(
        ("targets", "count"),
        [
            ([1.0, 1.0 + 1e-12, 2.0], 2),
            ([1.0, 1.0 + 2**-23, 1.0 + 2**-22], 3),
            ([0.1, 0.2, 0.3, 0.3 + 1e-9, 16777216.0, 16777217.0, 16777218.0], 5),
        ],
    )
    def test_no_bin_is_empty_for_the_model_which_compares_in_float32(self, targets, count):
        boundaries = torch.tensor(regression_bins(targets, count)["regression_boundaries"], dtype=torch.float64)
        found = class_of_labels(torch.tensor(targets, dtype=torch.float64), boundaries)
        assert found.unique().tolist() == list(range(count))

    def test_refused(self):
        for targets in ([], [1.0, 1.0, 2.0], [1.0, 1.0 + 1e-12, 2.0]):
            with pytest.raises(ValueError, match="3 bins need as many distinct targets"):
                regression_bins(targets, 3)
        for value in (float("nan"), 1e300):
            with pytest.raises(ValueError, match="finite numbers in float32"):
                regression_bins([1.0, value], 1)
        with pytest.raises(ValueError, match="`count`"):
            regression_bins([1.0], 0)
