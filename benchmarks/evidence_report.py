"""The evidence table as Markdown, and the cards of its models."""

import argparse
import json
import math
import platform
import shutil
from pathlib import Path

import torch
import transformers
from evidence_comparison import CAVEAT, differences_section, summary_table
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bcos_transformers.cli.evaluate import relative_residual
from bcos_transformers.evaluation.benchmark import SEARCH, FaithfulnessBenchmark
from bcos_transformers.evaluation.report import markdown, table, write_report
from bcos_transformers.explanations import BcosExplainer
from bcos_transformers.hub_folder import save_card
from bcos_transformers.model_card import FAITHFULNESS, CardFacts, conversion_in_words
from evidence_settings import (
    MASKED,
    MASKED_MODEL,
    NAMES,
    QUICK,
    SEEDS,
    SLOW,
    benchmark_of,
    examples_of,
    folders_of,
    masked_conventional,
    models_of,
    settings_of,
)
from finetuning import TASKS
from recipe_search import RECIPE

# Benchmark and finished cells of every data set and seed; None and no cells where models are not trained.
Measured = dict[tuple[str, int], tuple[FaithfulnessBenchmark | None, list[dict]]]


def report(args: argparse.Namespace) -> None:
    """Writes the tables of what is there."""
    measured: Measured = {}
    for task, seeds in SEEDS.items():
        for seed in seeds:
            benchmark = benchmark_of(task, seed, args)
            there = benchmark is not None and benchmark.output.exists()
            measured[task, seed] = (benchmark, benchmark.finished() if there else [])
    cells = {task: [measured[task, seed][1] for seed in seeds] for task, seeds in SEEDS.items()}
    lines = [
        "# Evidence: accuracy and faithfulness on four data sets",
        "",
        f"`python benchmarks/evidence.py --data ../shared/data{_options(args)}`"
        + (
            ": three hours of training and three of explaining on one core, and the passes of the metrics."
            if args.recipe == RECIPE and not args.full
            else ""
        ),
        "",
        "all-MiniLM-L6-v2 (not BERT-base), "
        f"trained on {devices(args)}, {platform.machine()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Numbers of training texts: SST-2 6,920, AG News 4,000, HateXplain 6,000, IMDb 2,000; "
        "all test texts for accuracies. The recipe is that of [recipe.md](recipe.md)"
        + (", with the teacher asked about masked texts too" if args.teach_masked else "")
        + (f", with B = {args.recipe.b:g}." if args.recipe.b != RECIPE.b else "."),
        "",
        "What the tables say, and what they do not: [evidence-discussion.md](evidence-discussion.md).",
        "",
        "## Accuracy",
        "",
        *accuracy_table(args),
        "",
        *reliability_tables(args),
        "",
        "## Faithfulness",
        "",
        "Areas under the curve, SeqPG and agreement are × 100, ± half the width of the 95 % bootstrap interval over texts. "
        "`search` is the best ranking that a search found; normalized scores lie between a random ranking (0) and the best "
        "ranking of each text that any method or the search found (100). Cost is in forward passes, a backward pass to the "
        "embeddings counting as one. Agreement: with rationales on HateXplain, with the words of the sentence's "
        "sentiment and the phrases of the treebank on SST-2. Saliency, attention and rollout have no sign, so SeqPG can only be "
        "near 50 for them. Random scores are the same for both classes of a pair, so their SeqPG is 50 for every one.",
        "",
        CAVEAT,
        "",
        *summary_table(cells),
    ]
    for task, seeds in SEEDS.items():
        lines += differences_section(task, cells[task])
        for seed in seeds:
            lines += faithfulness_section(task, seed, measured, args.output.parent)
    args.output.write_text("\n".join(lines) + "\n")
    if args.recipe == RECIPE:
        write_cards(args, measured)


def _options(args: argparse.Namespace) -> str:
    changed = f" --b {args.recipe.b:g}" if args.recipe.b != RECIPE.b else ""
    return " --full" * args.full + " --teach-masked" * args.teach_masked + changed


