"""What the callback refuses or leaves alone, and a regression through all three stages."""

import pytest
import torch

from bcos_transformers import ProtoProjectionCallback, prototype_parameter_groups, train_last_layer_only
from proto_training_toys import proto_model, rows, scores, tokenized, train


def test_a_second_training_of_the_last_layer_keeps_the_prototypes(tokenizer, tmp_path):
    model = proto_model()
    callback = ProtoProjectionCallback(rows(), tokenizer)
    train(model, tokenizer, tmp_path / "first", [callback], max_steps=3)
    before, vectors = [dict(row) for row in model.config.prototypes], model.prototypes.detach().clone()
    weight = model.classifier.weight.detach().clone()
    assert min(row["distance"] for row in before) > 0
    train(model, tokenizer, tmp_path / "second", [callback], max_steps=3)
    assert model.config.prototypes == before
    assert torch.equal(model.prototypes, vectors)
    assert not torch.equal(model.classifier.weight, weight)


def test_a_loss_that_bypasses_the_model_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1"):
        train(
            proto_model(),
            tokenizer,
            tmp_path,
            [ProtoProjectionCallback(rows(), tokenizer)],
            max_steps=1,
            label_smoothing_factor=0.1,
        )


def test_adapters_are_to_be_merged_first(tokenizer):
    peft = pytest.importorskip("peft", reason="needs the extra that brings peft")
    model = peft.get_peft_model(proto_model(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(TypeError, match="merge_and_unload"):
        train_last_layer_only(model)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_a_regression_is_better_than_the_mean_after_projection_and_last_layer(distance, tokenizer, tmp_path):
    data, alone = scores(), {"lambda_ce": 1.0, "lambda_cohesion": 0.0, "lambda_separation": 0.0}
    model = proto_model(num_labels=1, classifier_bias=True, distance=distance, dropout=0.0, **alone)
    optimizer = torch.optim.AdamW(prototype_parameter_groups(model, 1e-2))
    callback = ProtoProjectionCallback(data, tokenizer, project_at=0.5)
    trainer = train(model, tokenizer, tmp_path, [callback], data=data, optimizer=optimizer, max_steps=160)
    predicted = trainer.predict(tokenized(data, tokenizer)).predictions.squeeze(-1)
    targets = torch.tensor([row["label"] for row in data])
    error = (torch.from_numpy(predicted) - targets).square().mean().sqrt()
    assert error < 0.7 * targets.std()  # with ε = 1e-4 it is thousands of times that
