"""Perplexity of a small story model: conventional, right after its conversion to a B-cos LM, and after training.

    python benchmarks/language_model_perplexity.py --model ../shared/data/stories260K --text ../shared/data/lm \
        --generated runs/stories/generated.jsonl --models runs/stories --output docs/results-language-model.md

The model writes the first part of its training text itself; the rest is WikiText-2 (validation) and nine tenths of tiny
Shakespeare. Stock Trainer, AdamW with weight decay 0.01, cosine schedule with 5 % warm-up, last step's model. Before the
long runs, short ones pick the learning rate on blocks set aside from the training data, once for the B-cos models (at
B = 1.25) and once for the conventional control. Every finished run is kept as a JSON line beside the output, so that an
interrupted benchmark goes on where it stopped. Needs sentencepiece and protobuf to read the model's tokenizer.
"""

import argparse
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from bcos_transformers import from_pretrained_bcos
from bcos_transformers.data.packing import Marks, pack_dataset

SETS = {"stories": "held-out stories", "wikitext": "WikiText-2 test", "shakespeare": "held-out Shakespeare"}
BLOCK, BATCH, NEW_TOKENS, HELD_OUT_STORIES, DEV_BLOCKS = 256, 16, 256, 200, 64
PILOT_B = 1.25


def write_stories(model_path: Path, tokenizer, count: int, seed: int, file: Path) -> None:
    """Lets the conventional model write `count` stories from the start token, and keeps them as JSON lines."""
    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    stories: list[str] = []
    while len(stories) < count:
        start = torch.full((min(128, count - len(stories)), 1), tokenizer.bos_token_id)
        ids = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=0,
            eos_token_id=tokenizer.bos_token_id,  # this model begins the next story instead of ending one
            pad_token_id=tokenizer.eos_token_id,
        )
        stories += tokenizer.batch_decode(ids, skip_special_tokens=True)
    file.write_text("".join(json.dumps({"text": story.strip()}) + "\n" for story in stories), encoding="utf-8")


