r"""Convert a pretrained masked language model to a B-cos LM, train it on with the stock Trainer, and explain a word.

    python examples/run_mlm.py --model_name_or_path google-bert/bert-base-uncased --dataset_name Salesforce/wikitext \
        --dataset_config_name wikitext-103-raw-v1 --streaming --max_steps 10000 --block_size 256 \
        --output_dir runs/bcos-bert-mlm

Prints the perplexity of masked tokens for the conventional model, for the B-cos model right after its conversion, and
after training. The same tokens are masked for all three.
"""

import logging
import sys
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from rich.console import Console
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    default_data_collator,
    set_seed,
)

from bcos_transformers import BcosAnnealingCallback, BcosHubCallback, from_pretrained_bcos
from bcos_transformers.data.packing import DataArguments, Marks, load_blocks
from bcos_transformers.explanations import BcosExplainer
from bcos_transformers.language_modeling import (
    ModelArguments,
    PretrainingArguments,
    beginning,
    card_and_push,
    choose_block_size,
    conventional_trainer,
    masked_text,
    perplexity,
    reload,
)
from bcos_transformers.model_card import conversion_in_words


@dataclass
class MaskingArguments:
    """How tokens are masked."""

    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens that are to be predicted."})


@dataclass
class BlockMaskingCollator:
    """Masks training blocks anew at every pass, and leaves those alone that have been masked before.

    Args:
        masking: what masks.
    """

    masking: DataCollatorForLanguageModeling

    def __call__(self, blocks: list[dict]) -> dict[str, torch.Tensor]:
        return default_data_collator(blocks) if "labels" in blocks[0] else self.masking(blocks)


def mask_once(blocks: Dataset, masking: DataCollatorForLanguageModeling) -> Dataset:
    """The blocks with a mask that stays the same; blocks in which nothing happens to be masked are left out."""

    def mask(block: dict) -> dict:
        masked = masking([block])
        return {name: masked[name][0] for name in ("input_ids", "labels")}

    # In memory: a mask that depends on the state of a random generator must not come from the cache.
    masked = blocks.map(mask, keep_in_memory=True, load_from_cache_file=False)
    return masked.filter(lambda block: any(label >= 0 for label in block["labels"]), keep_in_memory=True)


def main() -> None:
    """The whole job."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, MaskingArguments, PretrainingArguments), description=__doc__
    )
    model_args, data_args, masking_args, args = parser.parse_args_into_dataclasses()
    logging.basicConfig(format="%(message)s", level=logging.INFO if sys.stderr.isatty() else logging.WARNING)
    console = Console(soft_wrap=True)
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
    set_seed(args.seed)

    source = model_args.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or source)
    if tokenizer.mask_token_id is None:
        raise SystemExit("The tokenizer has no mask token, so this is no masked language model; see run_clm.py.")
    if not 0 < masking_args.mlm_probability <= 1:
        raise SystemExit(f"--mlm_probability must lie in (0, 1], got {masking_args.mlm_probability:g}.")
    try:
        block_size = choose_block_size(model_args, data_args, tokenizer)
        marks = Marks.masked(tokenizer)
        train, validation = load_blocks(data_args, args, tokenizer, block_size, marks)
        text, position, word = masked_text(tokenizer, beginning(validation, tokenizer, data_args.explain_tokens))
        # In full precision whatever the checkpoint's is: --bf16 or --fp16 choose the precision of the computation.
        model = from_pretrained_bcos(
            source,
            task="masked-lm",
            dtype=torch.float32,
            mask_token_id=tokenizer.mask_token_id,
            **model_args.bcos_fields(),
        )
        callbacks = [BcosAnnealingCallback(model_args.anneal_fraction)] if model_args.anneal_fraction else []
    except ValueError as error:
        raise SystemExit(str(error)) from None
    conversion = conversion_in_words(model)
    console.print(str(model.conversion_report), style="dim", highlight=False)
    share = masking_args.mlm_probability
    validation = mask_once(validation, DataCollatorForLanguageModeling(tokenizer, mlm_probability=share, seed=0))
    if not len(validation):
        raise SystemExit("No token of the validation data was masked; give more text, or a larger --mlm_probability.")
    collator = BlockMaskingCollator(DataCollatorForLanguageModeling(tokenizer, mlm_probability=share))

    conventional = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32)
    perplexities = {"conventional": perplexity(conventional_trainer(conventional, args, collator), validation)}
    del conventional

    if args.push_to_hub:
        callbacks.append(BcosHubCallback())
    console.rule("B-cos training")
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    perplexities["right after conversion"] = perplexity(trainer, validation)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    perplexities["after training"] = perplexity(trainer, validation)

    console.rule(f"Perplexity of the masked tokens of {len(validation)} validation blocks of {block_size} tokens")
    for name, value in perplexities.items():
        console.print(f"{name}: {value:,.2f}", highlight=False)
    trainer.save_model(args.output_dir)

    console.rule("Why this word")
    model = reload(AutoModelForMaskedLM, args.output_dir, args.device)
    explainer = BcosExplainer(model, tokenizer, granularity="token")
    explanation = explainer(text, position=position)
    console.print(explanation.to_terminal(), "")
    console.print(f"The word that was masked: {word}", highlight=False, markup=False)
    pushed = card_and_push(model, tokenizer, trainer, data_args, conversion, perplexities, explanation)
    console.print(f"Model, code and card: {args.output_dir}", highlight=False)
    if pushed:
        console.print(f"Pushed: {pushed}", highlight=False)


if __name__ == "__main__":
    main()
