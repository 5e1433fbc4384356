"""proto-lm computes what its formulas say, pools real tokens only, and trains as it should."""

import logging

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    LayoutLMConfig,
    SqueezeBertConfig,
    Trainer,
    ViTConfig,
    pipeline,
)

from bcos_transformers import ProtoConfig, ProtoForSequenceClassification, train_last_layer_only
from bcos_transformers.modeling.proto_losses import class_of_labels, cohesion_and_separation
from conftest import training_arguments
from contract import CHECKPOINTING, tiny_inputs
from proto_toys import BINS, NAMES, TEXTS, project, proto_config, proto_model, twin

CLASSES = [2, 0, 1]
VALUES = [0.7, -3.0, 1.25]  # 0.7 lies on a boundary


def assert_same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


class TestFormulas:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    @pytest.mark.parametrize(
        ("fields", "labels"),
        [
            ({"num_cohesion_separation": 2}, CLASSES),
            ({"num_cohesion_separation": 1, "num_labels": 2, "classifier_bias": True}, [1, 0, 1]),
            ({"num_cohesion_separation": 0.67, "num_labels": 2, "lambda_ce": 2, "lambda_separation": 0.7}, [1, 1, 0]),
            ({"num_cohesion_separation": 0.1, "lambda_cohesion": 3.0, "epsilon": 0.1}, CLASSES),
            ({"num_cohesion_separation": 1.0, **BINS}, VALUES),
            ({"num_cohesion_separation": 1, "classifier_bias": True, **BINS}, VALUES),
        ],
    )
    def test_forward_losses_and_explanation_equal_the_twin(self, distance, fields, labels):
        model = proto_model(distance=distance, **fields)
        inputs = tiny_inputs(model)
        wanted = twin(model, inputs, labels)
        output = model(
            **inputs, labels=torch.tensor(labels, dtype=torch.float64 if "regression_values" in fields else None)
        )
        for name, value in wanted.items():
            if name != "contributions":
                assert_same(output[name].detach(), value)
        explanation = model.explain(**inputs, target="all", tokens=False)
        assert_same(explanation.contributions, wanted["contributions"])
        for name in ("logits", "similarities", "distances", "token_attention"):
            assert_same(explanation[name], wanted[name])

    @pytest.mark.parametrize(
        ("backbone", "conventional"), [("distilbert", True), ("modernbert", False), ("roberta", True)]
    )
    def test_other_encoders(self, backbone, conventional):
        model = proto_model(backbone, conventional)
        inputs = tiny_inputs(model)
        wanted = twin(model, inputs, CLASSES)
        output = model(**inputs, labels=torch.tensor(CLASSES))
        assert all(torch.allclose(output[n], v, rtol=1e-10, atol=1e-10) for n, v in wanted.items() if n in output)

    @pytest.mark.parametrize("config_class", [SqueezeBertConfig, LayoutLMConfig])
    def test_encoders_that_call_their_pooler_unasked(self, config_class):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        if config_class is SqueezeBertConfig:
            sizes |= {"embedding_size": 16, **{f"{name}_groups": 1 for name in ("q", "k", "v", "post_attention")}}
            sizes |= {"intermediate_groups": 1, "output_groups": 1}
        config = ProtoConfig(backbone_config=config_class(vocab_size=60, **sizes), num_prototypes=6, num_labels=3)
        model = ProtoForSequenceClassification(config).double().eval()
        inputs = tiny_inputs(model)
        wanted = twin(model, inputs, CLASSES)
        output = model(**inputs, labels=torch.tensor(CLASSES))
        assert all(torch.allclose(output[n], v, rtol=1e-10, atol=1e-10) for n, v in wanted.items() if n in output)
        assert not [name for name in model.state_dict() if "pooler" in name]

    def test_cohesion_pulls_the_farthest_and_separation_pushes_the_nearest(self):
        distances = torch.tensor([[1.0, 4.0, 2.0, 9.0, 7.0, 3.0]], requires_grad=True)
        own = torch.tensor([[True, True, True, False, False, False]])
        cohesion, separation = cohesion_and_separation(distances, own, 2)
        assert (cohesion.item(), separation.item()) == (3.0, -5.0)
        (cohesion + separation).sum().backward()
        assert distances.grad.tolist() == [[0.0, 0.5, 0.5, 0.0, -0.5, -0.5]]

    def test_one_class_has_nothing_to_part_from(self):
        model = proto_model(num_labels=1, regression_boundaries=[], regression_values=[1.0])
        output = model(**tiny_inputs(model), labels=torch.tensor(VALUES))
        assert output.separation_loss == 0
        assert output.cohesion_loss > 0
        output.loss.backward()
        assert torch.isfinite(model.prototypes.grad).all()

    def test_a_value_is_in_one_bin_in_every_precision(self):
        boundaries = torch.tensor([0.1, 0.7])
        for dtype in (torch.float32, torch.float64):
            assert class_of_labels(torch.tensor([0.1, 0.7, 0.69], dtype=dtype), boundaries).tolist() == [1, 2, 1]
            assert class_of_labels(torch.tensor([0.7]), boundaries.to(dtype)).tolist() == [2]

    def test_initial_weights(self):
        model = ProtoForSequenceClassification(proto_config(incorrect_class_weight=-0.25))
        assert model.classifier.weight[1].tolist() == [-0.25, -0.25, 1, 1, -0.25, -0.25]
        assert model.prototype_classes.tolist() == [0, 0, 1, 1, 2, 2]
        assert model.prototypes.std() > 0.1
        regression = ProtoForSequenceClassification(proto_config(classifier_bias=True, **BINS))
        torch.testing.assert_close(regression.classifier.weight[0, ::2], torch.tensor([-1.2, -0.1, 1.3]))
        torch.testing.assert_close(regression.classifier.bias, torch.tensor([0.2]))


