"""Configuration of proto-lm: prototypes over any encoder."""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_bcos_bert import BcosBertConfig
from .configuration_bcos_distilbert import BcosDistilBertConfig
from .configuration_bcos_modernbert import BcosModernBertConfig
from .configuration_bcos_roberta import BcosRobertaConfig

DISTANCES = ("l2", "cosine")
# Where this code comes from the Hub, `AutoConfig` does not know them.
BCOS_BACKBONES = {
    config.model_type: config
    for config in (BcosBertConfig, BcosRobertaConfig, BcosDistilBertConfig, BcosModernBertConfig)
}
NOT_OF_A_BACKBONE = ("auto_map", "architectures", "custom_pipelines", "transformers_version")


@dataclass(kw_only=True)
class ProtoConfig(PretrainedConfig):
    """An encoder and the prototypes that classify what it embeds (arXiv 2311.01732, section 3).

    Args:
        backbone_config: configuration of the encoder, or a dict of it with its `model_type`. The encoders of this package
            (`BcosBertConfig`, …) give prototype shares that split over the input tokens, with `distance="cosine"`.
        num_prototypes: N, a multiple of the number of classes: prototype j is of the class j // (N / classes).
        num_cohesion_separation: K of the losses; an int counts prototypes, a float is a share of a class's prototypes.
        lambda_ce: weight λ0 of the task's loss: cross-entropy, or the mean squared error of a regression.
        lambda_cohesion: weight λ1 of the mean distance to the K farthest prototypes of a text's own class.
        lambda_separation: weight λ2 of minus the mean distance to the K nearest prototypes of the other classes.
        distance: `"l2"`, with the similarity 1 / (distance + ε), or `"cosine"`: the distance is 1 − cos, the similarity cos.
        epsilon: ε; None is 1e-4, or 1 for a regression, where a prototype's own text, at distance 0, would be thousands of times
            more similar to it than all others and determine the last layer alone.
        freeze_backbone: train the prototypes, the token attention and the last layer only.
        incorrect_class_weight: initial weight of a prototype for the classes that it is not of; 1 for its own.
        classifier_bias: give the last layer a bias, which belongs to no prototype.
        regression_boundaries: for a regression (`num_labels=1`), the ascending values that part the targets into bins,
            which play the part of the classes; `bcos_transformers.regression_bins` makes quantile bins.
        regression_values: a value inside each bin, that of its prototypes until they are projected onto texts.
        prototypes: what the prototypes are, once they are projected: for each a dict with `text`, `label` (its name; for a
            regression the value), `index` in the training data, and `distance` from the text before projection.
        initializer_range: standard deviation of initial weights.

    Attributes:
        num_classes: number of classes, or of the bins of a regression.
        prototypes_per_class: N / classes.
        cohesion_separation_count: K as a count.

    Raises:
        ValueError: a field has an invalid value, or fields do not fit each other.

    Example:
        >>> ProtoConfig(backbone_config=BertConfig(), num_prototypes=12, num_labels=3).prototypes_per_class
        4
    """

    model_type: ClassVar[str] = "proto-lm"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}
    _auto_class: ClassVar[str] = "AutoConfig"
    proto_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_proto.ProtoConfig",
        "AutoModelForSequenceClassification": "modeling_proto.ProtoForSequenceClassification",
    }
    # What evaluation and prediction with the Trainer leave out, so that the predictions are the logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("task_loss", "cohesion_loss", "separation_loss", "similarities", "distances"),
        *("token_attention", "pooled_embedding", "hidden_states", "attentions"),
    ]

    backbone_config: dict[str, Any] | PretrainedConfig | None = None
    num_prototypes: int = 12
    num_cohesion_separation: int | float = 0.5
    lambda_ce: float | int = 0.5
    lambda_cohesion: float | int = 0.25
    lambda_separation: float | int = 0.25
    distance: Literal["l2", "cosine"] = "l2"
    epsilon: float | int | None = None
    freeze_backbone: bool = False
    incorrect_class_weight: float | int = -0.5
    classifier_bias: bool = False
    regression_boundaries: list[float] | None = None
    regression_values: list[float] | None = None
    prototypes: list[dict[str, Any]] | None = None
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.backbone_config = _backbone(self.backbone_config)
        super().__post_init__(**kwargs)
        self.check_proto_fields()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from a dict; see `transformers.PretrainedConfig.from_dict`.

        Raises:
            ValueError: it is of another kind of model.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"This is a {kind!r} checkpoint, which has no prototypes yet: bcos_transformers.from_pretrained_proto puts "
                "some over it."
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_classes(self) -> int:
        if self.is_regression:
            return 1 if self.regression_boundaries is None else len(self.regression_boundaries) + 1
        return self.num_labels

    @property
    def is_regression(self) -> bool:
        return self.num_labels == 1

    @property
    def prototypes_per_class(self) -> int:
        return self.num_prototypes // self.num_classes

    @property
    def cohesion_separation_count(self) -> int:
        if isinstance(self.num_cohesion_separation, int):
            return self.num_cohesion_separation
        return max(1, round(self.num_cohesion_separation * self.prototypes_per_class))

    # What is asked of the configuration of any text model.
    @property
    def hidden_size(self) -> int:
        return self.backbone_config.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.backbone_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.backbone_config.vocab_size = value  # as `resize_token_embeddings` does

    @property
    def pad_token_id(self) -> int | None:
        return getattr(self.backbone_config, "pad_token_id", None)

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self.backbone_config.pad_token_id = value

    @property
    def is_bcos(self) -> bool:
        """Whether the encoder is a B-cos one."""
        return self.backbone_config.model_type in BCOS_BACKBONES

    def check_proto_fields(self) -> None:
        """Refuses invalid values; called again wherever a model is built or saved."""
        if self.problem_type == "multi_label_classification":
            raise ValueError(
                "A prototype is of one class, so `problem_type='multi_label_classification'` is not possible."
            )
        if self.is_regression and self.problem_type is None:
            self.problem_type = "regression"  # pipelines ask for it
        if self.problem_type is not None and (self.problem_type == "regression") != self.is_regression:
            raise ValueError(
                f"`problem_type={self.problem_type!r}` does not fit num_labels={self.num_labels}: a regression has one output, "
                "a classification has at least two labels."
            )
        _check_count("num_prototypes", self.num_prototypes)
        if self.distance not in DISTANCES:
            raise ValueError(f"`distance` must be one of {DISTANCES}, got {self.distance!r}.")
        if self.epsilon is None:
            self.epsilon = 1.0 if self.is_regression else 1e-4
        for name in ("lambda_ce", "lambda_cohesion", "lambda_separation", "epsilon"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"`{name}` must be a number of at least 0, got {value!r}.")
        if self.epsilon == 0:
            raise ValueError(
                "`epsilon` must be larger than 0: a text at a prototype would be infinitely similar to it."
            )
        if not _is_number(self.incorrect_class_weight):
            raise ValueError(f"`incorrect_class_weight` must be a number, got {self.incorrect_class_weight!r}.")
        self._check_bins()
        classes = "bins" if self.is_regression else "classes"
        if self.num_prototypes < self.num_classes:
            raise ValueError(
                f"{self.num_prototypes} prototypes are fewer than the {self.num_classes} {classes}: every one needs a "
                f"prototype. Set `num_prototypes` to a multiple of {self.num_classes}."
            )
        if self.num_prototypes % self.num_classes:
            raise ValueError(
                f"`num_prototypes`={self.num_prototypes} is not divisible by the {self.num_classes} {classes}, which have "
                f"equally many each: set it to {self.num_classes * self.prototypes_per_class} or "
                f"{self.num_classes * (self.prototypes_per_class + 1)}."
            )
        self._check_k(classes)
        if self.prototypes is not None and len(self.prototypes) != self.num_prototypes:
            raise ValueError(
                f"`prototypes` describes {len(self.prototypes)} prototypes, but `num_prototypes` is {self.num_prototypes}."
            )

    def _check_k(self, classes: str) -> None:
        k = self.num_cohesion_separation
        if isinstance(k, bool) or not isinstance(k, int | float):
            raise ValueError(f"`num_cohesion_separation` must be a count (int) or a share (float), got {k!r}.")
        if isinstance(k, float) and not 0 < k <= 1:
            raise ValueError(
                f"`num_cohesion_separation` as a share must lie in (0, 1], got {k}; a count of prototypes is an int."
            )
        if isinstance(k, int) and not 1 <= k <= self.prototypes_per_class:
            raise ValueError(
                f"`num_cohesion_separation`={k} must be between 1 and the {self.prototypes_per_class} prototypes that each "
                f"of the {self.num_classes} {classes} has."
            )

    def _check_bins(self) -> None:
        bounds, values = self.regression_boundaries, self.regression_values
        if not self.is_regression:
            if bounds is not None or values is not None:
                raise ValueError(
                    f"`regression_boundaries` and `regression_values` are for regressions (num_labels=1), but there are "
                    f"{self.num_labels} labels."
                )
            return
        if bounds is None:
            return
        bounds = [float(bound) for bound in bounds]
        if any(not low < high for low, high in zip(bounds, bounds[1:], strict=False)) or not all(
            map(math.isfinite, bounds)
        ):
            raise ValueError(f"`regression_boundaries` must ascend, got {bounds}.")
        if values is None or len(values) != len(bounds) + 1:
            raise ValueError(
                f"`regression_values` must have a value for each of the {len(bounds) + 1} bins, got {values!r}."
            )
        self.regression_boundaries, self.regression_values = bounds, [float(value) for value in values]


