"""`from_pretrained_proto`: the encoder of any checkpoint, with new prototypes."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
    SqueezeBertConfig,
    SqueezeBertModel,
    ViTConfig,
    ViTModel,
)

from bcos_transformers import ProtoForSequenceClassification, from_pretrained_bcos, from_pretrained_proto
from conftest import batch, relative_residual, tiny_config
from proto_training_toys import proto_model


def hidden(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).last_hidden_state


def same_encoder(model, checkpoint) -> bool:
    return torch.equal(hidden(model.backbone, batch()), hidden(AutoModel.from_pretrained(checkpoint), batch()))


def test_conventional_encoder_keeps_its_weights_and_gets_new_prototypes(checkpoint, tmp_path):
    torch.manual_seed(0)
    model = from_pretrained_proto(checkpoint, num_prototypes=6, num_labels=3, distance="cosine", lambda_ce=0.7)
    assert isinstance(model, ProtoForSequenceClassification)
    assert not model.training
    assert same_encoder(model, checkpoint)
    assert model.config.prototypes_per_class == 2
    assert (model.config.distance, model.config.lambda_ce) == ("cosine", 0.7)
    assert torch.equal(model.classifier.weight, model.initial_classifier_weight())
    assert 0.01 < model.prototypes.std() < 0.04
    assert 0.01 < model.token_attention.context.std() < 0.04
    assert not model.token_attention.projection.bias.any()
    assert not [name for name, p in model.named_parameters() if p.is_meta or not p.requires_grad]
    assert str(checkpoint) not in model.config.to_json_string()
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(**batch()).logits, model(**batch()).logits)


def test_prototypes_follow_the_seed_of_the_caller(checkpoint):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(from_pretrained_proto(checkpoint).prototypes)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_bcos_conversion_and_bcos_checkpoint(checkpoint, tmp_path):
    model = from_pretrained_proto(checkpoint, bcos=True, b=1.25, normalize_weights=False, distance="cosine")
    assert (model.config.is_bcos, model.backbone.config.b) == (True, 1.25)
    assert model.conversion_report.dropped_biases
    assert relative_residual(model.double().explain(**batch())) < 1e-10
    from_pretrained_bcos(checkpoint, task="sequence-classification", num_labels=3).save_pretrained(tmp_path)
    for bcos in (None, True):
        again = from_pretrained_proto(tmp_path, bcos=bcos, hidden_dropout_prob=0.3)
        assert again.config.is_bcos
        assert again.backbone.config.hidden_dropout_prob == 0.3
        assert same_encoder(again, tmp_path)
    with pytest.raises(ValueError, match="cannot be made conventional"):
        from_pretrained_proto(tmp_path, bcos=False)


def test_fine_tuned_classifier_gives_encoder_and_names_but_not_its_head(tmp_path):
    torch.manual_seed(0)
    names = {0: "bad", 1: "fair", 2: "good"}
    config = tiny_config(id2label=names, label2id={name: i for i, name in names.items()})
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = from_pretrained_proto(tmp_path)  # 12 prototypes
    assert model.config.id2label == names
    assert same_encoder(model, tmp_path)
    assert torch.equal(model.classifier.weight, model.initial_classifier_weight())
    assert from_pretrained_proto(tmp_path, num_labels=2).config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    model = from_pretrained_proto(tmp_path, id2label={0: "no", 1: "yes"})
    assert model.config.label2id == {"no": 0, "yes": 1}


def test_other_encoders_dtype_and_a_frozen_backbone(tmp_path):
    config = RobertaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1)
    RobertaModel(config).save_pretrained(tmp_path)
    model = from_pretrained_proto(tmp_path, freeze_backbone=True, dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.backbone.config._attn_implementation == "eager"
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"prototypes", "token_attention", "classifier"}


def test_an_encoder_that_calls_its_pooler_unasked(tmp_path):
    sizes = {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    groups = {f"{name}_groups": 1 for name in ("q", "k", "v", "post_attention", "intermediate", "output")}
    SqueezeBertModel(SqueezeBertConfig(vocab_size=60, **sizes, **groups)).save_pretrained(tmp_path / "encoder")
    model = from_pretrained_proto(tmp_path / "encoder")
    wanted = model(**batch()).logits
    model.save_pretrained(tmp_path / "saved")
    again = ProtoForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(**batch()).logits, wanted)
    assert not [name for name in model.state_dict() if "pooler" in name]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_prototypes": 7}, ValueError, "not divisible by the 2 classes"),
        ({"num_prototypes": 1}, ValueError, "fewer than the 2 classes"),
        ({"num_cohesion_separation": 9}, ValueError, "between 1 and the 6"),
        ({"num_labels": 0}, ValueError, "positive integer"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, ValueError, "2 labels have names"),
        ({"lamda_ce": 1.0}, TypeError, "Did you mean 'lambda_ce'"),
        ({"b": 1.5}, TypeError, "bcos=True"),
        ({"prototypes": []}, TypeError, "comes with the checkpoint"),
        ({"load_in_8bit": True}, ValueError, "full precision"),
        ({"bcos": True, "d": 1}, TypeError, "'d' is neither"),
    ],
)
def test_refused_before_weights_are_loaded(checkpoint, monkeypatch, options, error, message):
    monkeypatch.setattr("bcos_transformers.prototypes.loading.AutoModel", None)
    monkeypatch.setattr("bcos_transformers.prototypes.loading.from_pretrained_bcos", None)
    with pytest.raises(error, match=message):
        from_pretrained_proto(checkpoint, **options)


def test_refused_checkpoints(tmp_path):
    proto_model().save_pretrained(tmp_path / "proto")
    with pytest.raises(ValueError, match="has prototypes already"):
        from_pretrained_proto(tmp_path / "proto")
    GPT2Model(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="need an encoder"):
        from_pretrained_proto(tmp_path / "gpt2", bcos=True)


def test_an_encoder_of_images_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path)
    monkeypatch.setattr("bcos_transformers.prototypes.loading.AutoModel", None)
    with pytest.raises(ValueError, match="text encoder, but ViTModel reads `pixel_values`"):
        from_pretrained_proto(tmp_path)
