"""Distillation by a callback: its loss, its hooks, what it refuses."""

import math

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import (
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
)

from bcos_transformers import DistillationCallback
from bcos_transformers.distillation import divergence, hidden_distance
from conftest import batch, bcos_model
from distillation_toys import (
    LABELS,
    NO_DROPOUT,
    arguments,
    begin,
    closed_form,
    conventional,
    examples,
    first_loss,
    hooks_of,
    softmax,
    student_of,
    train,
)


class TestTheLoss:
    @pytest.mark.parametrize("loss", ["bce", "ce"])
    @pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0.5, 2, 3)])
    def test_closed_form(self, weights, loss):
        task, logits, hidden = weights
        student, teacher = student_of(classifier_loss=loss), conventional()
        parts = closed_form(student, teacher, batch(), LABELS.tolist(), loss)
        assert min(parts) > 0.1
        callback = DistillationCallback(teacher, logits, hidden, task)
        value = first_loss(callback, student, **batch(), labels=LABELS)
        wanted = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        assert abs(value.item() / wanted - 1) < 1e-12

    def test_what_is_padded_does_not_matter(self):
        """The same texts with twice the padding, and none of a different length."""
        losses = []
        for padding in (0, 9):
            inputs = {name: F.pad(value, (0, padding)) for name, value in batch().items()}
            losses.append(first_loss(DistillationCallback(conventional()), student_of(), **inputs, labels=LABELS))
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
        whole = batch(padded=False)
        whole.pop("token_type_ids")
        mask = whole.pop("attention_mask")
        implied = first_loss(DistillationCallback(conventional()), student_of(), **whole, labels=LABELS)
        given = first_loss(
            DistillationCallback(conventional()), student_of(), **whole, attention_mask=mask, labels=LABELS
        )
        torch.testing.assert_close(implied, given, rtol=1e-12, atol=0)

    def test_gradient(self):
        """That of the sum of the three terms, taken apart."""
        student, teacher = student_of(), conventional().eval()
        first_loss(DistillationCallback(teacher, 2.0, 3.0, 0.5), student, **batch(), labels=LABELS).backward()
        plain = student_of().train()
        mine = plain(**batch(), labels=LABELS, output_hidden_states=True)
        with torch.no_grad():
            other = teacher(**batch(), output_hidden_states=True)
        keep = batch()["attention_mask"][..., None]
        ratios = [
            ((h - t).square() * keep).sum() / (t.square() * keep).sum()
            for h, t in zip(mine.hidden_states, other.hidden_states, strict=True)
        ]
        p = other.logits.softmax(-1)
        kl = (p * (p.log() - mine.logits.log_softmax(-1))).sum(-1).mean()
        (0.5 * mine.loss + 2 * kl + sum(ratios)).backward()  # 3 of hidden_weight / 3 layers
        for (name, one), other in zip(student.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)

    def test_texts_with_a_token_are_learnt_without_the_teacher(self):
        student, teacher, inputs = student_of(), conventional(), batch()
        inputs["input_ids"][1, 2] = 4
        whole = {name: value[[0, 2]] for name, value in inputs.items()}
        _, kl, distance = closed_form(student, teacher, whole, LABELS[[0, 2]].tolist(), "bce")
        task, _, _ = closed_form(student, teacher, inputs, LABELS.tolist(), "bce")
        callback = DistillationCallback(teacher, skip_token_id=4)
        value = first_loss(callback, student, **inputs, labels=LABELS)
        assert abs(value.item() / (task + 2 / 3 * (kl + distance)) - 1) < 1e-12
        inputs["input_ids"][:, 1] = 4  # in every text: the teacher is not asked at all
        task, _, _ = closed_form(student, teacher, inputs, LABELS.tolist(), "bce")
        alone = first_loss(DistillationCallback(teacher, skip_token_id=4), student, **inputs, labels=LABELS)
        assert abs(alone.item() / task - 1) < 1e-12

    def test_a_regression_learns_the_distance(self):
        student, teacher = student_of(num_labels=1), conventional(1)
        with torch.no_grad():
            wanted = F.mse_loss(student(**batch()).logits, teacher.eval()(**batch()).logits)
        callback = DistillationCallback(teacher, hidden_weight=0, task_weight=0)
        torch.testing.assert_close(first_loss(callback, student, **batch()), wanted)

    def test_token_classifiers_leave_padding_out(self):
        student = bcos_model("token-classification", **NO_DROPOUT)
        teacher = conventional(kind=transformers.BertForTokenClassification)
        inputs, total, count = batch(), 0.0, 0
        with torch.no_grad():
            mine, other = student(**inputs).logits, teacher.eval()(**inputs).logits
        for row, token in inputs["attention_mask"].nonzero().tolist():
            p, q = softmax(other[row, token].tolist()), softmax(mine[row, token].tolist())
            total, count = total + sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), count + 1
        callback = DistillationCallback(teacher, hidden_weight=0, task_weight=0)
        assert first_loss(callback, student, **inputs).item() == pytest.approx(total / count, rel=1e-12)

    def test_half_precision_logits_are_compared_in_float32(self):
        mine, other = torch.randn(2, 4, 3).bfloat16()
        assert divergence(mine, other).dtype == torch.float32
        torch.testing.assert_close(divergence(mine, other), divergence(mine.float(), other.float()))

    @pytest.mark.parametrize("kind", ["single", "multi", "token"])
    def test_share_of_a_small_batch_in_a_step(self, kind):
        """Given the number of labels of a step three times as large, the loss is a third."""
        task = "token-classification" if kind == "token" else "sequence-classification"
        head = transformers.BertForTokenClassification if kind == "token" else BertForSequenceClassification
        teacher, inputs = conventional(kind=head), batch()
        labels = {
            "single": LABELS,
            "multi": torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]]),
            "token": torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 3, -100),
        }[kind]
        count = (labels != -100).sum()
        losses = [
            first_loss(DistillationCallback(teacher), bcos_model(task, **NO_DROPOUT), **inputs, labels=labels, **items)
            for items in ({}, {"num_items_in_batch": 3 * count}, {"num_items_in_batch": 3 * int(count)})
        ]
        torch.testing.assert_close(losses[0], 3 * losses[1], rtol=1e-6, atol=0)
        torch.testing.assert_close(losses[1], losses[2], rtol=1e-6, atol=0)

    def test_a_step_without_any_label(self):
        """Each of the batches of the step counts the same."""
        callback = DistillationCallback(conventional(), task_weight=0)
        plain = first_loss(callback, student_of(), **batch())
        none = {"labels": torch.full((3,), -100), "num_items_in_batch": torch.tensor(0)}
        value = first_loss(
            DistillationCallback(conventional(), task_weight=0),
            student_of(),
            {"gradient_accumulation_steps": 4},
            **batch(),
            **none,
        )
        torch.testing.assert_close(value, plain / 4)