def _backbone(given: Any) -> PretrainedConfig:
    """The encoder's configuration as an object of its own."""
    if isinstance(given, PretrainedConfig):
        config = copy.deepcopy(given)
    elif isinstance(given, dict):
        fields = {name: value for name, value in given.items() if name not in NOT_OF_A_BACKBONE}
        kind = fields.pop("model_type", None)
        if kind not in BCOS_BACKBONES and kind not in CONFIG_MAPPING:
            raise ValueError(
                f"`backbone_config` has the `model_type` {kind!r}, which is neither an architecture of transformers nor one "
                f"of {sorted(BCOS_BACKBONES)}."
            )
        config = (BCOS_BACKBONES.get(kind) or CONFIG_MAPPING[kind]).from_dict(fields)
    elif given is None:
        config = CONFIG_MAPPING["bert"]()  # as transformers builds every configuration once without arguments
    else:
        raise ValueError(f"`backbone_config` must be a configuration or a dict of one, got {type(given).__name__}.")
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise ValueError(f"`backbone_config` must be of a text encoder, got {type(config).__name__}.")
    if config.model_type.startswith("bcos-") and config.model_type not in BCOS_BACKBONES:
        raise ValueError(
            f"B-cos backbones are encoders ({', '.join(sorted(BCOS_BACKBONES))}), got {config.model_type}."
        )
    return config


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
