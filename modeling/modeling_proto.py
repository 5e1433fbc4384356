"""proto-lm: texts are classified by their similarity to learned prototypes (arXiv 2311.01732)."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .bcos_state import is_explaining
from .configuration_proto import ProtoConfig
from .modeling_bcos_bert import BcosBertModel
from .modeling_bcos_distilbert import BcosDistilBertModel
from .modeling_bcos_modernbert import BcosModernBertModel
from .modeling_bcos_roberta import BcosRobertaModel
from .proto_explanation import ProtoExplanationMixin
from .proto_losses import LastLayer, class_of_labels, cohesion_and_separation, distances_and_similarities, task_loss

logger = logging.getLogger(__name__)

# Where this code comes from the Hub, `AutoModel` does not know them.
BCOS_MODELS = {
    model.config_class.model_type: model
    for model in (BcosBertModel, BcosRobertaModel, BcosDistilBertModel, BcosModernBertModel)
}
PROTOTYPES_FILE = "prototypes.jsonl"
HUB_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")


@dataclass
class ProtoOutput(ModelOutput):
    """What a model with prototypes computes (arXiv 2311.01732, section 3).

    Args:
        loss: λ0 · `task_loss` + λ1 · `cohesion_loss` + λ2 · `separation_loss`; with labels only, as its parts.
        logits: `(batch, num_labels)`: the last layer of `similarities`, and of nothing else.
        task_loss: cross-entropy, or mean squared error of a regression.
        cohesion_loss: mean distance to the K farthest prototypes of a text's own class.
        separation_loss: minus the mean distance to the K nearest prototypes of the other classes.
        similarities: `(batch, prototypes)`.
        distances: `(batch, prototypes)`.
        token_attention: `(batch, tokens)`: α, adding up to 1 over real tokens; exactly 0 on padding.
        pooled_embedding: `(batch, hidden)`: s = Σ α_t e_t.
        hidden_states: of the encoder, if asked for: `(batch, tokens, hidden)` each.
        attentions: of the encoder, if asked for: `(batch, heads, tokens, tokens)` each.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    task_loss: torch.Tensor | None = None
    cohesion_loss: torch.Tensor | None = None
    separation_loss: torch.Tensor | None = None
    similarities: torch.Tensor | None = None
    distances: torch.Tensor | None = None
    token_attention: torch.Tensor | None = None
    pooled_embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TokenAttention(nn.Module):
    """Pools token embeddings by learned weights: α = softmax(tanh(W e_t + b)·ν) over the real tokens."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, hidden_size)
        self.context = nn.Parameter(torch.empty(hidden_size))

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `(batch, tokens, hidden)` and mask `(batch, tokens)` to s `(batch, hidden)` and α `(batch, tokens)`."""
        scores = torch.tanh(self.projection(embeddings)) @ self.context
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        scores = scores.to(wide)
        if mask is not None:
            scores = scores.masked_fill(~mask.bool(), -torch.inf)
        weights = scores.softmax(-1)
        if is_explaining():
            weights = weights.detach()
        with torch.autocast(embeddings.device.type, enabled=False):
            return torch.bmm(weights.unsqueeze(1), embeddings.to(wide)).squeeze(1), weights