class TestHooks:
    class Fails(TrainerCallback):
        def __init__(self, event: str) -> None:
            setattr(self, event, self.fail)

        def fail(self, args, state, control, **kwargs):
            raise RuntimeError("no more")

    def test_are_gone_after_training(self, tmp_path):
        model = student_of().float()
        train(model, tmp_path, [DistillationCallback(conventional().float())])
        assert hooks_of(model) == 0
        model.train()
        out = model(**batch(), labels=LABELS)
        assert out.hidden_states is None
        torch.testing.assert_close(out.loss, model.eval()(**batch(), labels=LABELS).loss)

    @pytest.mark.parametrize("event", ["on_pre_optimizer_step", "forward"])
    def test_do_nothing_after_a_training_that_failed(self, tmp_path, event):
        """The Trainer tells nobody of it, so the hooks are still there; until the next training they are idle."""
        model, teacher = student_of().float(), conventional().float()
        callback = DistillationCallback(teacher)
        if event == "forward":
            broken = [{**row, "input_ids": row["input_ids"] + 100} for row in examples()]
            with pytest.raises(IndexError):
                train(model, tmp_path, [callback], broken)
        else:
            with pytest.raises(RuntimeError, match="no more"):
                train(model, tmp_path, [callback, self.Fails(event)])
        assert hooks_of(model) == 2
        model.train()
        for _ in range(2):
            out = model(**batch(), labels=LABELS)
            assert out.hidden_states is None
            torch.testing.assert_close(out.loss, copy_without_hooks(model)(**batch(), labels=LABELS).loss)
        asked = []
        teacher.register_forward_pre_hook(lambda *_: asked.append(1))
        train(model, tmp_path, max_steps=1)
        assert not asked
        train(model, tmp_path, [DistillationCallback(teacher)], max_steps=1)
        assert len(asked) == 1
        train(model, tmp_path, [callback], max_steps=1)
        assert len(asked) == 2
        assert hooks_of(model) == 0

    def test_hidden_states_are_not_handed_on(self):
        """Who did not ask for them need not keep them in memory."""
        model = student_of()
        begin(DistillationCallback(conventional()), model)
        assert model(**batch(), labels=LABELS).hidden_states is None

    def test_a_forward_pass_of_another_callback_is_left_alone(self, tmp_path):
        model, losses = student_of().float(), []

        class Looks(TrainerCallback):
            def on_step_begin(self, args, state, control, model=None, **kwargs):
                model.eval()
                losses.append(model(**batch(), labels=LABELS))

        teacher, asked = conventional().float(), []
        teacher.register_forward_pre_hook(lambda *_: asked.append(1))
        train(model, tmp_path, [DistillationCallback(teacher), Looks()])
        assert len(asked) == len(losses) == 4
        assert all(out.hidden_states is None for out in losses)


