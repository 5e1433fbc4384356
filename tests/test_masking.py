"""Random masking: which tokens are hidden, how many, and in which batches of the stock Trainer."""

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
from bcos_transformers.data.masking import maskable_tokens
from conftest import WORDS, bcos_model, tiny_config, training_arguments
from tiny_tokenizers import byte_level

PAD, CLS, SEP, MASK = 0, 2, 3, 4


def texts(tokenizer, count: int = 16, shortest: int = 3, longest: int = 12) -> list[dict]:
    """Tokenized texts of different lengths, labelled."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        words = [
            WORDS[w] for w in torch.randint(0, 12, (shortest + i % (longest - shortest + 1),), generator=generator)
        ]
        rows.append({**tokenizer(" ".join(words)), "labels": i % 2})
    return rows


@pytest.fixture
def features(tokenizer) -> list[dict]:
    return texts(tokenizer)


class TestWhatIsHidden:
    def test_only_real_tokens_that_are_not_special(self, tokenizer, features):
        collator = MaskingCollator(tokenizer, share=1.0)
        whole = collator.collator(features)
        special = (whole["input_ids"] < 5) & (whole["input_ids"] != 1)
        ever = torch.zeros_like(special)
        for seed in range(60):
            torch.manual_seed(seed)
            batch = collator(features)
            hidden = batch["input_ids"] != whole["input_ids"]
            assert (batch["input_ids"][hidden] == MASK).all()
            assert not (hidden & special).any()
            assert set(batch) == set(whole)
            assert all(torch.equal(batch[name], whole[name]) for name in whole if name != "input_ids")
            ever |= hidden
        assert torch.equal(ever, ~special)

    def test_unknown_words_are_hidden_like_others(self, tokenizer):
        ids = torch.tensor([tokenizer("film zzz")["input_ids"] + [PAD]])
        assert ids.tolist() == [[CLS, 7, 1, SEP, PAD]]
        assert maskable_tokens(tokenizer, ids).tolist() == [[False, True, True, False, False]]

    def test_masks_that_a_text_has_already_and_extra_special_tokens(self, tokenizer):
        tokenizer.add_special_tokens({"extra_special_tokens": ["[X]"]})
        ids = torch.tensor([tokenizer("[MASK] film [X]")["input_ids"]])
        assert maskable_tokens(tokenizer, ids).tolist() == [[False, False, True, False, False]]

    def test_what_the_attention_mask_leaves_out(self, tokenizer):
        ids, mask = torch.tensor([[CLS, 7, 8, SEP]]), torch.tensor([[1, 1, 0, 0]])
        assert maskable_tokens(tokenizer, ids, mask).tolist() == [[False, True, False, False]]

    def test_an_unknown_token_that_also_ends_texts_is_special(self):
        tokenizer = byte_level(unk_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>")
        ids = torch.tensor([[5, 6, tokenizer.eos_token_id]])
        assert maskable_tokens(tokenizer, ids).tolist() == [[True, True, False]]

    @pytest.mark.parametrize("replacement", ["mask", "attention"])
    def test_share_of_zero_hides_nothing(self, tokenizer, features, replacement):
        collator = MaskingCollator(tokenizer, share=0.0, replacement=replacement)
        whole = collator.collator(features)
        for _ in range(5):
            assert all(torch.equal(value, whole[name]) for name, value in collator(features).items())

    def test_number_of_hidden_tokens(self, tokenizer, features):
        """The ratio is the first draw of a batch; rounded is its product with the number of tokens, special ones apart."""
        collator = MaskingCollator(tokenizer, share=1.0)
        sizes = torch.tensor([len(row["input_ids"]) - 2 for row in features])
        for seed in range(20):
            torch.manual_seed(seed)
            ratio = torch.rand(len(features))
            torch.manual_seed(seed)
            count = (collator(features)["input_ids"] == MASK).sum(-1)
            assert torch.equal(count, (ratio * sizes).round().long())

    def test_ratios_are_uniform_and_so_are_positions(self, tokenizer):
        """Of n = 10 tokens, k are hidden in a tenth of the texts, none and all of them in a twentieth."""
        rows, n = 20000, 10
        ids = torch.tensor([CLS, *range(6, 6 + n), SEP]).expand(rows, -1)
        torch.manual_seed(0)
        hidden = MaskingCollator(tokenizer, share=1.0).draw({"input_ids": ids})
        observed = hidden.sum(-1).bincount(minlength=n + 1)
        wanted = torch.full((n + 1,), rows / n)
        wanted[[0, n]] /= 2
        assert ((observed - wanted).square() / wanted).sum() < 25.2  # chi squared, 10 degrees of freedom, p = 0.005
        assert (hidden[:, 1:-1].float().mean(0) - 0.5).abs().max() < 0.02

    @pytest.mark.parametrize("share", [0.25, 0.5])
    def test_share_of_the_texts(self, tokenizer, share):
        """A picked text of 100 tokens has none hidden with probability 1 / 200."""
        ids = torch.full((5000, 100), 8)
        torch.manual_seed(0)
        hidden = MaskingCollator(tokenizer, share=share).draw({"input_ids": ids})
        assert abs(hidden.any(-1).float().mean() - share * 0.995) < 0.02

    def test_the_seed_decides(self, tokenizer, features):
        batches = []
        for seed in (7, 7, 8):
            torch.manual_seed(seed)
            batches.append(MaskingCollator(tokenizer)(features)["input_ids"])
        assert torch.equal(batches[0], batches[1])
        assert not torch.equal(batches[0], batches[2])

    def test_out_of_the_attention_mask(self, tokenizer, features):
        for replacement in ("mask", "attention"):
            torch.manual_seed(3)
            batch = MaskingCollator(tokenizer, share=1.0, replacement=replacement)(features)
            if replacement == "mask":
                hidden = batch["input_ids"] == MASK
        whole = MaskingCollator(tokenizer).collator(features)
        assert hidden.any()
        assert torch.equal(batch["input_ids"], whole["input_ids"])
        assert torch.equal(batch["attention_mask"], whole["attention_mask"] * ~hidden)
        assert batch["attention_mask"].dtype == whole["attention_mask"].dtype

    def test_another_collator_inside(self, tokenizer):
        def no_mask(rows):
            return {"input_ids": torch.tensor(rows), "extra": "kept"}

        rows = [[CLS, *range(6, 26), SEP]] * 4
        torch.manual_seed(0)
        batch = MaskingCollator(tokenizer, share=1.0, replacement="attention", collator=no_mask)(rows)
        assert batch["extra"] == "kept"
        assert batch["input_ids"].tolist() == rows
        assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].numel()
        assert batch["attention_mask"][:, [0, -1]].all()

    def test_the_tokenizer_is_not_changed(self, tokenizer, features):
        before = tokenizer.backend_tokenizer.to_str(), dict(tokenizer.init_kwargs), tokenizer.special_tokens_map
        MaskingCollator(tokenizer, share=1.0)(features)
        assert before == (
            tokenizer.backend_tokenizer.to_str(),
            dict(tokenizer.init_kwargs),
            tokenizer.special_tokens_map,
        )

    def test_refusals(self, tokenizer):
        for share in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match=r"share.*\[0, 1\]; got"):
                MaskingCollator(tokenizer, share=share)
        with pytest.raises(ValueError, match=r"one of \('mask', 'attention'\), got 'drop'"):
            MaskingCollator(tokenizer, replacement="drop")
        with pytest.raises(ValueError, match="no mask token. Use replacement='attention'"):
            MaskingCollator(byte_level())


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
