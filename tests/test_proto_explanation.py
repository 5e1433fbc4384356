"""Shares of prototypes are exact, and over B-cos encoders with cosine each is an exact sum over the tokens."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bcos_transformers import ProtoForSequenceClassification, explanation_mode
from bcos_transformers.modeling.bcos_state import EmbeddingRecorder, is_explaining
from conftest import batch, bcos_model
from contract import CHECKPOINTING, explain_in_eight_threads, fill_biases, tiny_inputs
from proto_toys import BINS, NAMES, proto_model

ENCODERS = ["bert", "roberta", "distilbert", "modernbert"]


def cosine_model(backbone: str = "bert", **fields):
    return proto_model(backbone, distance="cosine", **fields)


def token_residual(out) -> float:
    """Largest |share − Σ over tokens| / max |part|, of every split share."""
    shares = out.contributions
    if out.token_prototypes is not None:
        shares = shares.gather(-1, out.token_prototypes)
    size = out.token_contributions.abs().amax(-1).clamp_min(1e-30)
    return ((shares - out.token_contributions.sum(-1)).abs() / size).max().item()


class TestShares:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    @pytest.mark.parametrize("conventional", [False, True])
    def test_a_logit_is_the_sum_of_weight_times_similarity(self, distance, conventional):
        model = proto_model(conventional=conventional, distance=distance)
        inputs = tiny_inputs(model)
        out = model.explain(**inputs, target="all")
        public = model(**inputs)
        assert torch.equal(out.logits, public.logits)
        assert torch.equal(out.similarities, public.similarities)
        torch.testing.assert_close(out.contributions, model.classifier.weight * public.similarities[:, None])
        assert out.contributions.shape == (3, 3, 6)
        assert out.residual.abs().max() < 1e-12
        torch.testing.assert_close(out.values, out.contributions.sum(-1), rtol=1e-12, atol=1e-12)
        assert (out.bias == 0).all()
        assert (out.token_contributions is not None) == (distance == "cosine" and not conventional)

    def test_bias_is_a_part_of_its_own(self):
        model = cosine_model(classifier_bias=True)
        out = model.explain(**tiny_inputs(model), target="all")
        torch.testing.assert_close(out.bias, model.classifier.bias.detach().expand(3, 3))
        assert out.bias.abs().min() > 0
        torch.testing.assert_close(out.values - out.bias, out.contributions.sum(-1), rtol=1e-12, atol=1e-12)
        assert max(out.residual.abs().max(), out.token_residual.abs().max()) < 1e-12

    def test_default_target_is_the_predicted_class_or_the_output(self):
        model = cosine_model()
        out = model.explain(**tiny_inputs(model))
        assert torch.equal(out.target, out.logits.argmax(-1, keepdim=True))
        regression = cosine_model(**BINS)
        out = regression.explain(**tiny_inputs(regression))
        assert out.target.tolist() == [[0]] * 3
        assert max(out.residual.abs().max(), out.token_residual.abs().max()) < 1e-12

    @pytest.mark.parametrize("target", [1, "good", torch.tensor([1, 1, 1]), torch.tensor([[1], [1], [1]]), [1, 1, 1]])
    def test_ways_to_name_a_class(self, target):
        model = cosine_model(id2label=NAMES)
        inputs = tiny_inputs(model)
        every, out = model.explain(**inputs, target="all"), model.explain(**inputs, target=target)
        assert torch.equal(out.contributions[:, 0], every.contributions[:, 1])
        torch.testing.assert_close(out.token_contributions[:, 0], every.token_contributions[:, 1])

    @pytest.mark.parametrize("contrast", ["mean", 2, "so so", torch.tensor([2, 0, 1])])
    def test_contrast_is_the_difference_of_shares(self, contrast):
        model = cosine_model(id2label=NAMES, classifier_bias=True)
        inputs = tiny_inputs(model)
        every = model.explain(**inputs, target="all")
        out = model.explain(**inputs, target=1, contrast=contrast)
        for name in ("contributions", "token_contributions", "bias", "values", "input_contributions"):
            if isinstance(contrast, str) and contrast == "mean":
                foil = every[name].mean(1)
            else:
                index = torch.tensor(2) if contrast == "so so" else torch.as_tensor(contrast)
                foil = every[name][torch.arange(3), index.expand(3)]
            torch.testing.assert_close(out[name][:, 0], every[name][:, 1] - foil, rtol=1e-10, atol=1e-12)
        assert max(out.residual.abs().max(), out.token_residual.abs().max()) < 1e-12


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("backbone", ENCODERS)
class TestTokens:
    def test_shares_split_exactly(self, backbone, attn):
        model = cosine_model(backbone, attn=attn)
        inputs = tiny_inputs(model)
        out = model.explain(**inputs, target="all")
        assert out.token_contributions.shape == (3, 3, 6, 9)
        assert token_residual(out) < 1e-12
        together = out.token_contributions.sum(2)
        torch.testing.assert_close(out.input_contributions, together, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(out.token_residual, out.values - together.sum(-1), rtol=0, atol=1e-12)
        padding = inputs["attention_mask"] == 0
        assert (out.token_contributions.movedim(-1, 1)[padding] == 0).all()
        assert (out.input_contributions.movedim(-1, 1)[padding] == 0).all()
        assert (out.token_contributions.movedim(-1, 1)[~padding] != 0).all()

    def test_equals_the_jacobian_of_the_closed_form(self, backbone, attn):
        """cos(s, p) = Σ α_t e_t·p / (‖s‖ ‖p‖), with α, 1/‖s‖ and the encoder's dynamic matrices as constants."""
        model = cosine_model(backbone, attn=attn)
        inputs = {name: value[2:] for name, value in tiny_inputs(model).items()}  # the row with most padding
        mask = inputs["attention_mask"]
        recorder = EmbeddingRecorder()
        with torch.no_grad(), explanation_mode(recorder):
            model.backbone(**inputs)
        words = recorder.parts["word"]
        summed = sum(part.expand_as(words) for part in recorder.parts.values())
        with torch.no_grad():
            output = model(**inputs)
        constant = output.token_attention / output.pooled_embedding.norm(dim=-1)
        directions = model.prototypes.detach() / model.prototypes.detach().norm(dim=-1, keepdim=True)
        others = {"attention_mask": mask}
        if backbone == "roberta":
            others["position_ids"] = mask.cumsum(-1) * mask + model.config.pad_token_id

        def similarities(embeddings):
            with explanation_mode():
                hidden = model.backbone(inputs_embeds=embeddings, **others).last_hidden_state
            return torch.einsum("bt,bth,jh->bj", constant, hidden, directions)[0]

        torch.testing.assert_close(similarities(words), output.similarities[0], rtol=1e-12, atol=1e-14)
        jacobian = torch.autograd.functional.jacobian(similarities, words)[:, 0]  # (prototypes, tokens, hidden)
        split = (jacobian * summed[0]).sum(-1) * mask
        torch.testing.assert_close(split.sum(-1), output.similarities[0], rtol=1e-12, atol=1e-14)
        wanted = model.classifier.weight.detach()[:, :, None] * split
        out = model.explain(**inputs, target="all")
        torch.testing.assert_close(out.token_contributions[0], wanted, rtol=1e-10, atol=1e-13)

    def test_batched_equals_single(self, backbone, attn):
        model = cosine_model(backbone, attn=attn)
        inputs = tiny_inputs(model)
        many = model.explain(**inputs, target="all").token_contributions
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            one = {name: value[row : row + 1, :length] for name, value in inputs.items()}
            alone = model.explain(**one, target="all").token_contributions[0]
            torch.testing.assert_close(many[row][..., :length], alone, rtol=1e-9, atol=1e-12)