def copy_without_hooks(model):
    plain = type(model)(model.config).train()
    plain.load_state_dict(model.state_dict())
    return plain


class TestRefusals:
    @pytest.mark.parametrize("name", ["logits_weight", "hidden_weight", "task_weight"])
    @pytest.mark.parametrize("value", [-0.1, float("nan")])
    def test_negative_weights(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}` must not be negative, got"):
            DistillationCallback(conventional(), **{name: value})

    def test_teachers_that_do_not_fit(self):
        cases = [
            ({"num_labels": 2}, "num_labels=2, the student 3. It must be fine-tuned on the student's labels"),
            ({"vocab_size": 61}, "vocab_size=61, the student 60. Both must read the same tokens"),
            ({"num_hidden_layers": 1}, "num_hidden_layers=1, the student 2. Set hidden_weight=0"),
            ({"hidden_size": 8}, "hidden_size=8, the student 16. Set hidden_weight=0"),
        ]
        for fields, message in cases:
            student = student_of()
            with pytest.raises(ValueError, match=message):
                begin(DistillationCallback(conventional(**fields)), student)
            assert hooks_of(student) == 0
        for fields, _ in cases[2:]:
            callback = DistillationCallback(conventional(**fields), hidden_weight=0)
            assert first_loss(callback, student_of(), **batch(), labels=LABELS) > 0

    def test_labels_in_another_order(self):
        student, teacher = student_of(), conventional()
        student.config.id2label = {0: "bad", 1: "so so", 2: "good"}
        teacher.config.id2label = {0: "good", 1: "so so", 2: "bad"}
        with pytest.raises(ValueError, match="teacher's labels are good, so so, bad, the student's bad, so so, good"):
            begin(DistillationCallback(teacher), student)
        teacher.config.id2label = {i: f"LABEL_{i}" for i in range(3)}
        begin(DistillationCallback(teacher), student)  # names that nobody gave say nothing

    def test_a_batch_without_visible_tokens_has_no_distance(self):
        states = (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
        distance = hidden_distance(states, states[::-1], torch.zeros(2, 3))
        assert distance == 0.0

    def test_a_loss_that_the_trainer_computes(self, tmp_path):
        with pytest.raises(ValueError, match="label_smoothing_factor=0.1 the Trainer computes the loss itself"):
            train(
                student_of().float(),
                tmp_path,
                [DistillationCallback(conventional().float())],
                label_smoothing_factor=0.1,
            )
        for task_weight in (0.0, 1.0):
            trainer = Trainer(
                student_of().float(),
                arguments(tmp_path),
                train_dataset=examples(),
                callbacks=[DistillationCallback(conventional().float(), task_weight=task_weight)],
                compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.sum(),
            )
            with pytest.raises(ValueError, match="got no labels.*leave out `compute_loss_func`"):
                trainer.train()

    def test_no_labels_for_the_task(self, tmp_path):
        with pytest.raises(ValueError, match="got no labels.*set task_weight=0"):
            train(
                student_of().float(),
                tmp_path,
                [DistillationCallback(conventional().float())],
                examples(labelled=False),
            )
