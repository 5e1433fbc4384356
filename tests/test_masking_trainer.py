"""Random masking in the stock Trainer: batches of training have hidden tokens, those of evaluation have none."""

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import contract
from bcos_transformers import MaskingCollator
from conftest import bcos_model, tiny_config, training_arguments
from masking_toys import MASK, texts
from tiny_tokenizers import byte_level


@pytest.fixture
def features(tokenizer) -> list[dict]:
    return texts(tokenizer)


def arguments(folder, **overrides) -> TrainingArguments:
    return training_arguments(folder, **{"max_steps": 5, "per_device_eval_batch_size": 8, **overrides})


def conventional():
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config())


class Seen:
    """What a model is given: input ids and attention masks of training and of evaluation batches."""

    def __init__(self, model) -> None:
        self.training, self.evaluation = [], []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        kept = {name: kwargs[name].clone() for name in ("input_ids", "attention_mask")}
        (self.training if module.training else self.evaluation).append(kept)

    def check(self, training: int, evaluation: int) -> None:
        """The numbers of batches; every one of training has masks, none of evaluation has."""
        assert [bool((batch["input_ids"] == MASK).any()) for batch in self.training] == [True] * training
        assert [bool((batch["input_ids"] == MASK).any()) for batch in self.evaluation] == [False] * evaluation