def accuracy_table(args: argparse.Namespace) -> list[str]:
    """Test accuracies, and their gaps."""
    lines = ["| data | seeds | conventional | B-cos | gap |", "|---|---|---|---|---|"]
    gaps = []
    for task, seeds in SEEDS.items():
        pairs = []
        for seed in seeds:
            if folders := folders_of(task, seed, args):
                pairs.append([_result(folder)["test_accuracy"] for folder in folders.values()])
        if not pairs:
            lines.append(f"| {task} | {len(seeds)} | not run | not run | – |")
            continue
        plain, bcos = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        gaps.append(plain - bcos)
        each = ", ".join(f"{a:.1f}/{b:.1f}" for a, b in pairs)
        lines.append(f"| {task} | {len(pairs)} ({each}) | {plain:.1f} | {bcos:.1f} | {plain - bcos:.1f} |")
    if gaps:
        lines.append(f"| mean | | | | {sum(gaps) / len(gaps):.2f} |")
    masked = [
        f"{task}, seed {seed}: {json.loads(file.read_text())['test_accuracy']:.1f}"
        for task, seed in MASKED
        if (file := args.runs / masked_conventional(task, seed).key / "result.json").exists()
    ]
    return [
        *lines,
        "",
        "Test accuracy in percent, last epoch's model. Three epochs each, batch 32, AdamW; the conventional model at a learning "
        "rate of 5e-5, the B-cos model at 2e-4 from the conventional model's weights and with it as its teacher, so it has seen "
        "six epochs in all. Learning rate and B were chosen on SST-2 ([recipe.md](recipe.md) says by what); that the teacher is asked about "
        "whole texts only was chosen for what it does to masked inputs, which was first seen on test texts of AG News. What the "
        "conventional model gains from other learning rates and more epochs on SST-2 is in [recipe.md](recipe.md).",
        *(["", f"Conventional models fine-tuned with masking: {'; '.join(masked)}."] if masked else []),
    ]


def reliability_tables(args: argparse.Namespace) -> list[str]:
    """Masking validity and stability, as Markdown."""
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    heading = " | ".join(f"{share:.0%} hidden" for share in shares)
    lines = [
        "## Do the models understand masked inputs?",
        "",
        "Accuracy / expected calibration error, in percent, with a random share of the tokens hidden (200 test texts, 40 of "
        "IMDb, seed 0), and the entropy of the prediction when all tokens are hidden, over that of a uniform one.",
        "",
        f"| data | model | {heading} | entropy, all hidden |",
        "|---|---|" + "---|" * (len(shares) + 1),
    ]
    stable = [
        "",
        "## Stability of the B-cos explanations",
        "",
        "Largest difference of a score over the largest score of the text, and lowest rank correlation, against one text at "
        "a time in float32 with SDPA (20 texts, seed 0).",
        "",
        "| data | batched and padded | eager attention | bfloat16 |",
        "|---|---|---|---|",
    ]
    for task in SEEDS:
        folders = models_of(task, 0, args)
        for name in ("conventional", "B-cos", *([MASKED_MODEL] if MASKED_MODEL in folders else [])):
            file = folders[name] / "reliability.json" if folders else None
            if file is None or not file.exists():
                lines.append(f"| {task} | {name} |" + " not run |" * (len(shares) + 1))
                continue
            found = json.loads(file.read_text())
            pairs = zip(found["accuracy"], found["calibration_error"], strict=True)
            cells = " | ".join(f"{100 * accuracy:.0f} / {100 * error:.0f}" for accuracy, error in pairs)
            lines.append(f"| {task} | {name} | {cells} | {found['entropy_when_all_hidden']:.2f} |")
            if name == "B-cos":
                each = [found[circumstance] for circumstance in ("batch", "eager", "bfloat16")]
                cells = " | ".join(f"{one['largest_difference']:.0e}, {one['lowest_correlation']:.3f}" for one in each)
                stable.append(f"| {task} | {cells} |")
    return [*lines, *stable]


def devices(args: argparse.Namespace) -> str:
    """What the models were trained on."""
    trained = [folders_of(task, seed, args) or {} for task, seeds in SEEDS.items() for seed in seeds]
    used = {_result(folder)["device"] for folders in trained for folder in folders.values()}
    return " and ".join(sorted(used)) or "nothing yet"


