"""The configuration of proto-lm: what it refuses, what it keeps, and what of it reaches the encoder."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    T5Config,
)

from bcos_transformers import ProtoConfig, ProtoForSequenceClassification, load_bcos_model
from contract import tiny_config, tiny_inputs
from proto_toys import BINS, NAMES, proto_config, proto_model


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_prototypes": 2}, "2 prototypes are fewer than the 3 classes.*multiple of 3"),
            ({"num_prototypes": 2, **BINS}, "2 prototypes are fewer than the 3 bins"),
            ({"num_prototypes": 7}, "not divisible by the 3 classes.*set it to 6 or 9"),
            ({"num_prototypes": 0}, "`num_prototypes` must be an integer of at least 1"),
            ({"num_prototypes": 6.0}, "num_prototypes"),
            ({"num_cohesion_separation": 3}, "must be between 1 and the 2 prototypes that each of the 3 classes has"),
            ({"num_cohesion_separation": 0}, "must be between 1 and the 2"),
            ({"num_cohesion_separation": 1.5}, r"share must lie in \(0, 1\]"),
            ({"num_cohesion_separation": float("nan")}, "share must lie"),
            ({"num_cohesion_separation": True}, "count .* or a share"),
            ({"distance": "l1"}, "distance"),
            ({"epsilon": 0}, "larger than 0"),
            ({"lambda_cohesion": -1}, "`lambda_cohesion` must be a number of at least 0"),
            ({"lambda_ce": float("inf")}, "lambda_ce"),
            ({"incorrect_class_weight": float("nan")}, "incorrect_class_weight"),
            ({"problem_type": "multi_label_classification"}, "of one class"),
            ({"problem_type": "regression"}, "does not fit num_labels=3"),
            ({"problem_type": "single_label_classification", **BINS}, "single_label_classification.*num_labels"),
            ({"regression_boundaries": [0.0]}, "are for regressions"),
            ({**BINS, "regression_boundaries": [0.7, -0.5]}, "must ascend"),
            ({**BINS, "regression_boundaries": [0.0, float("nan")]}, "must ascend"),
            ({**BINS, "regression_values": [1.0]}, "a value for each of the 3 bins"),
            ({"prototypes": [{"text": "a"}]}, "describes 1 prototypes, but `num_prototypes` is 6"),
        ],
    )
    def test_says_what_is_wrong(self, fields, message):
        with pytest.raises(ValueError, match=message):
            proto_config(**fields)

    @pytest.mark.parametrize(
        ("backbone", "message"),
        [
            ({"model_type": "nothing"}, "'nothing'.*neither.*nor one of"),
            ({"hidden_size": 16}, "None"),
            ({"model_type": "bcos-gpt2"}, "bcos-gpt2"),
            (tiny_config("gpt2"), "B-cos backbones are encoders .*got bcos-gpt2"),
            (T5Config(), "text encoder, got T5Config"),
            ("bert", "configuration or a dict of one, got str"),
        ],
    )
    def test_backbones_that_are_none(self, backbone, message):
        with pytest.raises(ValueError, match=message):
            ProtoConfig(backbone_config=backbone, num_prototypes=4)

    @pytest.mark.parametrize(
        "backbone",
        [
            tiny_config("bert", conventional=True),
            DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=60),
            tiny_config("bert"),
        ],
    )
    def test_a_checkpoint_without_prototypes_is_not_loaded_as_one_with(self, backbone, tmp_path):
        AutoModel.from_config(backbone).save_pretrained(tmp_path)
        for load in (ProtoForSequenceClassification.from_pretrained, ProtoConfig.from_pretrained):
            with pytest.raises(ValueError, match=f"'{backbone.model_type}' checkpoint.*from_pretrained_proto"):
                load(tmp_path)
        assert ProtoConfig.from_dict({"num_prototypes": 4}).num_prototypes == 4

    def test_a_configuration_that_became_invalid_is_not_built_or_saved(self, tmp_path):
        config = proto_config()
        config.num_prototypes = 7
        with pytest.raises(ValueError, match="not divisible"):
            ProtoForSequenceClassification(config)
        model = proto_model()
        model.config.epsilon = 0
        with pytest.raises(ValueError, match="epsilon"):
            model.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError):
            proto_model().save_pretrained(tmp_path / "file")


class TestFields:
    @pytest.mark.parametrize(("share", "count"), [(1, 1), (3, 3), (0.5, 2), (0.3, 1), (0.1, 1), (1.0, 4)])
    def test_k_as_a_count_or_a_share(self, share, count):
        assert proto_config(num_prototypes=12, num_cohesion_separation=share).cohesion_separation_count == count

    @pytest.mark.parametrize(("backbone", "conventional"), [("bert", True), ("distilbert", True), ("roberta", False)])
    def test_round_trips(self, backbone, conventional, tmp_path):
        described = [{"text": "ä text", "label": "bad", "index": j, "distance": 0.5} for j in range(6)]
        config = proto_config(
            backbone, conventional, id2label=NAMES, num_cohesion_separation=0.5, prototypes=described
        )
        config.save_pretrained(tmp_path)
        for again in (
            ProtoConfig.from_dict(config.to_dict()),
            ProtoConfig.from_pretrained(tmp_path),
            AutoConfig.from_pretrained(tmp_path),
        ):
            assert type(again) is ProtoConfig
            assert type(again.backbone_config) is type(config.backbone_config)
            before, after = config.to_dict(), again.to_dict()
            for values in (before, after):
                values.pop("_name_or_path", None)
                values.pop("transformers_version", None)
            assert {k: v for k, v in after.items() if k != "auto_map"} == {
                k: v for k, v in before.items() if k != "auto_map"
            }

    def test_regression_round_trips_and_is_called_one(self):
        config = ProtoConfig.from_dict(json.loads(proto_config(**BINS).to_json_string()))
        assert (config.problem_type, config.num_classes, config.prototypes_per_class) == ("regression", 3, 2)
        assert config.regression_boundaries == BINS["regression_boundaries"]

    def test_what_was_given_is_neither_changed_nor_shared(self):
        given = tiny_config("bert", conventional=True)
        before = copy.deepcopy(given.to_dict())
        config = ProtoConfig(backbone_config=given, num_prototypes=6, num_labels=3, attn_implementation="eager")
        ProtoForSequenceClassification(config).resize_token_embeddings(70, mean_resizing=False)
        assert config.backbone_config is not given
        assert given.to_dict() == before
        as_dict = {**given.to_dict(), "auto_map": {"AutoModel": "x.Y"}}
        before = copy.deepcopy(as_dict)
        config = ProtoConfig(backbone_config=as_dict, num_prototypes=6, num_labels=3)
        assert as_dict == before
        assert type(config.backbone_config) is BertConfig
        assert not hasattr(config.backbone_config, "auto_map")

    def test_bcos_backbone_from_a_dict(self):
        config = ProtoConfig(backbone_config=tiny_config("bert", b=1.25).to_dict(), num_prototypes=6, num_labels=3)
        assert config.is_bcos
        assert config.backbone_config.b == 1.25

    def test_what_a_text_model_is_asked_for(self):
        config = proto_config("roberta")
        assert (config.hidden_size, config.vocab_size, config.pad_token_id) == (16, 60, 1)
        config.pad_token_id = 3
        assert config.backbone_config.pad_token_id == 3


class TestLoading:
    @pytest.fixture
    def saved(self, tmp_path):
        model = proto_model(freeze_backbone=True, id2label=NAMES).float()
        model.save_pretrained(tmp_path)
        return SimpleNamespace(model=model, path=tmp_path)

    def test_a_frozen_encoder_stays_frozen(self, saved):
        for model in (saved.model, AutoModelForSequenceClassification.from_pretrained(saved.path)):
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            assert trained
            assert not [name for name in trained if name.startswith("backbone.")]
            model.train()
            assert model.token_attention.training
            assert not any(module.training for module in model.backbone.modules())
            model(**tiny_inputs(model), labels=torch.tensor([0, 1, 2])).loss.backward()
            assert model.prototypes.grad is not None
        assert proto_model().train().backbone.training

    def test_weights_and_class(self, saved):
        again = load_bcos_model(saved.path)
        assert type(again) is ProtoForSequenceClassification
        assert not again.training
        wanted = saved.model.state_dict()
        assert again.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
        assert not [name for name in wanted if "pooler" in name]

    def test_dtype_and_attention_reach_the_encoder(self, saved):
        model = AutoModelForSequenceClassification.from_pretrained(
            saved.path, dtype=torch.bfloat16, attn_implementation="eager"
        )
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.backbone.config._attn_implementation == "eager"
        output = model(**tiny_inputs(model), output_attentions=True)
        assert len(output.attentions) == 2
        assert output.logits.dtype == torch.float32
        torch.testing.assert_close(output.logits, saved.model(**tiny_inputs(model)).logits, rtol=0.1, atol=0.2)
        model.set_attn_implementation("sdpa")
        assert model.backbone.config._attn_implementation == "sdpa"

    def test_a_list_of_prototypes_is_saved_and_goes_when_it_is_gone(self, saved):
        file = saved.path / "prototypes.jsonl"
        assert not file.exists()
        described = [{"text": "naïve\u2028", "label": "bad", "index": j, "distance": 0.5} for j in range(6)]
        saved.model.config.prototypes = described
        saved.model.save_pretrained(saved.path)
        assert [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]] == described
        assert not [path.name for path in saved.path.iterdir() if path.name.startswith(".")]
        saved.model.config.prototypes = None
        saved.model.save_pretrained(saved.path)
        assert not file.exists()
