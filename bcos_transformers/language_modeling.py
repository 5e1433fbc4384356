"""What examples/run_clm.py and examples/run_mlm.py share: arguments, perplexity, and explanations to read."""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from bcos_transformers.data.packing import DataArguments
from bcos_transformers.explanations.targets import token_name
from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.extras import require
from bcos_transformers.hub import push_to_hub
from bcos_transformers.hub_folder import save_card
from bcos_transformers.model_card import CardFacts
from bcos_transformers.modeling.bcos_generation import explain_generation

try:
    from datasets import Dataset
except ImportError as error:
    raise ImportError("Language-model training needs datasets: pip install 'bcos-transformers[train]'.") from error

LONGEST_DEFAULT_BLOCK = 1024


@dataclass
class ModelArguments:
    """Which model, and how it becomes a B-cos model."""

    model_name_or_path: str = field(metadata={"help": "Conventional language model: directory or Hub id."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Its tokenizer, if it lies elsewhere."})
    b: float = field(default=1.25, metadata={"help": "Alignment pressure B, at least 1."})
    normalize_weights: bool = field(default=True, metadata={"help": "Divide weight rows by their norms."})
    bcos_lm_head: bool = field(default=False, metadata={"help": "Make the output layer a B-cos layer too."})
    qk_bias: bool = field(default=False, metadata={"help": "Keep the biases of queries and keys."})
    anneal_fraction: float = field(
        default=0.0, metadata={"help": "Raise B from 1 to its value over this share of training; 0 starts with it."}
    )

    def bcos_fields(self) -> dict[str, float | bool]:
        """The fields of the B-cos configuration."""
        return {name: getattr(self, name) for name in ("b", "normalize_weights", "bcos_lm_head", "qk_bias")}


@dataclass
class PretrainingArguments(TrainingArguments):
    """TrainingArguments of transformers, with defaults for continued training of a language model."""

    output_dir: str | None = field(default="runs/language-model", metadata={"help": "Where the model goes."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training data."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of linear warm-up; below 1 a share of all."})
    save_strategy: str = field(default="no", metadata={"help": "When to write checkpoints."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between lines of the log."})


def choose_block_size(model_args: ModelArguments, args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> int:
    """The block size that was asked for, or the longest that model and tokenizer can read, up to 1024.

    Raises:
        ValueError: the model cannot read blocks so long, or has no embedding for some token of the tokenizer.
    """
    config = AutoConfig.from_pretrained(model_args.model_name_or_path)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the model embeds {config.vocab_size}: they do not fit."
        )
    longest = min(config.max_position_embeddings, tokenizer.model_max_length)
    if config.model_type == "roberta":  # its first positions are for padding
        longest = min(longest, config.max_position_embeddings - config.pad_token_id - 1)
    if args.block_size is None:
        return min(longest, LONGEST_DEFAULT_BLOCK)
    if not 2 <= args.block_size <= longest:
        raise ValueError(
            f"--block_size {args.block_size} is not between 2 and the {longest} tokens that the model can read."
        )
    return args.block_size


def perplexity(trainer: Trainer, blocks: Dataset) -> float:
    """The exponential of the mean loss of a token on blocks with labels; infinite where that overflows."""
    loss = trainer.evaluate(blocks)["eval_loss"]
    return math.inf if loss > math.log(sys.float_info.max) else math.exp(loss)


def conventional_trainer(model: PreTrainedModel, args: TrainingArguments, collator: Callable) -> Trainer:
    """A Trainer that evaluates the conventional model on the same device and in the same precision."""
    args = copy.copy(args)
    args.push_to_hub = False
    return Trainer(model=model, args=args, data_collator=collator)


def beginning(blocks: Dataset, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """The first tokens of the first block that has text there, as text.

    Raises:
        ValueError: no block has any.
    """
    for block in blocks:
        text = tokenizer.decode(block["input_ids"][:tokens], skip_special_tokens=True).strip()
        if text:
            return text
    raise ValueError("The validation data have no text to explain.")


def generation_table(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, new_tokens: int = 8, strongest: int = 3
):
    """A short continuation, and for each of its tokens the tokens before it that contributed most.

    Returns:
        A `rich.table.Table`.
    """
    table = require("rich.table", "viz").Table("token", "logit", "strongest contributions", "residual")
    padding = model.generation_config.pad_token_id
    out = explain_generation(
        model,
        tokenizer(text, return_tensors="pt").to(model.device),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id if padding is None else padding,
    )
    for new, (token, scores) in enumerate(zip(out.target[0].tolist(), out.contributions[0], strict=True)):
        if token < 0:
            break
        largest = scores.abs().topk(min(strongest, int((scores != 0).sum()))).indices.tolist()
        names = [f"{token_name(tokenizer, int(out.sequences[0, i]))} {scores[i]:+.2f}" for i in largest]
        table.add_row(
            token_name(tokenizer, token),
            f"{out.values[0, new]:+.2f}",
            ", ".join(names),
            f"{out.residual[0, new]:+.0e}",
        )
    return table


def masked_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, int, str]:
    """Replaces a word in the middle of a text by the mask token: one that is a single token, if there is one.

    Returns:
        The text, the position of the mask token among its tokens, and what stood there.
    """
    encoded = tokenizer(text, return_offsets_mapping=True)
    words = encoded.word_ids()
    places = [
        (word, span) for word, span in zip(words, encoded.offset_mapping, strict=True) if text[slice(*span)].strip()
    ]
    whole = [span for word, span in places if words.count(word) == 1 and text[slice(*span)].strip().isalpha()]
    spans = whole or [span for _, span in places]
    begin, end = spans[len(spans) // 2]
    word = text[begin:end].strip()
    begin = end - len(text[begin:end].lstrip())
    masked = f"{text[:begin]}{tokenizer.mask_token}{text[end:]}"
    encoded = tokenizer(masked, return_offsets_mapping=True)
    tokens = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    position = next(
        i for i, (token, span) in enumerate(tokens) if token == tokenizer.mask_token_id and span[1] > begin
    )
    return masked, position, word


def reload(model_class, folder: str, device: torch.device) -> PreTrainedModel:
    """The saved model, loaded anew in float32: after training with bf16 or fp16 the one in memory still rounds."""
    return model_class.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def card_and_push(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trainer: Trainer,
    data_args: DataArguments,
    conversion: str,
    perplexities: dict[str, float],
    explanation: TextExplanation,
) -> str | None:
    """Writes the model's card beside it; with `--push_to_hub` pushes all of it in one commit.

    Returns:
        The address of the commit, if there is one.
    """
    args = trainer.args
    files = [Path(file).name for file in data_args.train_file or []]
    after = perplexities["after training"]
    others = "; ".join(f"{name}: {value:,.2f}" for name, value in perplexities.items() if name != "after training")
    facts = CardFacts(
        name=args.hub_model_id or Path(args.output_dir).name,
        dataset=data_args.dataset_name or ", ".join(files),
        dataset_id=data_args.dataset_name,
        dataset_config=data_args.dataset_config_name,
        results={"perplexity": after} if math.isfinite(after) else {},
        evaluated_on="validation blocks",
        setup=f"Perplexity of others on the same blocks: {others}. Seed {args.seed}, {trainer.state.global_step} steps, "
        f"learning rate {args.learning_rate:g}; {args.device.type}, torch {torch.__version__}.",
        conversion=conversion,
    )
    save_card(args.output_dir, model, facts, [explanation])
    if not args.push_to_hub:
        return None
    options = {"private": args.hub_private_repo, "token": args.hub_token, "revision": args.hub_revision}
    commit = push_to_hub(model, tokenizer, trainer.hub_model_id, facts=facts, explanations=explanation, **options)
    return commit.commit_url
