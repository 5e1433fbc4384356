"""Exactness, padding, targets and bad input of `.explain()`, for every head of B-cos BERT."""

import itertools

import pytest
import torch

from bcos_transformers import BcosBertModel, explanation_mode
from bcos_transformers.modeling.bcos_state import EmbeddingRecorder, is_explaining
from conftest import HEADS, batch, bcos_model, relative_residual
from contract import public_logits

EVERY = {"sequence-classification": "all", "token-classification": "all", "question-answering": "all"}


def every_target(task: str):
    """All targets of a task; a handful of token ids for the language model."""
    return EVERY.get(task, torch.tensor([[5, 17, 40]]).expand(3, -1))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("task", HEADS)
class TestExactness:
    def test_contributions_sum_to_the_logit(self, task, attn):
        inputs = batch(task=task)
        for fields in (
            {},
            {"b": 2.0},
            {"b": 1.0},
            {"normalize_weights": False, "qk_bias": True},
            {"b_per_layer": [1, 2]},
        ):
            model = bcos_model(task, attn=attn, **fields)
            assert relative_residual(model.explain(**inputs, target=every_target(task))) < 1e-10
            assert relative_residual(model.float().explain(**inputs, target=every_target(task))) < 1e-4

    def test_logits_are_the_models_own(self, task, attn):
        model, inputs = bcos_model(task, attn=attn), batch(task=task)
        assert torch.equal(model.explain(**inputs).logits, public_logits(model, inputs))

    def test_parts_add_up(self, task, attn):
        model, inputs = bcos_model(task, attn=attn), batch(task=task)
        out = model.explain(**inputs, target=every_target(task), parts=True)
        assert set(out.parts) == {"word", "position", "token_type"}
        whole = model.explain(**inputs, target=every_target(task)).contributions
        torch.testing.assert_close(sum(out.parts.values()), whole, rtol=1e-10, atol=1e-12)
        assert all(part.shape == whole.shape and part.abs().max() > 0 for part in out.parts.values())

    def test_batched_and_padded_equals_single(self, task, attn):
        model, inputs = bcos_model(task, attn=attn).float(), batch(task=task)
        target = every_target(task)
        many = model.explain(**inputs, target=target).contributions
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            one = {name: value[row : row + 1, :length] for name, value in inputs.items()}
            alone = model.explain(**one, target=target if isinstance(target, str) else target[:1]).contributions[0]
            together = many[row][..., :length]
            if task == "token-classification":
                together = together[:length]
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
            assert (many[row][..., length:] == 0).all()


@pytest.mark.parametrize("fields", [{}, {"b": 1.25, "normalize_weights": False, "qk_bias": True}])
@pytest.mark.parametrize("task", HEADS)
def test_dynamic_matrix_rebuilt_from_the_jacobian(task, fields):
    """W(x), row by row from a Jacobian that knows nothing of `explain`, gives the logits and the contributions."""
    model = bcos_model(task, attn="eager", **fields)
    inputs = {name: value[:1] for name, value in batch(padded=False, task=task).items()}
    recorder = EmbeddingRecorder()
    with explanation_mode(recorder), torch.no_grad():
        model(**inputs)
    words = recorder.parts["word"]
    summed = sum(part.expand_as(words) for part in recorder.parts.values())

    def frozen_logits(embeddings):
        model_inputs = {k: v for k, v in inputs.items() if k != "input_ids"}
        with explanation_mode():
            out = model(inputs_embeds=embeddings, **model_inputs)
        return out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), dim=-1)

    matrix = torch.autograd.functional.jacobian(frozen_logits, words)  # (*logits, 1, tokens, hidden)
    rows = (matrix * summed).sum(-1).squeeze(-2)  # contributions of every token to every logit
    torch.testing.assert_close(rows.sum(-1), public_logits(model, inputs), rtol=1e-9, atol=1e-11)
    out = model.explain(**inputs, target=every_target(task) if task != "masked-lm" else torch.tensor([[5, 17, 40]]))
    rows = rows[0]
    if task == "masked-lm":
        rows = rows[2, [5, 17, 40]]
    if task == "question-answering":
        (start, _), (_, end), span = out.position[0].tolist()
        rows = torch.stack((rows[start, 0], rows[end, 1], rows[span[0], 0] + rows[span[1], 1]))
    torch.testing.assert_close(out.contributions[0], rows, rtol=1e-9, atol=1e-11)