class TestTopK:
    @pytest.mark.parametrize(("top_k", "chunk_size"), [(1, 16), (2, 3), (6, 1), (50, 16)])
    def test_equals_the_full_computation(self, top_k, chunk_size):
        model = cosine_model()
        inputs = tiny_inputs(model)
        every = model.explain(**inputs, target="all")
        out = model.explain(**inputs, target="all", top_k=top_k, chunk_size=chunk_size)
        order = every.contributions.abs().argsort(-1, descending=True)[..., :top_k]
        assert torch.equal(out.token_prototypes, order)
        index = order[..., None].expand(*order.shape, 9)
        torch.testing.assert_close(
            out.token_contributions, every.token_contributions.gather(2, index), rtol=1e-10, atol=1e-13
        )
        assert token_residual(out) < 1e-12
        torch.testing.assert_close(out.input_contributions, every.input_contributions, rtol=1e-10, atol=1e-13)
        assert torch.equal(out.contributions, every.contributions)

    def test_embeddings_instead_of_ids(self):
        model = cosine_model()
        inputs = tiny_inputs(model)
        wanted = model.explain(**inputs).token_contributions
        embeds = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        torch.testing.assert_close(model.explain(inputs_embeds=embeds, **inputs).token_contributions, wanted)

    def test_unnormalized_weights_query_biases_and_other_b(self):
        model = cosine_model(encoder={"b": 1.25, "normalize_weights": False, "qk_bias": True})
        fill_biases(model)
        assert token_residual(model.explain(**tiny_inputs(model), target="all")) < 1e-12

    @pytest.mark.parametrize("modules", ["all-linear", ["query", "value", "dense"]])
    def test_lora_inside_the_encoder(self, modules):
        config = LoraConfig(target_modules=modules, r=2, task_type="SEQ_CLS", init_lora_weights=False)
        model = get_peft_model(cosine_model(), config).double().eval()
        inputs = tiny_inputs(model.get_base_model())
        out = model.explain(**inputs, target="all")
        assert token_residual(out) < 1e-12
        assert out.residual.abs().max() < 1e-12
        with model.disable_adapter():
            assert not torch.allclose(model(**inputs).logits, out.logits)

    def test_adapters_outside_of_bcos_layers_are_refused(self):
        model = cosine_model()
        dense = model.backbone.encoder.layer[0].output.dense
        model.backbone.encoder.layer[0].output.dense = Outside(dense)
        with pytest.raises(ValueError, match=r"cannot be split over tokens exactly.*tokens=False"):
            model.explain(**tiny_inputs(model))
        assert model.explain(**tiny_inputs(model), tokens=False).residual.abs().max() < 1e-12


