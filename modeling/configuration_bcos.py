"""The configuration fields that turn a transformers configuration into a B-cos one."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .bcos_layers import check_b

CLASSIFIER_LOSSES = ("bce", "ce")


@dataclass(kw_only=True)
class BcosConfigMixin:
    """B-cos fields, to be put in front of a transformers configuration class.

    Args:
        b: alignment pressure B ≥ 1 of every B-cos layer; 1 makes the layers linear (arXiv 2502.12992, section 3.1).
        b_per_layer: one B per encoder or decoder layer, first to last; overrides `b` there. Heads keep `b`.
        normalize_weights: divide every weight row of a B-cos layer by its norm.
        classifier_loss: loss of sequence and token classifiers with one label each: `"bce"` is binary cross-entropy on
            one-hot targets (section 3.2), `"ce"` the usual cross-entropy. Regression and multi-label problems
            (`problem_type`) keep their transformers losses.
        bcos_lm_head: make the language-model output layer a B-cos layer instead of a linear one.
        qk_bias: keep the biases of query and key projections; they do not harm exactness.
        mask_token_id: id of the mask token, so that a masked-LM explanation finds the position to explain.
        converted_from: Hub id of the conventional checkpoint, for the model card; no weights are loaded from it.

    Raises:
        ValueError: a field has an invalid value.
    """

    b: float | int = 1.5
    b_per_layer: list[float | int] | None = None
    normalize_weights: bool = True
    classifier_loss: Literal["bce", "ce"] = "bce"
    bcos_lm_head: bool = False
    qk_bias: bool = False
    mask_token_id: int | None = None
    converted_from: str | None = None

    # Every class of the architecture by auto class, e.g. {"AutoModel": "modeling_bcos_bert.BcosBertModel"}.
    bcos_auto_map: ClassVar[dict[str, str]] = {}

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_bcos_fields()

    def check_bcos_fields(self) -> None:
        """Normalises the B-cos fields and refuses invalid values; called again wherever a model is built or saved."""
        self.b = check_b(self.b)
        if getattr(self, "quantization_config", None) is not None:
            raise ValueError(
                "B-cos models cannot be quantized: their layers need the norms of the weights. Load the model in "
                "float32, bfloat16 or float16, without `quantization_config`."
            )
        if self.b_per_layer is not None:
            if not isinstance(self.b_per_layer, (list, tuple)):
                raise ValueError(f"`b_per_layer` must be a list with one B per layer, got {self.b_per_layer!r}.")
            if len(self.b_per_layer) != self.num_hidden_layers:
                raise ValueError(
                    f"`b_per_layer` must have one value for each of the {self.num_hidden_layers} layers, "
                    f"got {len(self.b_per_layer)}: {self.b_per_layer!r}."
                )
            self.b_per_layer = [check_b(b, f"b_per_layer[{i}]") for i, b in enumerate(self.b_per_layer)]
        for name in ("normalize_weights", "bcos_lm_head", "qk_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        if self.classifier_loss not in CLASSIFIER_LOSSES:
            raise ValueError(f"`classifier_loss` must be one of {CLASSIFIER_LOSSES}, got {self.classifier_loss!r}.")
        token = self.mask_token_id
        if token is not None and (not isinstance(token, int) or isinstance(token, bool) or token < 0):
            raise ValueError(f"`mask_token_id` must be a token id or None, got {token!r}.")

    def b_of_layer(self, layer: int | None) -> float:
        """B of a layer of the encoder or decoder stack, or (None) of what lies outside the stack."""
        if layer is None or self.b_per_layer is None:
            return self.b
        return self.b_per_layer[layer]


def check_encoder(config, name: str, position_embedding_type: str | None) -> None:
    """Refuses what an encoder of BERT's kind cannot be here.

    Raises:
        ValueError: relative position embeddings, or a decoder with cross-attention.
    """
    if position_embedding_type not in (None, "absolute"):
        raise ValueError(
            f"B-cos {name} supports absolute position embeddings only, got "
            f"position_embedding_type={position_embedding_type!r}: transformers 5 no longer computes relative ones, so "
            "such a checkpoint would be silently wrong."
        )
    if config.is_decoder or config.add_cross_attention:
        raise ValueError(f"B-cos {name} is an encoder: `is_decoder` and `add_cross_attention` must be False.")