class EvaluatesOutOfTurn(TrainerCallback):
    """Asks for an evaluation after the other callbacks have been asked whether there is one."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate |= state.global_step == 2
        return control


EVALUATIONS = {
    "steps": ({"eval_strategy": "steps", "eval_steps": 2}, [], 5, 6),  # after steps 2, 4, 5
    "epoch": ({"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}, [], 6, 6),
    "max-steps-within-an-epoch": ({"eval_strategy": "epoch", "max_steps": 3}, [], 3, 4),
    "before-the-first-step": ({"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True}, [], 5, 4),
    "out-of-turn": ({"eval_strategy": "steps", "eval_steps": 5}, [EvaluatesOutOfTurn], 5, 4),
    "accumulation": (
        {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, **{"gradient_accumulation_steps": 2}},
        [],
        4,
        4,
    ),
    "workers": ({"eval_strategy": "steps", "eval_steps": 2, "max_steps": 3, "dataloader_num_workers": 1}, [], 3, 4),
    "persistent-workers": (
        {
            "eval_strategy": "epoch",
            "max_steps": -1,
            "num_train_epochs": 2,
            "dataloader_num_workers": 1,
            "dataloader_persistent_workers": True,
        },
        [],
        4,
        4,
    ),
}


class TestWithTheTrainer:
    @pytest.mark.parametrize("case", EVALUATIONS)
    def test_only_training_batches_have_hidden_tokens(self, tokenizer, features, tmp_path, case):
        options, others, training, evaluation = EVALUATIONS[case]
        model, collator = conventional(), MaskingCollator(tokenizer, share=1.0)
        seen = Seen(model)
        callbacks = [collator, *(other() for other in others)]
        args = arguments(tmp_path, **options)
        trainer = Trainer(
            model, args, train_dataset=features, eval_dataset=features, data_collator=collator, callbacks=callbacks
        )
        trainer.train()
        seen.check(training, evaluation)
        trainer.evaluate()
        trainer.predict(features)
        seen.check(training, evaluation + 4)

    def test_before_training_and_again(self, tokenizer, features, tmp_path):
        model, collator = bcos_model().float(), MaskingCollator(tokenizer, share=1.0)
        seen = Seen(model)
        trainer = Trainer(
            model,
            arguments(tmp_path, max_steps=2),
            train_dataset=features,
            eval_dataset=features,
            data_collator=collator,
            callbacks=[collator],
        )
        trainer.evaluate()
        seen.check(0, 2)
        for _ in range(2):
            trainer.train()
            trainer.evaluate()
        seen.check(4, 6)

    def test_several_evaluation_sets(self, tokenizer, features, tmp_path):
        model, collator = conventional(), MaskingCollator(tokenizer, share=1.0)
        seen = Seen(model)
        Trainer(
            model,
            arguments(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1),
            train_dataset=features,
            eval_dataset={"one": features, "two": features[:8]},
            data_collator=collator,
            callbacks=[collator],
        ).train()
        seen.check(3, 9)

    def test_early_stopping(self, tokenizer, features, tmp_path):
        model, collator = conventional(), MaskingCollator(tokenizer, share=1.0)
        seen = Seen(model)
        args = arguments(
            tmp_path,
            max_steps=50,
            learning_rate=0.0,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="loss",
        )
        trainer = Trainer(
            model,
            args,
            train_dataset=features,
            eval_dataset=features,
            data_collator=collator,
            callbacks=[EarlyStoppingCallback(1), collator],
        )
        trainer.train()
        seen.check(4, 4)
        trainer.evaluate()
        seen.check(4, 6)

    def test_resuming_within_an_epoch_goes_on_masking(self, tokenizer, features, tmp_path):
        options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 3, "per_device_train_batch_size": 4}
        seen = []
        for resume in (None, str(tmp_path / "checkpoint-3")):
            model, collator = conventional(), MaskingCollator(tokenizer, share=1.0)
            seen.append(Seen(model))
            Trainer(
                model,
                arguments(tmp_path, save_strategy="steps", save_steps=3, **options),
                train_dataset=features,
                eval_dataset=features,
                data_collator=collator,
                callbacks=[collator],
            ).train(resume_from_checkpoint=resume)
        seen[0].check(4, 4)
        seen[1].check(1, 2)

    def test_evaluation_after_a_training_that_failed(self, tokenizer, features, tmp_path):
        class Fails(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                raise RuntimeError("no more")

        model, collator = conventional(), MaskingCollator(tokenizer, share=1.0)
        seen = Seen(model)
        trainer = Trainer(
            model,
            arguments(tmp_path),
            train_dataset=features,
            eval_dataset=features,
            data_collator=collator,
            callbacks=[collator, Fails()],
        )
        with pytest.raises(RuntimeError, match="no more"):
            trainer.train()
        trainer.evaluate()
        seen.check(1, 2)

    def test_no_callback_masks_every_batch(self, tokenizer, features, tmp_path):
        model = conventional()
        seen = Seen(model)
        args = arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
        collator = MaskingCollator(tokenizer, share=1.0)
        Trainer(model, args, train_dataset=features, eval_dataset=features, data_collator=collator).train()
        assert len(seen.training) == 2
        assert len(seen.evaluation) == 4
        assert all((batch["input_ids"] == MASK).any() for batch in seen.training + seen.evaluation)

    def test_a_callback_that_is_not_the_collator(self, tokenizer, features, tmp_path):
        trainer = Trainer(
            conventional(),
            arguments(tmp_path),
            train_dataset=features,
            data_collator=MaskingCollator(tokenizer),
            callbacks=[MaskingCollator(tokenizer)],
        )
        with pytest.raises(ValueError, match="but not its collator.*Pass the same object as `data_collator`"):
            trainer.train()

    def test_inside_another_collator(self, tokenizer, features, tmp_path):
        model, collator = conventional(), MaskingCollator(tokenizer, share=1.0)
        seen = Seen(model)
        Trainer(
            model,
            arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1),
            train_dataset=features,
            eval_dataset=features,
            data_collator=lambda rows: dict(collator(rows)),
            callbacks=[collator],
        ).train()
        seen.check(2, 4)

    def test_seeded_training_sees_the_same_batches(self, tokenizer, features, tmp_path):
        seen = []
        for _ in range(2):
            model, collator = conventional(), MaskingCollator(tokenizer)
            seen.append(Seen(model))
            args = arguments(tmp_path)
            Trainer(model, args, train_dataset=features, data_collator=collator, callbacks=[collator]).train()
        for one, other in zip(*(s.training for s in seen), strict=True):
            assert torch.equal(one["input_ids"], other["input_ids"])

    @pytest.mark.parametrize("bcos", [False, True])
    def test_causal_model_by_the_attention_mask(self, tmp_path, bcos):
        """No special tokens here: whole texts may be hidden, and the loss stays finite."""
        tokenizer = byte_level(pad_token="<pad>", eos_token="</s>")
        rows = [tokenizer(text) for text in ["The film was funny", "not dull", "gripping and funny, not dull!"] * 4]
        torch.manual_seed(0)
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        if bcos:
            model = contract.tiny_model("gpt2", "causal-lm", **vocabulary).float()
        else:
            model = GPT2LMHeadModel(contract.tiny_config("gpt2", conventional=True, **vocabulary))
        collator = MaskingCollator(tokenizer, 1.0, "attention", DataCollatorForLanguageModeling(tokenizer, mlm=False))
        seen = Seen(model)
        trainer = Trainer(
            model,
            arguments(tmp_path, eval_strategy="epoch"),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collator,
            callbacks=[collator],
        )
        loss = trainer.train().training_loss
        assert 0 < loss < 20
        hides = [
            [
                bool((b["attention_mask"].sum(-1) < (b["input_ids"] != tokenizer.pad_token_id).sum(-1)).any())
                for b in batches
            ]
            for batches in (seen.training, seen.evaluation)
        ]
        assert all(hides[0])
        assert hides[0]
        assert hides[1]
        assert not any(hides[1])
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