class Outside(torch.nn.Module):
    """An adapter whose update does not go through the layer."""

    def __init__(self, base_layer: torch.nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.base_layer(hidden) + torch.tanh(hidden).mean()


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


class TestLastLayer:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    @pytest.mark.parametrize("module", ["classifier", "token_attention", ""])
    @pytest.mark.filterwarnings("ignore:The following device_map keys")  # `prototypes` is a parameter, not a module
    def test_offloaded(self, module, distance, tmp_path):
        model = proto_model(distance=distance)
        inputs = tiny_inputs(model)
        model.save_pretrained(tmp_path)
        parts = ("backbone", "prototypes", "token_attention", "classifier")
        places = {**dict.fromkeys(parts, "cpu"), module: "disk"} if module else {"": "disk"}
        offloaded = ProtoForSequenceClassification.from_pretrained(
            tmp_path, dtype=torch.float64, device_map=places, offload_folder=tmp_path / "offload"
        )
        assert all(parameter.is_meta for parameter in offloaded.get_submodule(module).parameters())
        assert torch.equal(offloaded(**inputs).logits, model(**inputs).logits)
        wanted = model.explain(**inputs, target="all")
        for name, value in offloaded.explain(**inputs, target="all").items():
            assert torch.equal(value, wanted[name]), name

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    def test_adapters(self, distance, bias):
        model = proto_model(distance=distance, classifier_bias=bias)
        inputs = tiny_inputs(model)
        plain = model.explain(**inputs, target="all")
        config = LoraConfig(target_modules=["classifier"], r=2, lora_dropout=0.5, init_lora_weights=False)
        adapted = get_peft_model(model, config).double().train()
        out = adapted.explain(**inputs, target="all")
        assert adapted.training
        assert model.classifier.training
        adapted.eval()
        assert torch.equal(out.logits, adapted(**inputs).logits)
        assert (out.logits - plain.logits).abs().min() > 1e-3 * plain.logits.abs().max()
        assert max(out.residual.abs().max(), 0 if distance == "l2" else out.token_residual.abs().max()) < 1e-9
        layer = model.classifier
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
        assert_close(out.contributions, (layer.weight + update).detach() * out.similarities[:, None])
        with adapted.disable_adapter():
            assert_close(adapted.explain(**inputs, target="all").contributions, plain.contributions)
        merged = adapted.merge_and_unload()
        assert_close(merged.explain(**inputs, target="all").contributions, out.contributions)

    def test_hooks_and_lower_precision(self):
        model = proto_model(classifier_bias=True)
        inputs = tiny_inputs(model)
        model.classifier.register_forward_hook(lambda module, given, logits: 2 * logits)
        out = model.explain(**inputs, target="all")
        assert_close(out.contributions, 2 * model.classifier.weight.detach() * out.similarities[:, None])
        assert_close(out.bias, 2 * model.classifier.bias.detach().expand(3, 3))
        half = proto_model().to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = half.explain(**tiny_inputs(half), target="all")
        assert out.logits.dtype == torch.float32
        assert torch.equal(out.contributions, half.classifier.weight.detach().float() * out.similarities[:, None])
        assert out.residual.abs().max() < 1e-5


class TestBadInput:
    @pytest.mark.parametrize("options", [{"tokens": True}, {"top_k": 2}])
    def test_what_does_not_split(self, options):
        model = proto_model(distance="l2")
        with pytest.raises(ValueError, match="distance='l2' a similarity is not linear.*distance='cosine'"):
            model.explain(**tiny_inputs(model), **options)
        for distance in ("l2", "cosine"):
            model = proto_model(conventional=True, distance=distance)
            with pytest.raises(ValueError, match="B-cos encoders only; this one is a bert model"):
                model.explain(**tiny_inputs(model), **options)
            assert model.explain(**tiny_inputs(model), tokens=False).token_contributions is None

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"target": 3}, ValueError, r"must lie in \[0, 3\)"),
            ({"target": "happy"}, ValueError, "not a label of this model"),
            ({"contrast": 7}, ValueError, "`contrast` must lie in"),
            ({"contrast": "all"}, ValueError, "'mean' or one foil"),
            ({"position": 1}, TypeError, "unexpected argument 'position'"),
            ({"chunk_size": 0}, ValueError, "chunk_size"),
            ({"top_k": 0}, ValueError, "top_k"),
            ({"top_k": True}, ValueError, "top_k"),
            ({"attention_mask": torch.zeros(3, 9)}, ValueError, "no real token"),
            ({"input_ids": torch.full((3, 9), 60)}, ValueError, r"\[0, 60\).*tokenizer"),
            ({"input_ids": torch.ones(3, 33, dtype=torch.long), "attention_mask": None}, ValueError, "at most 32"),
        ],
    )
    def test_says_what_is_wrong(self, arguments, error, message):
        model = cosine_model()
        with pytest.raises(error, match=message):
            model.explain(**{**tiny_inputs(model), **arguments})
        assert not is_explaining()

    def test_embeddings_that_are_not_recorded(self):
        model = cosine_model()
        model.backbone.embeddings.word_embeddings = torch.nn.Embedding(60, 16).double()
        with pytest.raises(ValueError, match="not B-cos embeddings"):
            model.explain(**tiny_inputs(model))