class TestTargets:
    def test_default_is_the_predicted_class(self):
        model, inputs = bcos_model(), batch()
        out = model.explain(**inputs)
        assert torch.equal(out.target[:, 0], public_logits(model, inputs).argmax(-1))
        assert out.contributions.shape == (3, 1, 9)

    @pytest.mark.parametrize(
        "target", [1, "LABEL_1", torch.tensor([1, 1, 1]), torch.tensor([[1], [1], [1]]), [1, 1, 1]]
    )
    def test_ways_to_name_a_class(self, target):
        model, inputs = bcos_model(), batch()
        everything = model.explain(**inputs, target="all")
        out = model.explain(**inputs, target=target)
        torch.testing.assert_close(out.contributions[:, 0], everything.contributions[:, 1], rtol=1e-10, atol=1e-12)
        assert (out.target == 1).all()

    @pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
    def test_regression_and_multi_label_explain_every_output(self, problem):
        model = bcos_model(problem_type=problem)
        assert model.explain(**batch()).target.tolist() == [[0, 1, 2]] * 3

    @pytest.mark.parametrize("chunk_size", [1, 2, 7, 64])
    def test_chunks_change_nothing(self, chunk_size):
        model, inputs = bcos_model("token-classification"), batch()
        wanted = model.explain(**inputs, target="all", chunk_size=16).contributions
        got = model.explain(**inputs, target="all", chunk_size=chunk_size).contributions
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("contrast", ["mean", 2, torch.tensor([2, 0, 1])])
    def test_contrast_is_the_difference_of_contributions(self, contrast):
        model, inputs = bcos_model(), batch()
        every = model.explain(**inputs, target="all").contributions
        out = model.explain(**inputs, target=1, contrast=contrast)
        if isinstance(contrast, str):
            foil = every.mean(1)
        else:
            foil = every[torch.arange(3), torch.as_tensor(contrast).expand(3)]
        torch.testing.assert_close(out.contributions[:, 0], every[:, 1] - foil, rtol=1e-9, atol=1e-11)
        assert relative_residual(out) < 1e-10

    @pytest.mark.parametrize("task", ["token-classification", "masked-lm"])
    @pytest.mark.parametrize("contrast", ["mean", 2, torch.tensor([2, 0, 1])])
    def test_contrast_at_positions(self, task, contrast):
        model, inputs = bcos_model(task), batch(task=task)
        logits = public_logits(model, inputs)[:, 2]
        out = model.explain(**inputs, target=1, position=2, contrast=contrast)
        if isinstance(contrast, str):
            foil = logits.mean(-1)
        else:
            foil = logits[torch.arange(3), torch.as_tensor(contrast).expand(3)]
        torch.testing.assert_close(out.values.flatten(), logits[:, 1] - foil)
        assert relative_residual(out) < 1e-10

    def test_token_positions(self):
        model, inputs = bcos_model("token-classification"), batch()
        every = model.explain(**inputs, target="all")
        assert every.contributions.shape == (3, 9, 3, 9)
        assert every.position[2].tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1]
        assert (every.contributions[2, 5:] == 0).all()
        assert (every.target[2, 5:] == -1).all()
        out = model.explain(**inputs, target="all", position=[1, -1])
        torch.testing.assert_close(out.contributions[:, 0], every.contributions[:, 1], rtol=1e-10, atol=1e-12)
        assert out.position[:, 1].tolist() == [8, 6, 4]
        with pytest.raises(ValueError, match="not a real token of row 2"):
            model.explain(**inputs, position=6)

    def test_mask_token(self):
        model, inputs = bcos_model("masked-lm"), batch(task="masked-lm")
        out = model.explain(**inputs)
        assert out.position.tolist() == [2, 2, 2]
        assert torch.equal(out.target[:, 0], public_logits(model, inputs)[:, 2].argmax(-1))
        torch.testing.assert_close(model.explain(**inputs, position=2).contributions, out.contributions)
        inputs["input_ids"][0, 4] = 4
        with pytest.raises(ValueError, match=r"found \[2, 1, 1\].*`position=`"):
            model.explain(**inputs)
        model.config.mask_token_id = None
        with pytest.raises(ValueError, match="mask_token_id"):
            model.explain(**inputs)

    def test_answer_spans(self):
        model, inputs = bcos_model("question-answering"), batch()
        logits = public_logits(model, inputs)
        span = model.explain(**inputs)
        assert (span.target == 2).all()
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            pairs = [(i, j) for i, j in itertools.product(range(length), repeat=2) if i <= j]
            best = max(pairs, key=lambda p: logits[row, p[0], 0] + logits[row, p[1], 1])
            assert tuple(span.position[row, 0].tolist()) == best
        out = model.explain(**inputs, target="span", position=(1, 3), contrast=(0, 2))
        wanted = logits[:, 1, 0] + logits[:, 3, 1] - logits[:, 0, 0] - logits[:, 2, 1]
        torch.testing.assert_close(out.values[:, 0], wanted)
        assert relative_residual(out) < 1e-10
        mean = model.explain(**inputs, target=["start"], position=1, contrast="mean")
        mask = inputs["attention_mask"]
        torch.testing.assert_close(mean.values[:, 0], logits[:, 1, 0] - (logits[..., 0] * mask).sum(-1) / mask.sum(-1))
        with pytest.raises(ValueError, match="ends before it starts"):
            model.explain(**inputs, position=(3, 1))
        with pytest.raises(ValueError, match="'start', 'end', 'span'"):
            model.explain(**inputs, target="answer")

    def test_inputs_embeds(self):
        model, inputs = bcos_model(), batch()
        ids = inputs.pop("input_ids")
        embeds = model.get_input_embeddings()(ids).detach()
        out = model.explain(inputs_embeds=embeds, **inputs, parts=True)
        wanted = model.explain(input_ids=ids, **inputs, parts=True)
        torch.testing.assert_close(out.contributions, wanted.contributions)
        torch.testing.assert_close(out.parts["word"], wanted.parts["word"])

    def test_many_targets_need_a_word(self):
        model = bcos_model("masked-lm", vocab_size=1100)
        with pytest.raises(ValueError, match="1100 targets.*allow_large"):
            model.explain(**batch(task="masked-lm"), target="all")
        out = model.explain(**batch(task="masked-lm"), target="all", allow_large=True, chunk_size=200)
        assert out.contributions.shape == (3, 1100, 9)
        assert relative_residual(out) < 1e-9


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"target": 3}, ValueError, r"must lie in \[0, 3\)"),
            ({"target": -1}, ValueError, r"must lie in \[0, 3\)"),
            ({"target": "happy"}, ValueError, "not a label of this model"),
            ({"target": torch.zeros(2, dtype=torch.long)}, ValueError, "with batch 3"),
            ({"target": torch.zeros(3)}, TypeError, "must hold integers"),
            ({"target": 1.5}, TypeError, "float"),
            ({"contrast": 7}, ValueError, "`contrast` must lie in"),
            ({"position": 1}, ValueError, "no meaning"),
            ({"targets": 1}, TypeError, "unexpected argument 'targets'"),
            ({"chunk_size": 0}, ValueError, "chunk_size"),
            ({"attention_mask": torch.ones(3, 8)}, ValueError, "shape of the tokens"),
            ({"attention_mask": torch.full((3, 9), 2)}, ValueError, "only 0"),
            ({"attention_mask": torch.zeros(3, 9)}, ValueError, "no real token"),
            ({"input_ids": torch.ones(9, dtype=torch.long)}, ValueError, "unsqueeze"),
            ({"input_ids": torch.ones(3, 9)}, ValueError, "must be integers"),
            ({"input_ids": torch.full((3, 9), 60)}, ValueError, r"\[0, 60\).*tokenizer"),
            ({"input_ids": torch.ones(3, 0, dtype=torch.long)}, ValueError, "empty"),
            ({"input_ids": [[1, 2]]}, TypeError, "return_tensors"),
            ({"token_type_ids": torch.zeros(3, 2, dtype=torch.long)}, ValueError, "token_type_ids"),
            ({"token_type_ids": torch.full((3, 9), 2)}, ValueError, r"\[0, 2\)"),
            ({"position_ids": torch.full((1, 9), 32)}, ValueError, r"\[0, 32\)"),
            ({"inputs_embeds": torch.zeros(3, 9, 16)}, ValueError, "exactly one"),
        ],
    )
    def test_says_what_is_wrong(self, arguments, error, message):
        with pytest.raises(error, match=message):
            bcos_model().explain(**{**batch(), **arguments})
        assert not is_explaining()

    def test_too_many_tokens_is_an_error_that_names_the_limit(self):
        with pytest.raises(ValueError, match="33 tokens.*at most 32.*truncation=True"):
            bcos_model().explain(input_ids=torch.ones(1, 33, dtype=torch.long))

    def test_left_padding_is_refused_where_the_head_reads_the_first_position(self):
        inputs = {name: value.flip(1) for name, value in batch().items()}
        with pytest.raises(ValueError, match=r"Rows \[1, 2\] are left-padded"):
            bcos_model().explain(**inputs)

    @pytest.mark.parametrize("attn", ["eager", "sdpa"])
    def test_left_padding_is_exact_elsewhere(self, attn):
        inputs = {name: value.flip(1) for name, value in batch().items()}
        out = bcos_model("token-classification", attn=attn).explain(**inputs)
        assert relative_residual(out) < 1e-10
        assert (out.contributions[2, ..., :4] == 0).all()

    def test_base_model_has_nothing_to_explain(self):
        with pytest.raises(TypeError, match="no head"):
            bcos_model("base").explain(**batch())
        assert BcosBertModel.explanation_task is None

    def test_nan_weights_are_named_instead_of_explained(self):
        model = bcos_model()
        with torch.no_grad():
            model.classifier.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="not finite"):
            model.explain(**batch())

    def test_contributions_that_overflow_are_refused(self):
        model = bcos_model().half()
        with torch.no_grad():
            for embedding in (m for m in model.modules() if isinstance(m, torch.nn.Embedding)):
                embedding.weight.mul_(1e-5)
        with pytest.raises(ValueError, match=r"overflows torch\.float16"):
            model.explain(**batch())

    def test_special_tokens_alone_can_be_explained(self, tokenizer):
        model = bcos_model()
        inputs = tokenizer([""], return_tensors="pt")
        assert inputs["input_ids"].tolist() == [[2, 3]]
        assert relative_residual(model.explain(**inputs)) < 1e-10
        assert relative_residual(model.explain(input_ids=torch.tensor([[2]]))) < 1e-10
