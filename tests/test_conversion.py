"""From conventional checkpoints to B-cos models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    RobertaConfig,
)

from bcos_transformers import (
    BcosBertConfig,
    BcosBertForMaskedLM,
    BcosBertForSequenceClassification,
    assert_dynamic_linear,
    conversion,
    from_pretrained_bcos,
    set_b,
)
from bcos_transformers.modeling.bcos_layers import BcosLinear, BcosQueryKeyLinear
from conftest import HEADS, batch, bcos_model, relative_residual, tiny_config


def weights(path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def bare(model) -> dict[str, torch.Tensor]:
    return {name.removeprefix("bert."): value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("task", ["base", *HEADS])
def test_weights_are_taken_over_and_biases_are_not(checkpoint, task):
    model = from_pretrained_bcos(checkpoint, task=task)
    source = {name.removeprefix("bert."): value for name, value in weights(checkpoint).items()}
    mine = bare(model)
    new = {name.removeprefix("bert.") for name in model.conversion_report.new_parameters}
    assert not [name for name in mine if name.endswith("bias")]
    for name, value in mine.items():
        if name not in new and name in source:
            assert torch.equal(value, source[name]), name
    assert new == {"base": set(), "masked-lm": set(), "question-answering": {"qa_outputs.weight"}}.get(
        task, {"classifier.weight"}
    )
    assert_dynamic_linear(model)
    assert not model.training


def test_biases_of_queries_and_keys_can_stay(checkpoint):
    model = from_pretrained_bcos(checkpoint, task="base", qk_bias=True)
    kept = {name for name in model.state_dict() if name.endswith("bias")}
    assert kept == {f"encoder.layer.{i}.attention.self.{n}.bias" for i in (0, 1) for n in ("query", "key")}
    source = weights(checkpoint)
    assert all(torch.equal(model.state_dict()[name], source[f"bert.{name}"]) for name in kept)
    assert not [n for n in model.conversion_report.dropped_biases if "query" in n or "key" in n]


def test_report_says_what_was_dropped(checkpoint, caplog):
    with caplog.at_level("INFO", logger="bcos_transformers"):
        report = from_pretrained_bcos(checkpoint, task="sequence-classification").conversion_report
    source = weights(checkpoint)
    wanted = {n: v.double().norm().item() for n, v in source.items() if n.startswith("bert.") and n.endswith("bias")}
    assert report.dropped_biases == pytest.approx(wanted)
    total = sum(norm**2 for norm in wanted.values()) ** 0.5
    of_weights = sum(source[n.removesuffix("bias") + "weight"].double().norm().item() ** 2 for n in wanted) ** 0.5
    assert report.relative_bias_norm == pytest.approx(total / of_weights)
    assert report.layers["BcosLinear"] == 2 * 3 + 2
    assert report.new_parameters == ["classifier.weight"]
    assert any(name.startswith("cls.predictions") for name in report.unused)
    assert str(report) in caplog.text
    assert "biases dropped" in str(report)


def test_masked_lm_keeps_its_tied_head_and_drops_its_bias(checkpoint):
    model = BcosBertForMaskedLM.from_pretrained_bcos(checkpoint)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert {"cls.predictions.bias", "cls.predictions.transform.dense.bias"} <= set(
        model.conversion_report.dropped_biases
    )
    assert model.config.mask_token_id == 4  # from the tokenizer beside the checkpoint
    bcos_head = BcosBertForMaskedLM.from_pretrained_bcos(checkpoint, bcos_lm_head=True)
    assert isinstance(bcos_head.cls.predictions.decoder, BcosLinear)
    assert relative_residual(bcos_head.double().explain(**batch(task="masked-lm"))) < 1e-10


def test_no_path_leads_back_to_the_conventional_checkpoint(checkpoint, tmp_path):
    model = from_pretrained_bcos(checkpoint, task="sequence-classification")
    assert model.name_or_path == model.config._name_or_path == model.bert.name_or_path == ""
    model.save_pretrained(tmp_path)
    assert str(checkpoint) not in (tmp_path / "config.json").read_text()


def test_sharded_and_pytorch_checkpoints(checkpoint, tmp_path):
    wanted = bare(from_pretrained_bcos(checkpoint, task="base"))
    source = BertForMaskedLM.from_pretrained(checkpoint)
    source.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    (tmp_path / "bin").mkdir()
    shutil.copy(checkpoint / "config.json", tmp_path / "bin")
    torch.save(weights(checkpoint), tmp_path / "bin" / "pytorch_model.bin")
    for kind in ("sharded", "bin"):
        model = from_pretrained_bcos(tmp_path / kind, task="masked-lm")
        assert len(model.conversion_report.dropped_biases) > 10
        for name, value in wanted.items():
            if not name.startswith("pooler"):
                assert torch.equal(bare(model)[name], value), (kind, name)


def test_old_names_of_layer_norms(checkpoint, tmp_path):
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights(checkpoint).items()
    }
    shutil.copy(checkpoint / "config.json", tmp_path)
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, wanted = (from_pretrained_bcos(path, task="base") for path in (tmp_path, checkpoint))
    for name, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert len(model.conversion_report.dropped_biases) == len(wanted.conversion_report.dropped_biases)
    assert model.conversion_report.relative_bias_norm == pytest.approx(wanted.conversion_report.relative_bias_norm)


def test_loading_options_pass_through(checkpoint):
    model = from_pretrained_bcos(
        checkpoint, task="base", dtype=torch.bfloat16, device_map={"": "cpu"}, attn_implementation="eager"
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    _, info = from_pretrained_bcos(checkpoint, task="sequence-classification", output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight"}


def test_hub_options_reach_every_request(checkpoint, monkeypatch):
    seen = []

    def record(owner, name):
        original = getattr(owner, name)

        def wrapper(*args, **kwargs):
            seen.append((name, kwargs.get("revision"), kwargs.get("token")))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    record(conversion.PretrainedConfig, "get_config_dict")
    record(conversion, "find_checkpoint")
    record(conversion.AutoTokenizer, "from_pretrained")
    record(BcosBertForMaskedLM, "from_pretrained")
    from_pretrained_bcos(checkpoint, task="masked-lm", revision="abc", token="hf_x")
    names = {"get_config_dict", "find_checkpoint", "from_pretrained"}
    assert {name for name, *options in seen if options == ["abc", "hf_x"]} == names
    assert sum(name == "from_pretrained" for name, *_ in seen) == 2
    with pytest.raises(OSError, match=r"(?i)offline|connect|cached|local"):
        from_pretrained_bcos("nobody/nothing", task="base")


def test_old_pickled_checkpoint(checkpoint, tmp_path):
    shutil.copy(checkpoint / "config.json", tmp_path)
    torch.save(weights(checkpoint), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert from_pretrained_bcos(tmp_path, task="base").conversion_report.dropped_biases


def test_task_is_taken_from_the_checkpoint(tmp_path):
    BertForSequenceClassification(tiny_config(num_labels=4)).save_pretrained(tmp_path)
    model = from_pretrained_bcos(tmp_path)
    assert isinstance(model, BcosBertForSequenceClassification)
    assert model.config.num_labels == 4
    assert from_pretrained_bcos(tmp_path, num_labels=3, ignore_mismatched_sizes=True).config.num_labels == 3


def test_label_names(checkpoint):
    for given in ({"id2label": {0: "no", 1: "yes"}}, {"label2id": {"no": 0, "yes": 1}}):
        config = from_pretrained_bcos(checkpoint, task="sequence-classification", **given).config
        assert config.label2id == {"no": 0, "yes": 1}
        assert config.id2label == {0: "no", 1: "yes"}
        assert config.num_labels == 2


def test_label_names_of_the_checkpoint_stay(tmp_path):
    names = {0: "low", 1: "middle", 2: "high"}
    config = tiny_config(id2label=names, label2id={name: i for i, name in names.items()})
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert from_pretrained_bcos(tmp_path, num_labels=3).config.id2label == names
    other = from_pretrained_bcos(tmp_path, num_labels=2, ignore_mismatched_sizes=True).config
    assert other.id2label == {0: "LABEL_0", 1: "LABEL_1"}


class TestRefusals:
    @pytest.fixture
    def no_loading(self, monkeypatch):
        """Fails the test if weights are about to be loaded."""

        def fail(*args, **kwargs):
            raise AssertionError("weights were loaded")

        monkeypatch.setattr(BcosBertForSequenceClassification, "from_pretrained", fail)

    def convert(self, path, **fields):
        return from_pretrained_bcos(path, task="sequence-classification", **fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"b": 0.9}, "`b` must be a finite number of at least 1"),
            ({"b": "high"}, "`b` must be a finite number"),
            ({"b_per_layer": [1.5]}, "each of the 2 layers, got 1"),
            ({"b_per_layer": [1.5, 0.5]}, r"b_per_layer\[1\]"),
            ({"b_per_layer": 1.5}, "must be a list"),
            ({"classifier_loss": "hinge"}, "'bce', 'ce'"),
            ({"normalize_weights": "yes"}, "True or False"),
            ({"num_labels": 0}, "positive integer"),
            ({"is_decoder": True}, "encoder"),
            ({"load_in_8bit": True}, "Quantized"),
        ],
    )
    def test_bad_fields(self, checkpoint, no_loading, fields, message):
        with pytest.raises(ValueError, match=message):
            self.convert(checkpoint, **fields)

    def test_relative_positions(self, checkpoint, tmp_path, no_loading):
        config = json.loads((checkpoint / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "position_embedding_type": "relative_key"}))
        with pytest.raises(ValueError, match="absolute position embeddings only, got .*relative_key"):
            self.convert(tmp_path)

    def test_unsupported_architecture(self, tmp_path, no_loading):
        RobertaConfig(model_type="albert").save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "albert"}))
        with pytest.raises(ValueError, match="'albert'.*not supported: .*bert"):
            self.convert(tmp_path)

    def test_converted_model(self, checkpoint, tmp_path, no_loading):
        from_pretrained_bcos(checkpoint, task="masked-lm").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="B-cos model already"):
            self.convert(tmp_path)

    def test_unknown_task_and_argument(self, checkpoint, no_loading):
        with pytest.raises(ValueError, match="task 'causal-lm'. Tasks of this architecture: base, sequence"):
            from_pretrained_bcos(checkpoint, task="causal-lm")
        with pytest.raises(TypeError, match="'normalise_weights'.*Did you mean 'normalize_weights'"):
            self.convert(checkpoint, normalise_weights=True)
        with pytest.raises(TypeError, match="Did you mean 'b'"):
            self.convert(checkpoint, B=1.5)
        with pytest.raises(TypeError, match="has its task already"):
            BcosBertForSequenceClassification.from_pretrained_bcos(checkpoint, task="base")
        with pytest.raises(ValueError, match="Say which task"):
            from_pretrained_bcos(checkpoint)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, checkpoint, tmp_path, value):
        tensors = weights(checkpoint)
        tensors["bert.encoder.layer.1.output.dense.weight"][0, 0] = value
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
        shutil.copy(checkpoint / "config.json", tmp_path)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"NaN or infinite.*encoder\.layer\.1\.output\.dense\.weight"):
            self.convert(tmp_path)
        offloaded = dict.fromkeys(("bert.embeddings", "bert.pooler", "dropout", "classifier"), "cpu")
        offloaded["bert.encoder"] = "disk"
        with pytest.raises(ValueError, match=r"NaN or infinite.*encoder\.layer\.1\.output\.dense\.weight"):
            self.convert(tmp_path, device_map=offloaded, offload_folder=str(tmp_path / "offload"))

    def test_unknown_activation(self):
        with pytest.raises(ValueError, match=r"'sigmoid'.*cannot be written as x · gate\(x\)"):
            bcos_model(hidden_act="sigmoid")


class TestDynamicLinearity:
    def test_conventional_model_is_not(self, checkpoint):
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
        with pytest.raises(ValueError, match="is not a B-cos model.*from_pretrained_bcos"):
            assert_dynamic_linear(model)

    @pytest.mark.parametrize(
        ("name", "module", "fault"),
        [
            ("bert.encoder.layer.0.output.dense", nn.Linear(24, 16, bias=False), "was not converted"),
            ("bert.encoder.layer.1.output.LayerNorm", nn.LayerNorm(16, bias=False), "normalisation"),
            ("bert.encoder.layer.1.attention.self.value", nn.Linear(16, 16), "has a bias"),
            ("bert.encoder.layer.1.attention.self.query", BcosQueryKeyLinear(16, 16), "has a bias"),
            ("bert.encoder.layer.0.intermediate.intermediate_act_fn", nn.GELU(), "gate does not freeze"),
            ("bert.pooler.activation", nn.Tanh(), "not taken out"),
            ("bert.embeddings.word_embeddings", nn.Embedding(60, 16), "cannot record"),
            ("dropout", nn.Sigmoid(), "activation without a role"),
        ],
    )
    def test_names_the_module(self, name, module, fault):
        model = bcos_model()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
        with pytest.raises(ValueError, match=f"`{name}`.*{fault}"):
            assert_dynamic_linear(model)

    def test_resized_embeddings_stay_explainable(self):
        model = bcos_model("masked-lm", bcos_lm_head=True).float()
        model.resize_token_embeddings(70)
        assert_dynamic_linear(model)
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
        assert relative_residual(model.double().explain(**batch(task="masked-lm"), target=65)) < 1e-10

    def test_set_b(self):
        model = bcos_model()
        set_b(model, 2, [1, 1.25])
        assert (model.config.b, model.config.b_per_layer) == (2.0, [1.0, 1.25])
        assert model.classifier.b == 2.0
        assert model.bert.encoder.layer[1].output.dense.b == 1.25
        with pytest.raises(ValueError, match="at least 1"):
            set_b(model, 0)
        assert model.config.b == 2.0


def test_configuration_round_trip(tmp_path):
    config = BcosBertConfig(num_hidden_layers=2, b=2, b_per_layer=[1, 1.5], classifier_loss="ce", qk_bias=True)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["b"] == 2.0
    assert saved["normalize_weights"] is True  # written though it is the default
    again = BcosBertConfig.from_pretrained(tmp_path)
    assert (again.b, again.b_per_layer, again.classifier_loss, again.qk_bias) == (2.0, [1.0, 1.5], "ce", True)


def test_configuration_that_became_invalid_is_not_saved(tmp_path):
    model = bcos_model()
    model.config.b = 0.3
    with pytest.raises(ValueError, match="at least 1"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "file").write_text("")
    model.config.b = 1.5
    with pytest.raises(NotADirectoryError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
