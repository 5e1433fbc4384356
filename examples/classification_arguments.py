"""The arguments of run_classification.py besides the data: the model, its training, and the mistakes they may hold."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, TrainingArguments

from bcos_transformers.registration import ARCHITECTURES

CONVENTIONAL = "_conventional"  # in the output directory; the Trainer's push leaves out what begins like that


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
        default=True,
        metadata={
            "help": "After conversion, scale weights so that outputs are as large as before. Has no effect with "
            "--normalize_weights, nor with --anneal_fraction, which starts at B = 1, where they are."
        },
    )
    mask_share: float = field(default=0.5, metadata={"help": "Share of training texts of which tokens are hidden."})
    distil: bool = field(
        default=True, metadata={"help": "Fine-tune the conventional model first; start from it and learn from it."}
    )
    teacher_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A fine-tuned conventional classifier of the same labels, instead of making one. The B-cos model is "
            "converted from it, so it goes without --model_name_or_path."
        },
    )
    teacher_learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate of conventional fine-tuning."}
    )
    anneal_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Raise B from 1 to its value over this share of training; 0 starts with it. Scales are not matched "
            "then: they would be those of the last B, not of the first."
        },
    )
    compare: bool = field(
        default=False,
        metadata={"help": "Also measure the conventional model: the given teacher, or one fine-tuned on the data."},
    )

    @property
    def bcos_fields(self) -> dict:
        """The B-cos fields of the configuration."""
        names = ("b", "normalize_weights", "classifier_loss", "qk_bias")
        return {name: getattr(self, name) for name in names}

    @property
    def makes_teacher(self) -> bool:
        """Whether a conventional model is fine-tuned first."""
        return not self.teacher_name_or_path and (self.distil or self.compare)

    @property
    def matches_scales(self) -> bool:
        """Whether scales are matched after conversion."""
        return self.match_scales and not self.normalize_weights and not self.anneal_fraction


@dataclass
class FinetuningArguments(TrainingArguments):
    """TrainingArguments of transformers, with defaults that suit the embedded data."""

    output_dir: str | None = field(default="runs/reviews", metadata={"help": "Where the model and the page go."})
    num_train_epochs: float = field(default=6.0, metadata={"help": "Passes over the training data."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Texts a training batch."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Texts an evaluation batch."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of linear warm-up; below 1 a share of all."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on the validation data."})
    save_strategy: str = field(default="no", metadata={"help": "When to write checkpoints."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between lines of the log."})


def check_arguments(model_args: ModelArguments, args: FinetuningArguments) -> None:
    """Says before anything is trained what would fail after the teacher is.

    Raises:
        SystemExit: arguments that exclude each other, a checkpoint to resume from that is not there or is of no training
            of this run, or what a Trainer cannot do while the model learns from a teacher.
    """
    if model_args.teacher_name_or_path and model_args.model_name_or_path:
        raise SystemExit(
            "Name either --teacher_name_or_path, from which the B-cos model is converted, or --model_name_or_path, "
            "from which a teacher is made."
        )
    if model_args.teacher_name_or_path and not model_args.distil:
        raise SystemExit(
            "--teacher_name_or_path names a model to learn from, --no_distil learns from none: leave out one. "
            "Without distillation, the model to convert is --model_name_or_path."
        )
    resume = args.resume_from_checkpoint
    if resume and not Path(resume).is_dir():
        raise SystemExit(f"--resume_from_checkpoint names no directory: {resume}")
    if resumes_teacher(args) and not model_args.makes_teacher:
        raise SystemExit(f"--resume_from_checkpoint {resume} is of the teacher, but this run trains none.")
    if model_args.distil and args.label_smoothing_factor:
        raise SystemExit(
            f"With --label_smoothing_factor {args.label_smoothing_factor} the Trainer computes the loss itself, without "
            "the teacher: set it to 0, or add --no_distil."
        )
    if model_args.distil and args.n_gpu > 1:
        raise SystemExit("Several GPUs in one process cannot share a teacher: start with `accelerate launch`.")


def resumes_teacher(args: FinetuningArguments) -> bool:
    """Whether the checkpoint to resume from is one of the teacher's training."""
    folder = (Path(args.output_dir) / CONVENTIONAL).resolve()
    return bool(args.resume_from_checkpoint) and folder in Path(args.resume_from_checkpoint).resolve().parents


def check_source(model_args: ModelArguments, source: str, labels: list[str]) -> None:
    """Says before anything is trained if `source` cannot be converted, or is a teacher of other labels.

    Raises:
        SystemExit: an architecture that is not supported, or other labels.
        ValueError: an invalid B-cos field.
    """
    fields, _ = PreTrainedConfig.get_config_dict(source)
    kind = fields.get("model_type")
    if kind not in ARCHITECTURES:
        raise SystemExit(f"{source} is of the type {kind!r}; can be converted: {', '.join(sorted(ARCHITECTURES))}.")
    own = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    ARCHITECTURES[kind].config(**{**own, **model_args.bcos_fields})
    if model_args.teacher_name_or_path:
        config = AutoConfig.from_pretrained(source)
        names = [str(config.id2label[i]) for i in range(config.num_labels)]
        if names != labels:
            raise SystemExit(
                f"The teacher's labels are {', '.join(names)}; those of the data are {', '.join(labels)}. Where they mean "
                "the same in the same order, call those of the data so: --class_names."
            )


def setup_in_words(model_args: ModelArguments, args: FinetuningArguments) -> str:
    """How the model was made, for its card."""
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    parts = [f"Seed {args.seed}, {length}, learning rate {args.learning_rate:g}, batch {args.train_batch_size}"]
    given = model_args.teacher_name_or_path
    if given:
        teacher = Path(given).resolve().name if Path(given).is_dir() else given
        parts.append(f"converted and distilled from the given conventional classifier {teacher}")
    elif model_args.distil:
        parts.append(
            "converted and distilled from the conventional fine-tune (learning rate "
            f"{model_args.teacher_learning_rate:g})"
        )
    else:
        parts.append("without distillation")
    if model_args.mask_share:
        parts.append(f"tokens hidden in {model_args.mask_share:.0%} of the training texts")
    parts.append(f"scales {'' if model_args.matches_scales else 'not '}matched after conversion")
    if model_args.anneal_fraction:
        parts.append(f"B raised from 1 over the first {model_args.anneal_fraction:.0%} of training")
    parts.append(f"{args.device.type}, torch {torch.__version__}, transformers {transformers.__version__}")
    return "; ".join(parts) + "."
