"""Distillation with the stock Trainer: the loss against a slow closed form, and everything that it must leave alone."""

import copy
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bcos_transformers import DistillationCallback, MaskingCollator
from bcos_transformers.distillation import divergence, hidden_distance
from bcos_transformers.registration import ARCHITECTURES
from conftest import batch, bcos_model, tiny_config
from contract import CHECKPOINTING, fill_biases, tiny_inputs
from contract import tiny_config as config_of
from contract import tiny_model as model_of

peft = pytest.importorskip("peft")

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = torch.tensor([2, 0, 1])


def conventional(num_labels: int = 3, kind=BertForSequenceClassification, seed: int = 7, **fields):
    """A teacher with biases that matter, in float64."""
    torch.manual_seed(seed)
    teacher = kind(tiny_config(num_labels=num_labels, **fields))
    fill_biases(teacher)
    return teacher.double()


def student_of(seed: int = 0, **fields):
    return bcos_model(seed=seed, **NO_DROPOUT, **fields)


def arguments(folder="unused", **overrides) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return TrainingArguments(**{**values, **overrides})


def begin(callback, model, **options) -> None:
    """What the Trainer tells its callbacks before the first batch."""
    known = (arguments(**options), TrainerState(), TrainerControl())
    callback.on_train_begin(*known, model=model)
    callback.on_step_begin(*known, model=model)
    model.train()


def first_loss(callback, model, options=None, **inputs):
    begin(callback, model, **(options or {}))
    return model(**inputs).loss


