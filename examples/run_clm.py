r"""Convert a pretrained causal language model to a B-cos LM, train it on with the stock Trainer, and explain a next token.

    python examples/run_clm.py --model_name_or_path openai-community/gpt2 --dataset_name Salesforce/wikitext \
        --dataset_config_name wikitext-103-raw-v1 --streaming --max_steps 10000 --block_size 512 \
        --output_dir runs/bcos-gpt2

Prints the perplexity of the conventional model, of the B-cos model right after its conversion, and after training.
Models whose tokenizer is a SentencePiece file also need the packages sentencepiece and protobuf.
"""

import logging
import sys

import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
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
    generation_table,
    perplexity,
    reload,
)
from bcos_transformers.model_card import conversion_in_words


def main() -> None:
    """The whole job."""
    parser = HfArgumentParser((ModelArguments, DataArguments, PretrainingArguments), description=__doc__)
    model_args, data_args, args = parser.parse_args_into_dataclasses()
    logging.basicConfig(format="%(message)s", level=logging.INFO if sys.stderr.isatty() else logging.WARNING)
    console = Console(soft_wrap=True)
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
    set_seed(args.seed)

    source = model_args.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or source)
    try:
        block_size = choose_block_size(model_args, data_args, tokenizer)
        marks = Marks.causal(tokenizer)
        train, validation = load_blocks(data_args, args, tokenizer, block_size, marks, labels=True)
        prompt = beginning(validation, tokenizer, data_args.explain_tokens)
        # In full precision whatever the checkpoint's is: --bf16 or --fp16 choose the precision of the computation.
        model = from_pretrained_bcos(source, task="causal-lm", dtype=torch.float32, **model_args.bcos_fields())
        callbacks = [BcosAnnealingCallback(model_args.anneal_fraction)] if model_args.anneal_fraction else []
    except ValueError as error:
        raise SystemExit(str(error)) from None
    conversion = conversion_in_words(model)
    console.print(str(model.conversion_report), style="dim", highlight=False)
    use_cache = model.config.use_cache

    conventional = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    perplexities = {
        "conventional": perplexity(conventional_trainer(conventional, args, default_data_collator), validation)
    }
    del conventional

    if args.push_to_hub:
        callbacks.append(BcosHubCallback())
    console.rule("B-cos training")
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=default_data_collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    perplexities["right after conversion"] = perplexity(trainer, validation)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    perplexities["after training"] = perplexity(trainer, validation)

    console.rule(f"Perplexity of {len(validation)} validation blocks of {block_size} tokens")
    for name, value in perplexities.items():
        console.print(f"{name}: {value:,.2f}", highlight=False)
    model.config.use_cache = use_cache  # the Trainer turns it off; the saved model shall generate with it
    trainer.save_model(args.output_dir)

    console.rule("Why this next token")
    model = reload(AutoModelForCausalLM, args.output_dir, args.device)
    explainer = BcosExplainer(model, tokenizer, granularity="token")
    explanation = explainer(prompt)
    console.print(explanation.to_terminal(), "")
    console.print("The continuation, token by token:", generation_table(model, tokenizer, prompt))
    pushed = card_and_push(model, tokenizer, trainer, data_args, conversion, perplexities, explanation)
    console.print(f"Model, code and card: {args.output_dir}", highlight=False)
    if pushed:
        console.print(f"Pushed: {pushed}", highlight=False)


if __name__ == "__main__":
    main()