class TestBatches:
    @pytest.mark.parametrize("attn", ["eager", "sdpa"])
    @pytest.mark.parametrize("left", [False, True])
    def test_padding_is_out_and_a_batch_equals_its_texts(self, attn, left):
        model = proto_model(attn=attn).float()
        inputs = tiny_inputs(model, left=left)
        if left:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        output = model(**inputs)
        mask = inputs["attention_mask"].bool()
        assert (output.token_attention[~mask] == 0).all()
        assert (output.token_attention[mask] > 0).all()
        torch.testing.assert_close(output.token_attention.sum(-1), torch.ones(3))
        for row in range(3):
            alone = {name: value[row : row + 1, mask[row]] for name, value in inputs.items()}
            torch.testing.assert_close(model(**alone).logits[0], output.logits[row], rtol=1e-5, atol=1e-5)

    def test_without_a_mask_every_token_is_real(self):
        model = proto_model()
        inputs = tiny_inputs(model, padded=False)
        assert torch.equal(model(inputs["input_ids"]).logits, model(**inputs).logits)

    @pytest.mark.parametrize("fields", [{}, BINS])
    def test_accumulation_equals_a_larger_batch(self, fields):
        model = proto_model(**fields)
        inputs = tiny_inputs(model, rows=3)
        labels = torch.tensor(VALUES if fields else CLASSES)
        whole = model(**inputs, labels=labels)
        whole.loss.backward()
        wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        rows, losses = (slice(0, 1), slice(1, 3)), []
        for part in rows:
            pieces = {name: value[part] for name, value in inputs.items()}
            output = model(**pieces, labels=labels[part], num_items_in_batch=torch.tensor(3))
            losses.append(
                torch.stack([output[name] for name in ("loss", "task_loss", "cohesion_loss", "separation_loss")])
            )
            output.loss.backward()
        assert_same(sum(losses)[0], whole.loss)
        assert_same(sum(losses)[1:].detach(), torch.stack([whole[n] for n in whole if n.endswith("_loss")]).detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-8, atol=1e-10)

    def test_tuples_hidden_states_and_inputs_embeds(self):
        model = proto_model(attn="eager")
        inputs = tiny_inputs(model)
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
        assert torch.equal(model(**inputs, return_dict=False)[0], output.logits)
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(inputs_embeds=embeds, **inputs).logits, output.logits)