def faithfulness_section(task: str, seed: int, measured: Measured, pictures: Path) -> list[str]:
    """One data set and seed."""
    heading = ["", f"### {task}, seed {seed}", ""]
    benchmark, cells = measured[task, seed]
    if not cells:
        return [*heading, "not run"]
    write_report(cells, benchmark.output)
    failed = [cell for cell in cells if "error" in cell]
    done = {(cell["model"], cell["method"]) for cell in cells}
    every = [*QUICK, *SLOW]
    missing = [
        f"{model}: {', '.join(method.replace('_', ' ') for method in absent)}"
        for model in benchmark.models
        if (absent := [m for m in every if (model, m) not in done and (m != "bcos" or model == "B-cos")])
    ]
    rest = ["", f"Not run on {'; on '.join(missing)}."] if missing else []
    pairs = max((len(cell["seqpg"] or []) for cell in cells), default=0)
    settings = benchmark.settings
    note = (
        f"{cells[0]['texts']} test texts, {pairs} pairs for SeqPG (each text given its class with at least "
        f"{settings.min_probability:g})."
    )
    if any(cell["method"] == SEARCH for cell in cells):
        note += f" Search: {settings.search_budget} forward passes a text."
    options = {
        name: option for name, option in settings.method_options.items() if name in {c["method"] for c in cells}
    }
    note += "".join(f" {name.replace('_', ' ')}: {option}." for name, option in options.items())
    note += f" {len(failed)} cells failed." if failed else ""
    picture = []
    if seed == 0:
        name = f"evidence-{task.replace('_', '-')}.png"
        shutil.copy(benchmark.output / "faithfulness.png", pictures / name)
        picture = ["", f"![Faithfulness against cost, {task}]({name})"]
    return [*heading, note, "", markdown(table(cells)).rstrip(), *rest, *picture]


def write_cards(args: argparse.Namespace, measured: Measured) -> None:
    """Cards of the first seed's B-cos models; those of HateXplain show no text."""
    for task in SEEDS:
        setting, found = settings_of(task, 0, args.recipe)[1], folders_of(task, 0, args)
        if found is None:
            continue
        folders = list(found.values())
        results = [_result(folder) for folder in folders]
        accuracies = [{name: result[f"test_{name}"] / 100 for name in ("accuracy", "macro_f1")} for result in results]
        cells = measured[task, 0][1]
        lines = table(cells).to_dict("records") if cells else []
        columns = ("model", "method", *FAITHFULNESS)
        texts = [one.text for one in examples_of(task, args.data, 3)] if task in ("sst2", "ag_news") else []
        model = AutoModelForSequenceClassification.from_pretrained(folders[1]).eval()
        explainer = BcosExplainer(model, AutoTokenizer.from_pretrained(folders[1]), max_length=TASKS[task].max_length)
        few = [one.text for one in examples_of(task, args.data, 100)]
        epochs = setting.epochs or TASKS[task].epochs
        facts = CardFacts(
            name=f"bcos-minilm-{task.replace('_', '-')}",
            dataset=NAMES[task],
            results=accuracies[1],
            conventional_results=accuracies[0],
            evaluated_on=f"test split of {NAMES[task]}",
            faithfulness=[{k: _or_none(line[k]) for k in columns} for line in lines],
            faithfulness_of=f"{cells[0]['texts']} texts of the test split, seed 0" if cells else "",
            setup=f"Seed 0, {epochs} epochs, learning rate {setting.lr:g}, batch 32, bf16 autocast, distilled from the "
            f"conventional fine-tune, masking; {results[1]['device']}, torch {torch.__version__}, transformers "
            f"{transformers.__version__}.",
            largest_residual=max(map(relative_residual, explainer(few))),
            conversion=conversion_in_words(model),
            base_model="sentence-transformers/all-MiniLM-L6-v2",
        )
        folder = args.cards / facts.name
        folder.mkdir(parents=True, exist_ok=True)
        save_card(folder, model, facts, explainer(texts) if texts else [])


def _result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def _or_none(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value