def load_data(args: argparse.Namespace, tokenizer) -> tuple[Dataset, Dataset, dict[str, Dataset]]:
    """Blocks for training, blocks to choose the learning rate by, and the sets that the table is about."""
    stories = [json.loads(line)["text"] for line in args.generated.read_text(encoding="utf-8").splitlines()]
    shakespeare = (args.text / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = shakespeare.index("\n\n", len(shakespeare) * 9 // 10)
    texts = {
        "train": [
            *stories[:-HELD_OUT_STORIES],
            (args.text / "wikitext2_valid.txt").read_text(encoding="utf-8"),
            shakespeare[:cut],
        ],
        "stories": stories[-HELD_OUT_STORIES:],
        "wikitext": [(args.text / "wikitext2_test.txt").read_text(encoding="utf-8")[:200_000]],
        "shakespeare": [shakespeare[cut:].strip()],
    }
    # The model knows its start token only: it stands in front of each document, and there is no end token.
    marks = Marks(before=(tokenizer.bos_token_id,))
    blocks = {
        name: pack_dataset(Dataset.from_dict({"text": documents}), tokenizer, BLOCK, marks, labels=True)
        for name, documents in texts.items()
    }
    train = blocks.pop("train").shuffle(seed=args.seed)
    return train.select(range(DEV_BLOCKS, len(train))), train.select(range(DEV_BLOCKS)), blocks


def load_model(args: argparse.Namespace, b: float | None) -> torch.nn.Module:
    """The conventional model, or (with `b`) its conversion."""
    if b is None:
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    return from_pretrained_bcos(args.model, task="causal-lm", b=b, dtype=torch.float32)


def losses(model: torch.nn.Module, sets: dict[str, Dataset]) -> dict[str, float]:
    """Mean loss of a token in nats; all blocks are full, so the Trainer's mean over blocks is exact."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, 0, 1, 1e-3)
        trainer = Trainer(model, arguments, default_data_collator)
        return {name: trainer.evaluate(blocks)["eval_loss"] for name, blocks in sets.items()}


def train(model: torch.nn.Module, data: Dataset, steps: int, learning_rate: float, seed: int) -> None:
    """Trains `model` in place with the stock Trainer."""
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, seed, steps, learning_rate)
        Trainer(model, arguments, default_data_collator, data).train()


def training_arguments(folder: str, seed: int, steps: int, learning_rate: float) -> TrainingArguments:
    """The same settings for every run."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the conventional model")
    parser.add_argument("--text", type=Path, required=True, help="folder with WikiText-2 and tiny Shakespeare")
    parser.add_argument("--generated", type=Path, required=True, help="the model's own stories; written if missing")
    parser.add_argument("--models", type=Path, required=True, help="where the trained B-cos models go")
    parser.add_argument("--b", type=float, nargs="+", default=[1.1, 1.25, 1.5])
    parser.add_argument("--stories", type=int, default=3200)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--pilot_steps", type=int, default=40)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results-language-model.md"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()

    # Text such as <unk> in WikiText is text, not a special token.
    tokenizer = AutoTokenizer.from_pretrained(args.model, split_special_tokens=True)
    if not args.generated.exists():
        write_stories(args.model, tokenizer, args.stories, args.seed, args.generated)
    data, dev, sets = load_data(args, tokenizer)
    log = args.output.with_suffix(".jsonl")
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def run(kind: str, b: float | None, steps: int, learning_rate: float | None) -> dict:
        key = {"kind": kind, "b": b, "steps": steps, "learning_rate": learning_rate, "seed": args.seed}
        found = next((row for row in done if {**row, **key} == row), None)
        folder = args.models / f"b{b:g}" if kind == "run" and b is not None else None
        if found and (folder is None or (folder / "config.json").exists()):
            return found
        begin = time.perf_counter()
        model = load_model(args, b)
        if steps:
            train(model, data, steps, learning_rate, args.seed)
        row = {**key, "losses": losses(model, {"dev": dev} if kind == "pilot" else sets)}
        row["seconds"] = round(time.perf_counter() - begin)
        if folder is not None:
            model.config.use_cache = True  # the Trainer turns it off; the saved model shall generate with it
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(args.model).save_pretrained(folder)
        print(row, flush=True)  # noqa: T201
        done.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    rows = [("conventional", run("start", None, 0, None))]
    rows += [(f"B-cos B={b:g}, right after conversion", run("start", b, 0, None)) for b in args.b]
    pilots, rates = [], {}
    for b in (None, PILOT_B):
        trials = [run("pilot", b, args.pilot_steps, rate) for rate in args.learning_rates]
        pilots += trials
        rates[b is None] = min(trials, key=lambda row: row["losses"]["dev"])["learning_rate"]
    for b in (*args.b, None):
        name = "conventional, trained the same" if b is None else f"B-cos B={b:g}, trained"
        rows.append((name, run("run", b, args.steps, rates[b is None])))
    args.output.write_text(page(rows, pilots, args, {"training": data, **sets}), encoding="utf-8")


def page(rows: list[tuple[str, dict]], pilots: list[dict], args: argparse.Namespace, blocks: dict) -> str:
    """The results as Markdown."""
    sizes = "; ".join(f"{SETS.get(name, name)} {len(part):,}" for name, part in blocks.items())
    rates = "; ".join(
        f"{'conventional' if row['b'] is None else 'B-cos B=' + format(row['b'], 'g')} at "
        f"{row['learning_rate']:g}: {row['losses']['dev']:.3f}"
        for row in pilots
    )
    trained = [row for _, row in rows if row["kind"] == "run"]
    chosen = {row["b"] is None: row["learning_rate"] for row in trained}
    start, control = rows[0][1], rows[-1][1]

    def times(other: dict, part: str) -> str:
        factors = (math.exp(row["losses"][part] - other["losses"][part]) for row in trained if row["b"] is not None)
        return ", ".join(f"{factor:.2f}" for factor in factors)

    values = ", ".join(f"{b:g}" for b in args.b)
    lines = [
        "# A story model converted to a B-cos LM: perplexity before and after training",
        "",
        "```",
        "python benchmarks/language_model_perplexity.py --model ../shared/data/stories260K --text ../shared/data/lm \\",
        "    --generated runs/stories/generated.jsonl --models runs/stories --output docs/results-language-model.md",
        "```",
        "",
        "stories260K: a Llama of 260,032 parameters, trained on TinyStories, with a vocabulary of 512 tokens. Perplexity "
        "per token of that vocabulary, so it compares within a column only, not with models of other vocabularies.",
        "",
        "| model | " + " | ".join(SETS.values()) + " |",
        "|---|" + "---|" * len(SETS),
    ]
    for name, row in rows:
        cells = " | ".join(f"{math.exp(row['losses'][part]):,.2f}" for part in SETS)
        lines.append(f"| {name} | {cells} |")
    lines += [
        "",
        f"Trained for {args.steps} steps of {BATCH} blocks of {BLOCK} tokens ({args.steps * BATCH * BLOCK:,} tokens, "
        f"{args.steps * BATCH / len(blocks['training']):.0%} of the training data), one seed ({args.seed}), no model "
        "selection. Fields other than B have their defaults: `normalize_weights=True`, a linear output layer.",
        "",
        "What it shows:",
        "",
        f"- Conversion alone ruins the model, the more the larger B is; training on text repairs much of that, not all. "
        f"After training, the perplexity for B = {values} is {times(start, 'stories')} times that of the conventional "
        f"model on held-out stories, the text it was made for.",
        f"- Against the conventional model trained on the same blocks for as many steps (the last row) it is "
        f"{times(control, 'stories')} times as high on stories, {times(control, 'wikitext')} on WikiText-2 and "
        f"{times(control, 'shakespeare')} on Shakespeare. Where a trained B-cos model is below the untrained "
        "conventional one, the training data explain it: the model had seen nothing but stories before.",
        "- The stories are the conventional model's own samples, so its perplexity on them is as low as it can be: no "
        "model has a lower expected loss on a model's samples than the model itself.",
        "- One seed and a short training; the spread over seeds was not measured, so make nothing of a few percent.",
        "",
        f"Data, in blocks: {sizes}. Training: the stories but the last {HELD_OUT_STORIES}, WikiText-2 validation, the "
        f"first nine tenths of tiny Shakespeare. Stories: {args.stories:,} samples of the conventional model, at most "
        f"{NEW_TOKENS} tokens, temperature 1, seed {args.seed}. WikiText-2 test: the first 200,000 characters. The start "
        "token stands in front of each story and each text; there is no end token, since the model knows none.",
        "",
        f"Learning rates by loss after {args.pilot_steps} steps on {DEV_BLOCKS} blocks set aside from the training data "
        f"({rates}); used: {chosen[False]:g} for B-cos, {chosen[True]:g} for the conventional model. No other rates were "
        "tried.",
        "",
        f"Machine: CPU, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread used; "
        f"torch {torch.__version__}, transformers {transformers.__version__}. Training took "
        + ", ".join(f"{row['seconds']} s" for row in trained)
        + " in the order of the table, evaluation included; the cores were shared with other work, so these times are no "
        "measurement of speed.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