class TestErrors:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    def test_distances_that_are_nan_are_named(self, distance):
        model = proto_model(distance=distance)
        with torch.no_grad():
            model.prototypes[2, 0] = float("nan")
        with pytest.raises(ValueError, match=r"rows \[0, 1, 2\] to prototypes \[2\] are not finite"):
            model(**tiny_inputs(model))
        with pytest.raises(ValueError, match="not finite"):
            model.explain(**tiny_inputs(model))

    def test_a_row_without_tokens(self):
        model = proto_model()
        inputs = tiny_inputs(model)
        inputs["attention_mask"][1] = 0
        with pytest.raises(ValueError, match=r"rows \[1\].*attention mask is 0 everywhere"):
            model(**inputs)

    def test_regression_labels_need_bins(self):
        model = proto_model(num_labels=1)
        with pytest.raises(ValueError, match="regression_bins"):
            model(**tiny_inputs(model), labels=torch.tensor(VALUES))

    def test_encoders_that_read_no_texts(self):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = ProtoConfig(backbone_config=ViTConfig(**sizes), num_prototypes=6)
        with pytest.raises(ValueError, match="of a text encoder, but ViTModel reads `pixel_values`"):
            ProtoForSequenceClassification(config)

    @pytest.mark.parametrize("fields", [{}, BINS])
    @pytest.mark.parametrize("count", [2, 4, 0])
    def test_labels_of_another_length_than_the_batch(self, fields, count):
        model = proto_model(**fields)
        labels = torch.zeros(count, dtype=torch.float64 if fields else torch.long)
        with pytest.raises(ValueError, match=rf"one a text: 3 texts, but labels of shape \({count},\)"):
            model(**tiny_inputs(model), labels=labels)
        column = torch.zeros(3, 1, dtype=labels.dtype)
        assert torch.equal(
            model(**tiny_inputs(model), labels=column).loss, model(**tiny_inputs(model), labels=column[:, 0]).loss
        )

    def test_an_empty_batch(self):
        model = proto_model()
        empty = torch.zeros(0, 9, dtype=torch.long)
        for inputs in ({"input_ids": empty}, {"inputs_embeds": torch.zeros(0, 9, 16).double()}):
            with pytest.raises(ValueError, match="The batch is empty"):
                model(**inputs, attention_mask=empty, labels=empty[:, 0])
        with pytest.raises(ValueError, match="is empty"):
            model.explain(empty, empty)

    @pytest.mark.parametrize("labels", [[0, 1, 3], [-100, 1, 2], [0.0, 1.0, 2.0]])
    def test_labels_that_are_no_classes(self, labels):
        model = proto_model()
        with pytest.raises(ValueError, match=r"class indices in \[0, 3\)"):
            model(**tiny_inputs(model), labels=torch.tensor(labels))


class TestTraining:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    def test_a_text_at_a_prototype_has_finite_gradients(self, distance):
        model = proto_model(distance=distance)
        inputs = tiny_inputs(model)
        with torch.no_grad():
            model.prototypes[:3] = model(**inputs).pooled_embedding
        output = model(**inputs, labels=torch.tensor(CLASSES))
        assert output.distances.diagonal().abs().max() < 1e-12
        output.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    @pytest.mark.parametrize("conventional", [False, True])
    def test_gradient_checkpointing_changes_nothing(self, conventional):
        model = proto_model(conventional=conventional)
        inputs = {**tiny_inputs(model), "labels": torch.tensor(CLASSES)}
        gradients = []
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in model.backbone.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        model.train()
        for checkpointed in (False, True):
            if checkpointed:
                getattr(model, f"{CHECKPOINTING}_enable")()
                assert model.backbone.encoder.layer[0].gradient_checkpointing
            model.zero_grad()
            model(**inputs).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for plain, again in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, again)

    @pytest.mark.slow
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    def test_compiled(self, distance):
        model = proto_model(distance=distance)
        inputs = {**tiny_inputs(model), "labels": torch.tensor(CLASSES)}
        wanted = model(**inputs)
        output = torch.compile(model, backend="aot_eager")(**inputs)
        torch.testing.assert_close(output.loss, wanted.loss)

    def test_training_that_moves_projected_prototypes_is_warned_of(self, tokenizer, caplog):
        model = proto_model()
        inputs = {**tiny_inputs(model), "labels": torch.tensor(CLASSES)}

        def warned() -> bool:
            logging.Logger.warning_once.cache_clear()
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                model(**inputs)
                model(**inputs)
            found = [r.getMessage() for r in caplog.records if "moves the prototypes away from" in r.getMessage()]
            assert len(found) <= 1
            return bool(found)

        model.train()
        assert not warned()  # no list yet
        project(model, tokenizer)
        assert warned()
        model.eval()
        assert not warned()
        model.train()
        model.requires_grad_(False)
        model.prototypes.requires_grad_(True)
        assert warned()
        train_last_layer_only(model)
        assert not warned()

    def test_resized_embeddings(self):
        model = proto_model(distance="cosine")
        inputs = tiny_inputs(model)
        model.resize_token_embeddings(70, mean_resizing=False)
        assert model.config.vocab_size == model.config.backbone_config.vocab_size == 70
        inputs["input_ids"][0, 3] = 69
        explanation = model.explain(**inputs)
        assert explanation.token_residual.abs().max() < 1e-12


