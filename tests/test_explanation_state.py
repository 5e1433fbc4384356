"""What `.explain()` leaves as found, and that threads, precision, compilation and layers added later do no harm."""

import copy
import threading

import pytest
import torch

from bcos_transformers import explanation_mode
from bcos_transformers.modeling.bcos_layers import BcosLinear
from bcos_transformers.modeling.bcos_state import is_explaining
from conftest import batch, bcos_model, relative_residual
from contract import CHECKPOINTING, explain_in_eight_threads, public_logits


class TestState:
    @pytest.mark.parametrize("training", [False, True])
    def test_model_is_left_as_found(self, training):
        model, inputs = bcos_model(), batch()
        model.train(training)
        model.bert.encoder.layer[0].eval()  # modules may differ
        modes = [module.training for module in model.modules()]
        model.classifier.weight.requires_grad_(False)
        model.bert.pooler.dense.weight.grad = torch.ones_like(model.bert.pooler.dense.weight)
        grads = [(p.requires_grad, p.grad) for p in model.parameters()]
        model.explain(**inputs, target="all")
        assert [module.training for module in model.modules()] == modes
        assert all(r == p.requires_grad and g is p.grad for (r, g), p in zip(grads, model.parameters(), strict=True))

    def test_training_mode_explains_without_dropout_and_checkpointing(self):
        model, inputs = bcos_model(), batch()
        wanted = model.explain(**inputs).contributions
        getattr(model, f"{CHECKPOINTING}_enable")()
        model.train()
        assert torch.equal(model.explain(**inputs).contributions, wanted)
        assert model.bert.encoder.layer[0].gradient_checkpointing

    def test_works_under_no_grad_and_inference_mode(self):
        model = bcos_model()
        wanted = model.explain(**batch()).contributions
        with torch.no_grad():
            assert torch.equal(model.explain(**batch()).contributions, wanted)
        with torch.inference_mode():
            out = model.explain(**batch()).contributions
        assert torch.equal(out, wanted)

    def test_exception_in_the_forward_pass_leaves_explanation_mode_off(self):
        model, inputs = bcos_model(), batch()
        model.train()

        def fail(*_):
            raise RuntimeError("in the middle")

        handle = model.bert.encoder.layer[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            model.explain(**inputs)
        handle.remove()
        assert not is_explaining()
        assert model.training
        model(**inputs).logits.sum().backward()
        assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0

    def test_nested_explanations(self):
        model, other, inputs = bcos_model(), bcos_model(seed=5), batch()
        wanted, inner = model.explain(**inputs).contributions, []
        handle = model.bert.encoder.layer[0].register_forward_hook(
            lambda *_: inner.append(other.explain(**inputs).contributions)
        )
        outer = model.explain(**inputs).contributions
        handle.remove()
        assert torch.equal(outer, wanted)
        assert torch.equal(inner[0], other.explain(**inputs).contributions)

    def test_another_models_forward_pass_inside(self):
        model, other, inputs = bcos_model(), bcos_model(seed=5), batch()
        wanted = model.explain(**inputs).contributions
        model.bert.encoder.layer[0].register_forward_hook(lambda *_: other(**inputs) and None)
        assert torch.equal(model.explain(**inputs).contributions, wanted)

    def test_layers_added_later(self):
        model = bcos_model()
        model.bert.encoder.layer.append(copy.deepcopy(model.bert.encoder.layer[-1]))
        model.config.num_hidden_layers = 3
        assert relative_residual(model.explain(**batch(), target="all")) < 1e-10

    @pytest.mark.parametrize("training", [False, True])
    def test_eight_threads(self, training):
        model, inputs = bcos_model().float(), batch(rows=4, tokens=12)
        rows = [{name: value[i : i + 1] for name, value in inputs.items()} for i in range(4)]
        wanted = [model.explain(**row).contributions for row in rows]
        model.train(training)
        results = explain_in_eight_threads(model, rows, turns=4)
        assert all(torch.equal(value, wanted[i]) for (_, _, i), value in results.items())
        assert all(module.training is training for module in model.modules())

    def test_another_thread_does_not_see_explanation_mode(self):
        seen = []
        with explanation_mode():
            thread = threading.Thread(target=lambda: seen.append(is_explaining()))
            thread.start()
            thread.join()
        assert seen == [False]

    @pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
    def test_half_precision_reports_its_residual(self, dtype, bound):
        model = bcos_model().to(dtype)
        out = model.explain(**batch())
        assert out.contributions.dtype == torch.float32
        torch.testing.assert_close(out.residual, out.values - out.contributions.sum(-1))
        assert relative_residual(out) < bound

    def test_autocast_explains_and_says_how_far_off_it_is(self, caplog):
        model = bcos_model().float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model.explain(**batch(), target="all")
        assert 0.01 < relative_residual(out) < 0.2
        assert "Contributions miss their logits by up to" in caplog.text
        caplog.clear()
        model.explain(**batch())
        assert not caplog.records

    def test_compiled_model_explains(self):
        model, inputs = bcos_model(), batch()
        compiled = torch.compile(model, backend="aot_eager")
        wanted = model.explain(**inputs).contributions
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
        torch.testing.assert_close(compiled.explain(**inputs).contributions, wanted)
        model.compile(backend="aot_eager")
        torch.testing.assert_close(model.explain(**inputs).contributions, wanted)

    def test_chunked_feed_forward(self):
        plain, inputs = bcos_model(), batch(tokens=8)
        chunked = bcos_model(chunk_size_feed_forward=2)
        chunked.load_state_dict(plain.state_dict())
        out = chunked.explain(**inputs, target="all")
        torch.testing.assert_close(out.contributions, plain.explain(**inputs, target="all").contributions)

    def test_more_rows_than_a_block(self):
        model = bcos_model(max_position_embeddings=512)
        inputs = batch(rows=2, tokens=300, padded=False)
        assert relative_residual(model.explain(**inputs)) < 1e-10
        assert torch.equal(model.explain(**inputs).logits, public_logits(model, inputs))

    def test_trained_layers_only_b_cos(self):
        model = bcos_model(b=1.5, b_per_layer=[1.25, 2.0])
        b = {name: m.b for name, m in model.named_modules() if isinstance(m, BcosLinear)}
        assert b["bert.encoder.layer.0.output.dense"] == 1.25
        assert b["bert.encoder.layer.1.attention.output.dense"] == 2.0
        assert b["classifier"] == b["bert.pooler.dense"] == 1.5
