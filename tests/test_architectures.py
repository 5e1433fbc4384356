"""The contract that every architecture and task keeps: one table, the same checks as for BERT."""

import pytest
import torch
from torch import nn

import bcos_transformers
from bcos_transformers import assert_dynamic_linear, explanation_mode
from bcos_transformers.modeling.bcos_inputs import positions_of_real_tokens
from bcos_transformers.modeling.bcos_state import EmbeddingRecorder, is_explaining
from conftest import relative_residual
from contract import (
    DECODERS,
    HEADS,
    every_target,
    explain_in_eight_threads,
    fill_biases,
    public_logits,
    tiny_config,
    tiny_inputs,
    tiny_model,
)

FIELDS = [
    {},
    {"b": 2.0},
    {"b": 1.0},
    {"b": 1.25, "normalize_weights": False, "qk_bias": True},
    {"b_per_layer": [1, 2], "bcos_lm_head": True},
]
heads = pytest.mark.parametrize(("name", "task"), HEADS)


def padding_that_eager_survives(name: str, attn: str) -> bool:
    """Eager attention with windows is NaN in float64 where padding sees nothing but padding in its window."""
    return not (name in ("modernbert", "qwen3") and attn == "eager")


class TestExactness:
    @pytest.mark.parametrize("attn", ["eager", "sdpa"])
    @heads
    def test_contributions_sum_to_the_models_own_logits(self, name, task, attn):
        for fields in FIELDS:
            if "b_per_layer" in fields:
                layers = tiny_config(name).num_hidden_layers
                fields = {**fields, "b_per_layer": [1.0 + i for i in range(layers)]}
            model = tiny_model(name, task, attn, **fields)
            fill_biases(model)
            inputs = tiny_inputs(model, padded=padding_that_eager_survives(name, attn))
            out = model.explain(**inputs, target=every_target(model))
            assert relative_residual(out) < 1e-10
            assert torch.equal(out.logits, public_logits(model, inputs))
            out = model.float().explain(**tiny_inputs(model), target=every_target(model))
            assert relative_residual(out) < 1e-4
            assert torch.equal(out.logits, public_logits(model, tiny_inputs(model)))

    @pytest.mark.parametrize("fields", [{}, {"b": 1.25, "normalize_weights": False, "bcos_lm_head": True}])
    @heads
    def test_dynamic_matrix_rebuilt_from_the_jacobian(self, name, task, fields):
        """W(x), row by row from a Jacobian that knows nothing of `explain`, gives the logits and the contributions."""
        model = tiny_model(name, task, "eager", **fields)
        inputs = tiny_inputs(model, rows=1, padded=False)
        recorder = EmbeddingRecorder()
        with explanation_mode(recorder), torch.no_grad():
            model(**inputs)
        words = recorder.parts["word"]
        whole = sum(part.expand_as(words) for part in recorder.parts.values())
        embedding = model.get_input_embeddings()

        def frozen_logits(embeddings):
            embedding.forward = lambda ids: embeddings
            try:
                with explanation_mode():
                    out = model(**inputs)
            finally:
                del embedding.forward
            return out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), dim=-1)

        matrix = torch.autograd.functional.jacobian(frozen_logits, words)
        rows = (matrix * whole).sum(-1).squeeze(-2)  # contributions of every token to every logit
        torch.testing.assert_close(rows.sum(-1), public_logits(model, inputs), rtol=1e-9, atol=1e-11)
        out = model.explain(**inputs, target=every_target(model, 1))
        rows = rows[0]
        if task in ("masked-lm", "causal-lm"):
            rows = rows[int(out.position), [5, 17, 40]]
        if task == "question-answering":
            (start, _), (_, end), span = out.position[0].tolist()
            rows = torch.stack((rows[start, 0], rows[end, 1], rows[span[0], 0] + rows[span[1], 1]))
        torch.testing.assert_close(out.contributions[0], rows, rtol=1e-9, atol=1e-11)

    @heads
    def test_parts_add_up(self, name, task):
        model = tiny_model(name, task)
        inputs = tiny_inputs(model)
        out = model.explain(**inputs, target=every_target(model), parts=True)
        wanted = {"word"} if name in ("llama", "qwen3", "modernbert") else {"word", "position"}
        assert set(out.parts) == wanted | ({"token_type"} if name in ("bert", "roberta") else set())
        whole = model.explain(**inputs, target=every_target(model)).contributions
        torch.testing.assert_close(sum(out.parts.values()), whole, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(("name", "task"), [case for case in HEADS if case[1] != "question-answering"])
    def test_contrast(self, name, task):
        model = tiny_model(name, task, bcos_lm_head=True)
        inputs = tiny_inputs(model)
        position = {"token-classification": {"position": 0}}.get(task, {})
        a, b = (model.explain(**inputs, target=t, **position).contributions for t in (1, 2))
        out = model.explain(**inputs, target=1, contrast=2, **position)
        torch.testing.assert_close(out.contributions, a - b, rtol=1e-9, atol=1e-11)
        mean = model.explain(**inputs, target=1, contrast="mean", **position)
        assert relative_residual(mean) < 1e-10
        assert (mean.contributions - a).abs().max() > 1e-6

    @heads
    def test_half_precision_reports_its_residual(self, name, task):
        for dtype, bound in ((torch.bfloat16, 0.25), (torch.float16, 0.05)):
            model = tiny_model(name, task, initializer_range=0.2).to(dtype)
            out = model.explain(**tiny_inputs(model))
            assert out.contributions.dtype == torch.float32
            size = out.contributions.abs().sum(-1).clamp_min(1e-6)
            assert (out.residual.abs() / size).max() < bound
            assert torch.equal(out.logits, public_logits(model, tiny_inputs(model)))


class TestPadding:
    @heads
    def test_right_padded_in_a_batch_equals_alone(self, name, task):
        model = tiny_model(name, task).float()
        inputs = tiny_inputs(model)
        many = model.explain(**inputs, target=every_target(model)).contributions
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            one = {key: value[row : row + 1, :length] for key, value in inputs.items()}
            alone = model.explain(**one, target=every_target(model, 1)).contributions[0]
            together = many[row][..., :length]
            together = together[:length] if task == "token-classification" else together
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
            assert (many[row][..., length:] == 0).all()

    @heads
    def test_left_padding(self, name, task):
        model = tiny_model(name, task)
        inputs = tiny_inputs(model, left=True)
        if model.pools_first_token:
            with pytest.raises(ValueError, match=r"Rows \[1, 2\] are left-padded"):
                model.explain(**inputs)
            return
        if task == "masked-lm":
            inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == 4, 9)
            inputs["input_ids"][:, -2] = 4
        out = model.explain(**inputs, target=every_target(model))
        assert relative_residual(out) < 1e-10
        assert (out.contributions[2][..., :4] == 0).all()
        if task != "causal-lm":
            assert torch.equal(out.logits, public_logits(model, inputs))
            return
        positions = positions_of_real_tokens(inputs["attention_mask"])
        assert torch.equal(out.logits, public_logits(model, {**inputs, "position_ids": positions}))
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            alone = model.explain(
                input_ids=inputs["input_ids"][row : row + 1, -length:], target=every_target(model, 1)
            )
            torch.testing.assert_close(out.contributions[row][:, -length:], alone.contributions[0])

    @pytest.mark.parametrize("name", DECODERS)
    def test_positions_of_next_tokens_count_real_ones(self, name):
        model = tiny_model(name, "causal-lm")
        right, left = tiny_inputs(model), tiny_inputs(model, left=True)
        left["input_ids"] = torch.stack([ids.roll(n) for ids, n in zip(right["input_ids"], (0, 2, 4), strict=True)])
        for position in (0, 2, -1, -3, torch.tensor([1, -2, 4])):
            a = model.explain(**right, target=7, position=position)
            b = model.explain(**left, target=7, position=position)
            torch.testing.assert_close(a.values, b.values)
            assert (b.position - a.position).tolist() == [0, 2, 4]
        assert model.explain(**right).position.tolist() == [8, 6, 4]
        with pytest.raises(ValueError, match="`position` 5 is outside row 2, which has 5 real tokens"):
            model.explain(**right, position=5)

    @pytest.mark.parametrize("name", DECODERS)
    def test_a_classifier_that_would_read_padding_is_refused(self, name):
        model = tiny_model(name, "sequence-classification")
        inputs = tiny_inputs(model)
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 3)
        with pytest.raises(ValueError, match=r"pad_token_id \(0\), but in rows \[1, 2\]"):
            model.explain(**inputs)
        model.config.pad_token_id = None
        with pytest.raises(ValueError, match="needs a padding token"):
            model.explain(**inputs)
        assert relative_residual(model.explain(input_ids=inputs["input_ids"][:1])) < 1e-10

    def test_inputs_that_hide_tokens_are_refused(self):
        model = tiny_model("llama", "causal-lm")
        inputs = tiny_inputs(model, padded=False)
        with torch.no_grad():
            cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="past_key_values"):
            model.explain(**inputs, past_key_values=cache)
        with pytest.raises(ValueError, match="logits_to_keep"):
            model.explain(**inputs, logits_to_keep=1)
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
        wanted = model.explain(**inputs).contributions
        torch.testing.assert_close(model.explain(inputs_embeds=embeds).contributions, wanted)
        for name, task in (("llama", "sequence-classification"), ("roberta", "token-classification")):
            other = tiny_model(name, task)
            with pytest.raises(ValueError, match="from `input_ids`"):
                other.explain(inputs_embeds=embeds)

    def test_token_types_of_gpt2_are_a_part_of_their_own(self):
        model = tiny_model("gpt2", "causal-lm")
        inputs = tiny_inputs(model)
        types = torch.full_like(inputs["input_ids"], 7)
        out = model.explain(**inputs, token_type_ids=types, parts=True)
        assert set(out.parts) == {"word", "position", "token_type"}
        assert relative_residual(out) < 1e-10
        assert torch.equal(out.logits, public_logits(model, {**inputs, "token_type_ids": types}))

    def test_roberta_has_room_for_fewer_tokens_than_positions(self):
        model = tiny_model("roberta", "sequence-classification")
        assert relative_residual(model.explain(input_ids=torch.full((1, 32), 9))) < 1e-10
        with pytest.raises(ValueError, match="33 tokens.*at most 32"):
            model.explain(input_ids=torch.full((1, 33), 9))

    def test_rotary_positions_do_not_run_out(self):
        model = tiny_model("llama", "causal-lm")
        assert relative_residual(model.explain(input_ids=torch.full((1, 40), 9))) < 1e-10

    def test_modernbert_that_averages_tokens(self):
        model = tiny_model("modernbert", "sequence-classification", classifier_pooling="mean")
        assert relative_residual(model.explain(**tiny_inputs(model), target="all")) < 1e-10
        assert relative_residual(model.explain(**tiny_inputs(model, left=True), target="all")) < 1e-10