@pytest.fixture
def data(tokenizer):
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(TEXTS * 2)]
    return Dataset.from_list(rows).map(lambda row: tokenizer(row["text"]))


class TestStockTools:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    def test_training_nears_the_own_class_and_parts_from_the_others(self, data, tokenizer, distance):
        model = ProtoForSequenceClassification(
            proto_config(distance=distance, lambda_ce=0.0, num_cohesion_separation=2)
        )
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")

        def means():
            with torch.no_grad():
                distances = model.eval()(**inputs).distances
            own = model.prototype_classes == (torch.arange(6) % 3)[:, None]
            return distances[own].mean(), distances[~own].mean()

        before = means()
        arguments = training_arguments(num_train_epochs=60, learning_rate=2e-2, per_device_train_batch_size=12)
        Trainer(model, arguments, train_dataset=data, processing_class=tokenizer).train()
        after = means()
        assert after[0] < 0.9 * before[0]
        assert after[1] > 1.1 * before[1]

    def test_trainer(self, data, tokenizer, tmp_path):
        model = proto_model(id2label=NAMES).float()
        project(model, tokenizer)
        train_last_layer_only(model)
        arguments = training_arguments(
            tmp_path, save_strategy="epoch", num_train_epochs=1, gradient_accumulation_steps=2
        )
        trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
        assert trainer.model_accepts_loss_kwargs
        trainer.train()
        assert "eval_loss" in trainer.evaluate()
        predicted = trainer.predict(data)
        assert predicted.predictions.shape == (12, 3)
        with torch.no_grad():
            wanted = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        torch.testing.assert_close(torch.from_numpy(predicted.predictions[:6]), wanted, rtol=1e-4, atol=1e-4)
        (checkpoint,) = tmp_path.glob("checkpoint-*")
        assert (checkpoint / "prototypes.jsonl").read_text().count("\n") == 6
        again = AutoModelForSequenceClassification.from_pretrained(checkpoint)
        assert again.config.prototypes == model.config.prototypes

    def test_pipeline(self, tokenizer):
        model = proto_model(id2label=NAMES).float()
        (found,) = pipeline("text-classification", model=model, tokenizer=tokenizer)([TEXTS[0]])
        with torch.no_grad():
            logits = model(**tokenizer([TEXTS[0]], return_tensors="pt")).logits[0]
        assert found["label"] == NAMES[logits.argmax().item()]
        with pytest.raises(TypeError, match=r'pipeline\("text-classification"\).*ProtoExplainer'):
            pipeline("bcos-text-classification", model=model, tokenizer=tokenizer)
        regression = proto_model(**BINS).float()
        (value,) = pipeline("text-classification", model=regression, tokenizer=tokenizer)([TEXTS[0]])
        with torch.no_grad():
            wanted = regression(**tokenizer([TEXTS[0]], return_tensors="pt")).logits.item()
        assert value["score"] == pytest.approx(wanted, rel=1e-4)
