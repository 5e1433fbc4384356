"""Fine-tuning with the stock `Trainer`, which keeps quiet on standard output."""

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bcos_transformers.cli.output import note
from bcos_transformers.cli.texts import Text
from bcos_transformers.data.masking import MaskingCollator
from bcos_transformers.distillation import DistillationCallback

WEIGHT_DECAY, WARMUP = 0.01, 0.1


@dataclass(frozen=True)
class TrainingOptions:
    """The options of the command line that concern the `Trainer`."""

    epochs: float
    learning_rate: float
    batch_size: int
    max_length: int
    seed: int


@dataclass(frozen=True)
class Recipe:
    """What a conversion adds to plain fine-tuning; see docs/recipe.md."""

    mask_share: float = 0.0
    teacher: PreTrainedModel | None = None


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: tuple[list[Text], list[int]],
    validation: tuple[list[Text], list[int]] | None,
    options: TrainingOptions,
    working: str,
    recipe: Recipe | None = None,
) -> None:
    """Trains `model`; with validation data, notes its accuracy after each epoch.

    Args:
        model: a classifier.
        tokenizer: its tokenizer, with a padding token.
        training: texts and label indices.
        validation: the same.
        options: see there.
        working: directory for the Trainer's own files.
        recipe: see there; None is plain fine-tuning.
    """
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    arguments = TrainingArguments(
        output_dir=working,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=32,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=WARMUP,
        eval_strategy="no" if validation is None else "epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=options.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    collator, callbacks = DataCollatorWithPadding(tokenizer), [_Progress()]
    if recipe is not None and recipe.mask_share:
        collator = MaskingCollator(tokenizer, recipe.mask_share, "mask" if tokenizer.mask_token else "attention")
        callbacks.append(collator)
    if recipe is not None and recipe.teacher is not None:
        callbacks.append(DistillationCallback(recipe.teacher))
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=_encode(tokenizer, training, options.max_length, "training"),
        eval_dataset=validation and _encode(tokenizer, validation, options.max_length, "validation"),
        processing_class=tokenizer,
        compute_metrics=_accuracy,
        callbacks=callbacks,
    )
    for talkative in (PrinterCallback, ProgressCallback):  # both write to standard output
        trainer.remove_callback(talkative)
    trainer.train()


def first_batches(
    tokenizer: PreTrainedTokenizerBase, training: tuple[list[Text], list[int]], limit: int, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Two batches of training texts, to match scales with."""
    texts = training[0][:64]
    batches = []
    for begin in range(0, len(texts), 32):
        part = texts[begin : begin + 32]
        columns = [list(column) for column in zip(*(t if isinstance(t, tuple) else (t,) for t in part), strict=True)]
        batch = tokenizer(*columns, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    return batches


def _encode(
    tokenizer: PreTrainedTokenizerBase, examples: tuple[list[Text], list[int]], limit: int, name: str
) -> list[dict[str, Any]]:
    rows, cut = [], 0
    for text, label in zip(*examples, strict=True):
        pair = text if isinstance(text, tuple) else (text,)
        row = tokenizer(*pair, verbose=False)
        if len(row["input_ids"]) > limit:
            cut += 1
            row = tokenizer(*pair, truncation=True, max_length=limit)
        rows.append({**row, "label": label})
    if cut:
        note(f"{cut} of the {len(rows)} {name} texts have more than {limit} tokens and are cut (--max-length).")
    return rows


def _accuracy(output: Any) -> dict[str, float]:
    return {"accuracy": float(numpy.mean(output.predictions.argmax(-1) == output.label_ids))}


class _Progress(TrainerCallback):
    """A bar in terminals, and a note after each epoch."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc="Training", unit="step", disable=None)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.bar.clear()
        note(
            f"Epoch {state.epoch:g} of {args.num_train_epochs:g}: validation accuracy "
            f"{metrics['eval_accuracy']:.1%}, loss {metrics['eval_loss']:.3f}"
        )
        self.bar.refresh()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
