"""The arguments of run_proto_classification.py besides the data: the model with prototypes and its training."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from classification_arguments import FinetuningArguments

DISTANCES = ("l2", "cosine")


@dataclass
class ProtoArguments:
    """Which encoder, and the prototypes over it."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "An encoder: directory or Hub id. Default: the embedded MiniLM."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id that the model card names as its base, for a model from a directory."}
    )
    num_prototypes: int = field(
        default=12, metadata={"help": "A multiple of the number of classes, or of --num_bins."}
    )
    distance: str = field(
        default="l2", metadata={"help": "l2 or cosine; over a B-cos encoder, shares split over tokens with cosine."}
    )
    num_cohesion_separation: str = field(
        default="0.5",
        metadata={"help": "K of the losses: a count of prototypes (3), or a share of those of a class (0.5)."},
    )
    lambda_ce: float = field(default=0.5, metadata={"help": "Weight of cross-entropy, or of mean squared error."})
    lambda_cohesion: float = field(default=0.25, metadata={"help": "Weight of the distance to the own class."})
    lambda_separation: float = field(default=0.25, metadata={"help": "Weight of minus the distance to the others."})
    epsilon: float | None = field(
        default=None, metadata={"help": "Of the similarity 1 / (distance + epsilon). Default: 1e-4; regressions 1."}
    )
    classifier_bias: bool | None = field(
        default=None, metadata={"help": "Give the last layer a bias. Default: for regressions only."}
    )
    prototype_learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate of prototypes, token attention and last layer."}
    )
    project_at: float = field(
        default=0.8,
        metadata={
            "help": "Share of training after which prototypes become training texts; the rest trains the last layer."
        },
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Do not train the encoder."})
    regression: bool = field(
        default=False, metadata={"help": "Labels are values to predict. A column of floats always holds such."}
    )
    num_bins: int = field(
        default=4, metadata={"help": "Of a regression: bins of the targets, which play the part of classes."}
    )
    bcos: bool = field(default=False, metadata={"help": "Make the encoder a B-cos one; try --learning_rate 2e-4."})
    b: float = field(default=1.25, metadata={"help": "With --bcos: alignment pressure B, at least 1."})
    normalize_weights: bool = field(
        default=False, metadata={"help": "With --bcos: divide weight rows by their norms."}
    )
    qk_bias: bool = field(default=True, metadata={"help": "With --bcos: keep the biases of queries and keys."})
    match_scales: bool = field(
        default=True,
        metadata={"help": "With --bcos: scale weights so that outputs are as large as before conversion."},
    )
    compare: bool = field(default=False, metadata={"help": "Also fine-tune and measure the plain encoder."})
    plain_learning_rate: float = field(
        default=5e-5, metadata={"help": "With --compare: peak learning rate of the plain encoder."}
    )

    @property
    def k(self) -> int | float:
        """`num_cohesion_separation` as a number.

        Raises:
            SystemExit: it is none.
        """
        try:
            return int(self.num_cohesion_separation)
        except ValueError:
            pass
        try:
            return float(self.num_cohesion_separation)
        except ValueError:
            raise SystemExit(
                "--num_cohesion_separation is a count of prototypes (3) or a share of those of a class (0.5), got "
                f"{self.num_cohesion_separation!r}."
            ) from None

    def fields(self, regression: bool) -> dict:
        """What `from_pretrained_proto` gets."""
        names = ("num_prototypes", "distance", "lambda_ce", "lambda_cohesion", "lambda_separation", "epsilon")
        fields = {name: getattr(self, name) for name in (*names, "freeze_backbone")}
        fields["num_cohesion_separation"] = self.k
        fields["classifier_bias"] = regression if self.classifier_bias is None else self.classifier_bias
        if self.bcos:
            fields |= {name: getattr(self, name) for name in ("b", "normalize_weights", "qk_bias")} | {"bcos": True}
        return fields


@dataclass
class ProtoTrainingArguments(FinetuningArguments):
    """TrainingArguments of transformers, with defaults that suit the embedded data."""

    output_dir: str | None = field(default="runs/prototypes", metadata={"help": "Where the model and the page go."})
    num_train_epochs: float = field(default=6.0, metadata={"help": "Passes over the training data."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of the encoder."})


def check_arguments(proto_args: ProtoArguments, args: ProtoTrainingArguments) -> None:
    """Says before anything is loaded what is wrong with the arguments themselves.

    Raises:
        SystemExit: an invalid argument, or one that the two stages of training exclude.
    """
    if not 0 < proto_args.project_at <= 1:
        raise SystemExit(f"--project_at must lie in (0, 1], got {proto_args.project_at}.")
    if proto_args.distance not in DISTANCES:
        raise SystemExit(f"--distance must be one of {', '.join(DISTANCES)}, got {proto_args.distance!r}.")
    for name in ("prototype_learning_rate", "plain_learning_rate"):
        if getattr(proto_args, name) < 0:
            raise SystemExit(f"--{name} must be a number of at least 0, got {getattr(proto_args, name)}.")
    if args.load_best_model_at_end:
        raise SystemExit(
            "--load_best_model_at_end may bring back weights from before the projection, without the training of the last "
            "layer that follows it: leave it out."
        )
    if args.label_smoothing_factor:
        raise SystemExit(
            f"With --label_smoothing_factor {args.label_smoothing_factor} the Trainer computes the loss itself, without "
            "cohesion and separation: set it to 0."
        )
    if args.resume_from_checkpoint and not Path(args.resume_from_checkpoint).is_dir():
        raise SystemExit(f"--resume_from_checkpoint names no directory: {args.resume_from_checkpoint}")
    proto_args.k  # noqa: B018 - says what is wrong with it


def setup_in_words(proto_args: ProtoArguments, args: ProtoTrainingArguments) -> str:
    """How the model was made, for its card."""
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    parts = [
        f"Seed {args.seed}, {length}, learning rate {args.learning_rate:g} (encoder{', frozen' * proto_args.freeze_backbone}) "
        f"and {proto_args.prototype_learning_rate:g} (prototypes, token attention, last layer), batch {args.train_batch_size}",
        f"λ = {proto_args.lambda_ce:g}, {proto_args.lambda_cohesion:g}, {proto_args.lambda_separation:g}; "
        f"K = {proto_args.k}; distance {proto_args.distance}",
        f"prototypes projected onto training texts after {proto_args.project_at:.0%} of training",
    ]
    if proto_args.bcos:
        parts.append(f"the encoder was converted to a B-cos one with B = {proto_args.b:g}")
    parts.append(f"{args.device.type}, torch {torch.__version__}, transformers {transformers.__version__}")
    return "; ".join(parts) + "."
