"""Distillation in the stock Trainer, of other models, and with adapters."""

import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    DistilBertForSequenceClassification,
    Trainer,
)

from bcos_transformers import DistillationCallback, MaskingCollator
from bcos_transformers.distillation import divergence
from bcos_transformers.registration import ARCHITECTURES
from conftest import batch
from contract import CHECKPOINTING, tiny_inputs
from contract import tiny_config as config_of
from contract import tiny_model as model_of
from distillation_toys import (
    LABELS,
    NO_DROPOUT,
    arguments,
    closed_form,
    conventional,
    examples,
    first_loss,
    hooks_of,
    student_of,
    train,
)

peft = pytest.importorskip("peft")


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
        assert hooks_of(student) == hooks_of(base) == 0
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