class TestState:
    @heads
    def test_eight_threads(self, name, task):
        model = tiny_model(name, task).float()
        inputs = tiny_inputs(model, rows=3, tokens=12, padded=False)
        rows = [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(3)]
        wanted = [model.explain(**row).contributions for row in rows]
        for training in (False, True):
            model.train(training)
            results = explain_in_eight_threads(model, rows, turns=2)
            assert all(torch.equal(value, wanted[i]) for (_, _, i), value in results.items())
            assert all(module.training is training for module in model.modules())

    @heads
    def test_an_exception_inside_leaves_explanation_mode_off(self, name, task):
        model = tiny_model(name, task)
        inputs = tiny_inputs(model)
        layer = next(module for module in model.modules() if isinstance(module, nn.ModuleList))[-1]

        def fail(*_):
            raise RuntimeError("in the middle")

        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            model.explain(**inputs)
        handle.remove()
        assert not is_explaining()
        assert relative_residual(model.explain(**inputs)) < 1e-10


@heads
def test_vocabulary_can_grow(name, task):
    model = tiny_model(name, task)
    for size in (64, 70):
        model.resize_token_embeddings(size)
        assert_dynamic_linear(model)
        inputs = tiny_inputs(model)
        inputs["input_ids"][0, 0] = size - 1
        assert relative_residual(model.explain(**inputs, target=every_target(model))) < 1e-10


def test_embeddings_that_explanations_cannot_record_are_named():
    model = tiny_model("bert", "sequence-classification")
    model.bert.set_input_embeddings(nn.Embedding(67, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match="are not B-cos embeddings"):
        model.explain(**tiny_inputs(model))


def test_flex_attention_says_why_it_cannot_explain_on_cpus():
    model = tiny_model("llama", "causal-lm", "flex_attention").float()
    with pytest.raises(ValueError, match="set_attn_implementation"):
        model.explain(**tiny_inputs(model))


def test_files_are_small():
    for path in bcos_transformers.modeling.__path__:
        for file in __import__("pathlib").Path(path).glob("*.py"):
            lines = len(file.read_text(encoding="utf-8").splitlines())
            assert lines < (150 if file.name.startswith(("modeling_bcos_", "configuration_bcos_")) else 420), file.name