class ProtoPreTrainedModel(PreTrainedModel):
    """Initialisation, and saving with the code and the list of prototypes."""

    config_class = ProtoConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TokenAttention):
            init.normal_(module.projection.weight, std=self.config.initializer_range)
            init.zeros_(module.projection.bias)
            init.normal_(module.context, std=self.config.initializer_range)
        elif isinstance(module, ProtoForSequenceClassification):
            init.normal_(module.prototypes, std=self.config.initializer_range)
            init.copy_(module.classifier.weight, module.initial_classifier_weight())
            if module.classifier.bias is not None:
                values = self.config.regression_values or [0.0]
                init.constant_(module.classifier.bias, sum(values) / len(values))

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves weights, configuration, code (`auto_map`) and, once they are projected, `prototypes.jsonl`.

        That file has a line a prototype, for people and other programs; the model reads the same list from its
        configuration. See `transformers.PreTrainedModel.save_pretrained` for the arguments.

        Raises:
            NotADirectoryError: `save_directory` is a file.
            ValueError: the configuration has become invalid.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"A model is saved to a directory, but {str(save_directory)!r} is a file.")
        self.config.check_proto_fields()
        self.config.auto_map = dict(self.config.proto_auto_map)
        push = kwargs.pop("push_to_hub", False)
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            save_prototypes(Path(save_directory, PROTOTYPES_FILE), self.config.prototypes)
        self._remember_where_saved(os.path.abspath(save_directory))
        if push:
            repo_id = hub.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(repo_id, token=kwargs.get("token"), **hub)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Uploads the model with its code; see `transformers.PreTrainedModel.push_to_hub`."""
        before = (self.name_or_path, getattr(self, "_saved_to", None))
        try:
            pushed = super().push_to_hub(repo_id, *args, **kwargs)
        finally:
            self.name_or_path, self._saved_to = before  # on the way it was saved to a folder that is gone again
        self._remember_where_saved(getattr(getattr(pushed, "repo_url", None), "repo_id", None) or repo_id)
        return pushed

    def _remember_where_saved(self, place: str) -> None:
        """As every B-cos model does: adapters record `name_or_path` as their base."""
        if self.name_or_path in ("", getattr(self, "_saved_to", None)):
            self.name_or_path = self._saved_to = place


class ProtoForSequenceClassification(ProtoExplanationMixin, ProtoPreTrainedModel):
    """An encoder whose pooled embedding is compared with prototypes; the similarities alone decide.

    Args:
        config: see `ProtoConfig`.

    Attributes:
        prototypes (`nn.Parameter`): `(prototypes, hidden)`; prototype j is of class j // (prototypes / classes).
        classifier (`LastLayer`, an `nn.Linear`): from similarities to logits, without bias unless `config.classifier_bias`.

    Raises:
        ValueError: the configuration is invalid, or of an encoder that does not read texts.

    Example:
        >>> model = ProtoForSequenceClassification(ProtoConfig(backbone_config=BertConfig(), num_prototypes=12, num_labels=3))
        >>> explanation = model.explain(**tokenizer("a gripping film", return_tensors="pt"))
        >>> explanation.contributions.shape
        torch.Size([1, 1, 12])
    """

    _auto_class = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = True  # the Trainer passes `num_items_in_batch`

    def __init__(self, config: ProtoConfig) -> None:
        super().__init__(config)
        config.check_proto_fields()
        backbone = BCOS_MODELS.get(config.backbone_config.model_type)
        self.backbone = backbone(config.backbone_config) if backbone else AutoModel.from_config(config.backbone_config)
        if isinstance(getattr(self.backbone, "pooler", None), nn.Module):
            self.backbone.pooler = nn.Identity()  # the token attention takes its place; some encoders call it unasked
        check_reads_texts(type(self.backbone))
        self.config.backbone_config = self.backbone.config
        self.token_attention = TokenAttention(config.hidden_size)
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.hidden_size))
        self.classifier = LastLayer(config.num_prototypes, config.num_labels, bias=config.classifier_bias)
        self.post_init()
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a model; see `transformers.PreTrainedModel.from_pretrained`. A frozen encoder is frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()  # loading makes new parameters
        return loaded

    def _freeze(self) -> None:
        if self.config.freeze_backbone:
            self.backbone.requires_grad_(False)

    @property
    def prototype_classes(self) -> torch.Tensor:
        """`(prototypes,)` class of each prototype; for a regression, its bin."""
        return (
            torch.arange(self.config.num_prototypes, device=self.prototypes.device) // self.config.prototypes_per_class
        )

    def initial_classifier_weight(self) -> torch.Tensor:
        """`(num_labels, prototypes)`: 1 for a prototype's own class, `incorrect_class_weight` for the others.

        For a regression, how far the value of a prototype's bin lies from the mean of all bins.
        """
        weight = self.classifier.weight
        classes = self.prototype_classes.to(weight.device)
        if self.config.is_regression:
            values = torch.tensor(self.config.regression_values or [1.0], dtype=weight.dtype, device=weight.device)
            return ((values - values.mean()) if len(values) > 1 else values)[classes].unsqueeze(0)
        own = classes == torch.arange(self.config.num_labels, device=weight.device)[:, None]
        return torch.where(own, 1.0, float(self.config.incorrect_class_weight)).to(weight.dtype)

    def train(self, mode: bool = True) -> "ProtoForSequenceClassification":
        """Training mode, but for an encoder that is frozen: it embeds a text the same way every time."""
        super().train(mode)
        if mode and not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def embed(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, ModelOutput]:
        """The pooled embeddings `(batch, hidden)`, the token weights `(batch, tokens)` and the encoder's output."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        output = self.backbone(**{name: value for name, value in given.items() if value is not None}, return_dict=True)
        return *self.token_attention(output.last_hidden_state, attention_mask), output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ProtoOutput:
        """Embeds texts, compares them with the prototypes and classifies them.

        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`, 1 for real tokens and 0 for padding.
            token_type_ids: `(batch, tokens)`, where the encoder knows them.
            position_ids: `(batch, tokens)`, where the encoder knows them.
            inputs_embeds: `(batch, tokens, hidden)` instead of `input_ids`.
            labels: `(batch,)` class indices; for a regression, values.
            num_items_in_batch: texts of all batches whose gradients are accumulated; the losses are divided by it.
            output_attentions: return those of the encoder.
            output_hidden_states: return those of the encoder.

        Raises:
            ValueError: an empty batch, distances that are not finite, labels that are no classes or not one a text, or labels
                of a regression without bins.
        """
        texts = input_ids if input_ids is not None else inputs_embeds
        if texts is not None and len(texts) == 0:
            raise ValueError(
                f"The batch is empty: at least one text is needed, got tokens of shape {tuple(texts.shape)}."
            )
        pooled, weights, encoded = self.embed(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        config = self.config
        distances, similarities = distances_and_similarities(pooled, self.prototypes, config.distance, config.epsilon)
        if not torch.compiler.is_compiling():
            self._check_distances(distances)
        with torch.autocast(similarities.device.type, enabled=False):
            logits = self.classifier(similarities)
        losses = {} if labels is None else self._losses(logits, distances, labels, num_items_in_batch)
        return ProtoOutput(
            **losses,
            logits=logits,
            similarities=similarities,
            distances=distances,
            token_attention=weights,
            pooled_embedding=pooled,
            hidden_states=encoded.get("hidden_states"),
            attentions=encoded.get("attentions"),
        )

    def _losses(
        self, logits: torch.Tensor, distances: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        config, labels = self.config, labels.to(logits.device)
        if labels.numel() != len(logits):
            raise ValueError(
                f"`labels` must be one a text: {len(logits)} texts, but labels of shape {tuple(labels.shape)}."
            )
        if not torch.compiler.is_compiling():
            self._warn_of_moving_prototypes()
        boundaries = None
        if config.is_regression:
            if config.regression_boundaries is None:
                raise ValueError(
                    "A regression needs bins of its targets in the part of classes: ProtoConfig(regression_boundaries=…, "
                    "regression_values=…); bcos_transformers.regression_bins(targets, count) computes both."
                )
            boundaries = torch.tensor(config.regression_boundaries, device=logits.device)
        elif not torch.compiler.is_compiling():
            _check_labels(labels, config.num_labels)
        classes = class_of_labels(labels, boundaries)
        own = self.prototype_classes.to(classes.device) == classes[:, None]
        cohesion, separation = cohesion_and_separation(distances, own, config.cohesion_separation_count)
        parts = {
            "task_loss": task_loss(logits, labels, config.is_regression),
            "cohesion_loss": cohesion.mean(),
            "separation_loss": separation.mean(),
        }
        if num_items is not None:
            num_items = num_items.to(logits.device) if torch.is_tensor(num_items) else num_items
            parts = {name: part * len(labels) / num_items for name, part in parts.items()}
        weights = (config.lambda_ce, config.lambda_cohesion, config.lambda_separation)
        return {"loss": sum(w * part for w, part in zip(weights, parts.values(), strict=True)), **parts}

    def _warn_of_moving_prototypes(self) -> None:
        if self.config.prototypes is None or not self.training:
            return
        if any(p.requires_grad and not name.startswith("classifier.") for name, p in self.named_parameters()):
            logger.warning_once(
                "Training moves the prototypes away from the texts in config.prototypes: call train_last_layer_only(model), or "
                "project again at the end (ProtoProjectionCallback)."
            )

    def _check_distances(self, distances: torch.Tensor) -> None:
        finite = torch.isfinite(distances)
        if finite.all():
            return
        rows, prototypes = (~finite).any(1).nonzero().flatten(), (~finite).any(0).nonzero().flatten()
        raise ValueError(
            f"The distances of rows {rows.tolist()[:10]} to prototypes {prototypes.tolist()[:10]} are not finite. Known "
            "causes: weights that are NaN (a learning rate that is too high), float16 overflow, or a row whose attention "
            "mask is 0 everywhere."
        )


def check_reads_texts(encoder: type[PreTrainedModel]) -> None:
    """Refuses encoders of images or sound.

    Raises:
        ValueError: it is one.
    """
    if encoder.main_input_name != "input_ids":
        raise ValueError(
            f"`backbone_config` must be of a text encoder, but {encoder.__name__} reads `{encoder.main_input_name}`."
        )


def _check_labels(labels: torch.Tensor, num_labels: int) -> None:
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= num_labels:
        raise ValueError(
            f"`labels` must be class indices in [0, {num_labels}), one a text, got {labels.dtype} from {labels.min().item()} "
            f"to {labels.max().item()}."
        )


def save_prototypes(file: Path, prototypes: list[dict[str, Any]] | None) -> None:
    """Writes what the prototypes are, a line each, at once; without a list, removes that of a model saved here before."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in prototypes or []]
    if not lines:
        file.unlink(missing_ok=True)
        return
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, file)