class TestState:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    @pytest.mark.parametrize("training", [False, True])
    def test_model_is_left_as_found(self, distance, training):
        model = proto_model(distance=distance)
        inputs = {**tiny_inputs(model), "labels": torch.tensor([0, 1, 2])}
        wanted = model.explain(**inputs)
        model.train(training)
        getattr(model, f"{CHECKPOINTING}_enable")()
        model.backbone.encoder.layer[0].eval()  # modules may differ
        model.prototypes.requires_grad_(False)
        model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
        modes = [module.training for module in model.modules()]
        grads = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
        config, random = model.config.to_dict(), torch.get_rng_state()
        out = model.explain(**inputs)
        assert torch.equal(torch.get_rng_state(), random)
        assert [module.training for module in model.modules()] == modes
        assert all(r == p.requires_grad and g is p.grad for (r, g), p in zip(grads, model.parameters(), strict=True))
        assert model.config.to_dict() == config
        for name in out:
            assert torch.equal(out[name], wanted[name]), name
            assert not out[name].requires_grad, name

    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    def test_under_no_grad_and_inference_mode(self, distance):
        model = proto_model(distance=distance)
        wanted = model.explain(**tiny_inputs(model))
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                out = model.explain(**tiny_inputs(model))
            assert all(torch.equal(out[name], wanted[name]) for name in wanted)

    @pytest.mark.parametrize("model", [bcos_model(), cosine_model(), proto_model(conventional=True)])
    def test_targets_made_in_inference_mode(self, model):
        inputs = batch()
        wanted = model.explain(**inputs, target=1, contrast=2).contributions
        with torch.inference_mode():
            target, contrast = torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2])
        assert target.is_inference()
        assert torch.equal(model.explain(**inputs, target=target, contrast=contrast).contributions, wanted)

    @pytest.mark.parametrize("task", ["token-classification", "masked-lm"])
    def test_positions_made_in_inference_mode(self, task):
        model, inputs = bcos_model(task), batch(task=task)
        wanted = model.explain(**inputs, target=1, position=2).contributions
        with torch.inference_mode():
            position = torch.tensor([2, 2, 2])
        assert torch.equal(model.explain(**inputs, target=1, position=position).contributions, wanted)

    def test_eight_threads(self):
        model = cosine_model().float()
        inputs = tiny_inputs(model, rows=3)
        rows = [{name: value[i : i + 1] for name, value in inputs.items()} for i in range(3)]
        wanted = [model.explain(**row).contributions for row in rows]
        model.train()
        results = explain_in_eight_threads(model, rows, turns=2)
        assert all(torch.equal(value, wanted[i]) for (_, _, i), value in results.items())
        assert all(module.training for module in model.modules())

    def test_half_precision_reports_its_residual(self):
        exact, model = cosine_model(), cosine_model().bfloat16()
        inputs = tiny_inputs(model)
        wanted, out = exact.explain(**inputs, target=1), model.explain(**inputs, target=1)
        assert out.contributions.dtype == out.token_contributions.dtype == torch.float32
        assert out.residual.abs().max() < 1e-5
        assert 1e-5 < out.token_residual.abs().max() < 0.3
        torch.testing.assert_close(out.values.double(), wanted.values, rtol=0.1, atol=0.2)

    def test_contributions_that_overflow_are_refused(self):
        model = cosine_model().half()
        with torch.no_grad():
            for embedding in (m for m in model.modules() if isinstance(m, torch.nn.Embedding)):
                embedding.weight.mul_(1e-5)
        with pytest.raises(ValueError, match=r"overflows torch\.float16"):
            model.explain(**tiny_inputs(model))

    @pytest.mark.slow
    def test_compiled_model_explains(self):
        model = cosine_model()
        inputs = tiny_inputs(model)
        wanted = model.explain(**inputs).token_contributions
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
        torch.testing.assert_close(compiled.explain(**inputs).token_contributions, wanted)