def examples(count: int = 32, labelled: bool = True) -> list[dict]:
    """Texts of one length whose label depends on whether token 7 is there."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        ids = torch.randint(8, 60, (8,), generator=generator)
        ids[3] = 7 if i % 2 else 9
        row = {"input_ids": ids, "attention_mask": torch.ones(8, dtype=torch.long)}
        rows.append({**row, "labels": i % 3} if labelled else row)
    return rows


def train(model, folder, callbacks=(), data=None, **overrides) -> Trainer:
    trainer = Trainer(
        model,
        arguments(folder, **overrides),
        train_dataset=data or examples(),
        eval_dataset=data or examples(),
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer


def softmax(logits: list[float]) -> list[float]:
    exps = [math.exp(value) for value in logits]
    return [value / sum(exps) for value in exps]


def closed_form(student, teacher, inputs, labels, loss: str) -> tuple[float, float, float]:
    """Task loss, divergence and distance, one number at a time."""
    with torch.no_grad():
        mine, other = (m.eval()(**inputs, output_hidden_states=True) for m in (student, teacher))
    rows = mine.logits.shape[0]
    task = kl = 0.0
    for row in range(rows):
        scores = mine.logits[row].tolist()
        if loss == "ce":
            task -= math.log(softmax(scores)[labels[row]]) / rows
        else:
            for c, score in enumerate(scores):
                sigmoid = 1 / (1 + math.exp(-score))
                task -= math.log(sigmoid if labels[row] == c else 1 - sigmoid) / len(scores) / rows
        p, q = softmax(other.logits[row].tolist()), softmax(scores)
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / rows
    ratios = []
    for h, t in zip(mine.hidden_states, other.hidden_states, strict=True):
        apart = size = 0.0
        for row, token in inputs["attention_mask"].nonzero().tolist():
            for a, b in zip(h[row, token].tolist(), t[row, token].tolist(), strict=True):
                apart, size = apart + (a - b) ** 2, size + b**2
        ratios.append(apart / size)
    assert len(ratios) == 3
    return task, kl, sum(ratios) / len(ratios)


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


class TestTraining:
    @pytest.mark.parametrize("loss", ["bce", "ce"])
    def test_accumulation_equals_one_large_batch(self, tmp_path, loss):
        """30 texts: in the last step of an epoch there are fewer and smaller batches."""
        teacher, weights = conventional().float(), []
        for size, steps in ((12, 1), (3, 4)):
            model = student_of(classifier_loss=loss).float()
            options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 3}
            callback = DistillationCallback(teacher, hidden_weight=0)
            train(model, tmp_path, [callback], examples(30), optim="sgd", learning_rate=0.05, **options)
            weights.append(model.state_dict())
        start = student_of().float().state_dict()
        assert any((weights[0][name] - start[name]).abs().max() > 1e-2 for name in start)
        for name, one in weights[0].items():
            torch.testing.assert_close(weights[1][name], one, rtol=1e-4, atol=1e-5, msg=name)

    def test_accumulated_hidden_states_of_equal_batches(self, tmp_path):
        """Four batches of the same texts give the gradient of one of them."""
        teacher, weights = conventional().float(), []
        for size, steps in ((8, 1), (2, 4)):
            model = student_of().float()
            options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 2}
            data = [examples()[1]] * 8
            train(model, tmp_path, [DistillationCallback(teacher)], data, optim="sgd", learning_rate=0.05, **options)
            weights.append(model.state_dict())
        for name, one in weights[0].items():
            torch.testing.assert_close(weights[1][name], one, rtol=1e-4, atol=1e-5, msg=name)

    def test_learns_without_labels(self, tmp_path):
        teacher, model = conventional().float(), student_of().float()
        inputs = {
            name: torch.stack([row[name] for row in examples(labelled=False)])
            for name in ("input_ids", "attention_mask")
        }

        def distance():
            with torch.no_grad():
                return divergence(model.eval()(**inputs).logits, teacher(**inputs).logits).item()

        teacher.eval()
        before = distance()
        callback = DistillationCallback(teacher, task_weight=0)
        train(model, tmp_path, [callback], examples(labelled=False), max_steps=40, learning_rate=1e-2)
        assert distance() < before / 4

    def test_the_teacher_stays_as_it_is_and_nothing_of_it_is_saved(self, tmp_path):
        teacher = conventional().float()
        before, config = copy.deepcopy(teacher.state_dict()), teacher.config.to_dict()
        model = student_of().float()
        options = {"save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1}
        trainer = train(model, tmp_path, [DistillationCallback(teacher)], **options)
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert not teacher.training
        assert teacher.config.to_dict() == config
        assert not teacher._forward_hooks
        trainer.save_model(str(tmp_path / "saved"))
        for folder in ("checkpoint-2", "saved"):
            assert load_file(tmp_path / folder / "model.safetensors").keys() == student_of().state_dict().keys()
        assert sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"]) == sum(
            p.numel() for p in student_of().parameters()
        )

    def test_evaluation_gives_the_task_loss(self, tmp_path):
        model = student_of().float()
        trainer = train(
            model, tmp_path, [DistillationCallback(conventional().float())], eval_strategy="steps", eval_steps=2
        )
        logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert len(logged) == 2
        data = {name: torch.stack([torch.as_tensor(r[name]) for r in examples()]) for name in examples()[0]}
        with torch.no_grad():
            plain = model.eval()(**data).loss.item()
        assert logged[1] == pytest.approx(plain, rel=1e-5)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-5)

    def test_bf16_and_a_later_training_without(self, tmp_path):
        """The teacher computes in the precision of the training at hand."""
        teacher, autocast = conventional().float(), []
        teacher.register_forward_pre_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
        callback, start = DistillationCallback(teacher), student_of().float().state_dict()
        for bf16 in (True, False):
            model = student_of().float()
            train(model, tmp_path, [callback], bf16=bf16, max_steps=2)
            assert all(torch.isfinite(value).all() for value in model.state_dict().values())
            assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
        assert autocast == [True, True, False, False]

    def test_a_teacher_just_trained_in_bf16(self, tmp_path):
        """In memory, such a model has another forward method than its class."""
        teacher = conventional(**NO_DROPOUT).float()
        given = []
        teacher.bert.register_forward_pre_hook(lambda m, a, kwargs: given.append(kwargs), with_kwargs=True)
        train(teacher, tmp_path, bf16=True, max_steps=1)
        given.clear()
        loss = first_loss(DistillationCallback(teacher), student_of().float(), **batch(), labels=LABELS)
        assert torch.isfinite(loss)
        assert torch.equal(given[0]["token_type_ids"], batch()["token_type_ids"])
        assert torch.equal(given[0]["attention_mask"], batch()["attention_mask"])

    def test_teacher_and_student_read_the_same_masked_batch(self, tokenizer, tmp_path):
        teacher, model = conventional().float(), student_of().float()
        read = {"teacher": [], "student": []}
        for name, module in (("teacher", teacher), ("student", model)):
            module.register_forward_pre_hook(
                lambda m, a, kwargs, name=name: read[name].append(kwargs["input_ids"].clone()), with_kwargs=True
            )
        collator = MaskingCollator(tokenizer, share=1.0)
        Trainer(
            model,
            arguments(tmp_path),
            train_dataset=examples(),
            data_collator=collator,
            callbacks=[collator, DistillationCallback(teacher)],
        ).train()
        assert len(read["teacher"]) == 4
        for one, other in zip(read["teacher"], read["student"], strict=True):
            assert torch.equal(one, other)
            assert (one == 4).any()

    def test_activation_checkpointing(self, tmp_path):
        weights = []
        for checkpointing in (False, True):
            model = student_of().float()
            train(
                model,
                tmp_path,
                [DistillationCallback(conventional().float())],
                max_steps=2,
                **{CHECKPOINTING: checkpointing},
            )
            weights.append(model.state_dict())
        for name, one in weights[0].items():
            torch.testing.assert_close(weights[1][name], one, msg=name)

    def test_student_configured_for_tuples(self):
        model = student_of(return_dict=False).float()
        value = first_loss(DistillationCallback(conventional().float()), model, **batch(), labels=LABELS)
        plain = first_loss(
            DistillationCallback(conventional().float()), student_of().float(), **batch(), labels=LABELS
        )
        torch.testing.assert_close(value, plain)


class TestHooks:
    class Fails(TrainerCallback):
        def __init__(self, event: str) -> None:
            setattr(self, event, self.fail)

        def fail(self, args, state, control, **kwargs):
            raise RuntimeError("no more")

    @staticmethod
    def hooks(model) -> int:
        return len(model._forward_hooks) + len(model._forward_pre_hooks)

    def test_are_gone_after_training(self, tmp_path):
        model = student_of().float()
        train(model, tmp_path, [DistillationCallback(conventional().float())])
        assert self.hooks(model) == 0
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
        assert self.hooks(model) == 2
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
        assert self.hooks(model) == 0

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
            assert TestHooks.hooks(student) == 0
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


class TestOtherModels:
    CLASSIFIERS = [name for name, a in ARCHITECTURES.items() if "sequence-classification" in a.models]

    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_every_architecture_learns_from_its_conventional_twin(self, name):
        student = model_of(name, "sequence-classification")
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(3)
        config = config_of(name, conventional=True, num_labels=3)
        teacher = transformers.AutoModelForSequenceClassification.from_config(config).double().eval()
        inputs = tiny_inputs(student)
        with torch.no_grad():
            mine, other = (m(**inputs, output_hidden_states=True) for m in (student, teacher))
            task = student(**inputs, labels=LABELS).loss
        keep = inputs["attention_mask"].bool()
        assert len(mine.hidden_states) == config.num_hidden_layers + 1
        ratios = [
            (h[keep] - t[keep]).square().sum() / t[keep].square().sum()
            for h, t in zip(mine.hidden_states, other.hidden_states, strict=True)
        ]
        p = other.logits.softmax(-1)
        kl = (p * (p.log() - mine.logits.log_softmax(-1))).sum(-1).mean()
        value = first_loss(DistillationCallback(teacher), student, **inputs, labels=LABELS)
        torch.testing.assert_close(value, task + kl + sum(ratios) / len(ratios), rtol=1e-10, atol=0)
        value.backward()
        assert all(p.grad is None for p in teacher.parameters())

    def test_distilbert_learns_from_bert_and_bert_from_distilbert(self, tmp_path):
        distilled = model_of("distilbert", "sequence-classification", initializer_range=0.1).float()
        callback = DistillationCallback(conventional(num_hidden_layers=3).float(), hidden_weight=0)
        start = copy.deepcopy(distilled.state_dict())
        train(distilled, tmp_path, [callback])
        assert any(not torch.equal(value, start[name]) for name, value in distilled.state_dict().items())
        torch.manual_seed(0)
        config = config_of("distilbert", conventional=True, num_labels=3)
        teacher = DistilBertForSequenceClassification(config).double()
        given = []
        teacher.register_forward_pre_hook(lambda m, a, kwargs: given.append(kwargs), with_kwargs=True)
        first_loss(DistillationCallback(teacher, hidden_weight=0), student_of(), **batch(), labels=LABELS)
        assert given[0].keys() >= {"input_ids", "attention_mask"}
        assert not given[0].keys() & {"token_type_ids", "labels"}

    def test_conventional_student(self):
        model, teacher = conventional(seed=1, **NO_DROPOUT), conventional()
        task, kl, distance = closed_form(model, teacher, batch(), LABELS.tolist(), "ce")
        value = first_loss(DistillationCallback(teacher), model, **batch(), labels=LABELS)
        assert value.item() == pytest.approx(task + kl + distance, rel=1e-12)


class TestPeft:
    @staticmethod
    def adapted(model):
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules="all-linear", r=3, task_type="SEQ_CLS")
        return peft.get_peft_model(model, config)

    def test_student_with_an_adapter(self, tmp_path):
        """The model of the Trainer is peft's then; of the student, the adapter alone is trained and saved."""
        plain, teacher = student_of(), conventional()
        wanted = first_loss(DistillationCallback(teacher), plain, **batch(), labels=LABELS)
        student = self.adapted(student_of())
        value = first_loss(DistillationCallback(teacher), student, **batch(), labels=LABELS)
        torch.testing.assert_close(value, wanted)  # a fresh adapter changes nothing
        base = student_of().float()
        base.save_pretrained(tmp_path / "base")
        student, teacher = self.adapted(base), teacher.float()
        before = copy.deepcopy(student.state_dict())
        trainer = train(student, tmp_path, [DistillationCallback(teacher)])
        assert TestHooks.hooks(student) == TestHooks.hooks(base) == 0
        changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all("lora_" in name or "modules_to_save" in name for name in changed)
        trainer.save_model(str(tmp_path / "adapter"))
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
        assert not (tmp_path / "adapter" / "model.safetensors").exists()

    def test_teacher_with_an_adapter_gets_the_whole_input(self):
        base = conventional()
        given = []
        base.register_forward_pre_hook(lambda m, a, kwargs: given.append(kwargs), with_kwargs=True)
        callback = DistillationCallback(self.adapted(base).double())
        plain = first_loss(DistillationCallback(conventional()), student_of(), **batch(), labels=LABELS)
        given.clear()
        value = first_loss(callback, student_of(), **batch(), labels=LABELS)
        assert torch.equal(given[0]["token_type_ids"], batch()["token_type_ids"])
        torch.testing.assert_close(value, plain)
