"""What the evidence table consists of: data sets, seeds, runs, texts and budgets."""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from bcos_transformers.evaluation.benchmark import POOL, SEARCH, BenchmarkSettings, FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_data import Example, make_example
from bcos_transformers.evaluation.plausibility import treebank_rationale
from finetuning import TASKS, Setting, conventional, read_rows
from recipe_search import RECIPE

SEEDS = {"sst2": (0, 1, 2), "ag_news": (0,), "hatexplain": (0, 1, 2), "imdb": (0,)}
MAIN = ["bcos", "random", "occlusion", "integrated_gradients", "input_x_gradient"]
QUICK = [*MAIN, "saliency", "deep_lift", "gradient_shap", "attention", "attention_rollout"]
SLOW = ["lime", "kernel_shap", SEARCH, "shapley_value_sampling", "sequential_integrated_gradients"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is measured of a data set: how many texts and pairs, which methods for the first seed and for the others."""

    texts: int
    pairs: int
    methods: list[str]
    more_seeds: list[str] = dataclasses.field(default_factory=list)


SMALL = {
    "sst2": Budget(60, 20, [*QUICK, *SLOW], MAIN),
    "hatexplain": Budget(60, 20, [*QUICK, *SLOW], MAIN),
    "ag_news": Budget(60, 20, [*QUICK, *SLOW[:3]]),
    "imdb": Budget(10, 10, [*QUICK, *SLOW[:3]]),
}
FULL = {
    "sst2": Budget(200, 100, [*QUICK, *SLOW], [*QUICK, *SLOW]),
    "hatexplain": Budget(200, 100, [*QUICK, *SLOW], [*QUICK, *SLOW]),
    "ag_news": Budget(200, 100, [*QUICK, *SLOW[:3]]),
    "imdb": Budget(120, 100, [*QUICK, *SLOW[:3]]),
}
METHOD_OPTIONS = {"sequential_integrated_gradients": {"n_steps": 5}}
NAMES = {
    "sst2": "SST-2 (sentences)",
    "ag_news": "AG News (4,000 training texts)",
    "hatexplain": "HateXplain, binary (6,000 training texts)",
    "imdb": "IMDb (2,000 training texts, 256 tokens)",
}
MIN_PROBABILITY = {"hatexplain": 0.7}


# Where a conventional model that was fine-tuned with masking is measured as well, with the quick methods.
MASKED = [("sst2", 0)]
MASKED_MODEL = "conventional, masked"


def masked_conventional(task: str, seed: int) -> Setting:
    """The conventional model, fine-tuned with masking as the B-cos model is."""
    return conventional(task, seed, RECIPE.mask_share)


def settings_of(task: str, seed: int, recipe: Setting = RECIPE) -> tuple[Setting, Setting]:
    """The conventional and the B-cos run."""
    return conventional(task, seed), dataclasses.replace(recipe, task=task, seed=seed)


def folders_of(task: str, seed: int, args: argparse.Namespace) -> dict[str, Path] | None:
    """Where both models are, by name; None if one of them is not trained yet."""
    folders = [args.runs / setting.key for setting in settings_of(task, seed, args.recipe)]
    trained = all((folder / "result.json").exists() for folder in folders)
    return dict(zip(("conventional", "B-cos"), folders, strict=True)) if trained else None


def models_of(task: str, seed: int, args: argparse.Namespace) -> dict[str, Path]:
    """Where the models of a data set and seed are that are trained, by name, the one fine-tuned with masking too."""
    folders = folders_of(task, seed, args)
    masked = args.runs / masked_conventional(task, seed).key
    if folders and (task, seed) in MASKED and (masked / "result.json").exists():
        folders[MASKED_MODEL] = masked
    return folders or {}


def examples_of(task: str, data: Path, limit: int) -> list[Example]:
    """Test texts: the first ones of a fixed shuffle; on HateXplain and SST-2 with the words that people marked."""
    rows = read_rows(TASKS[task], data, "test")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    trees = {}
    if task == "sst2":
        with (data / "sst_trees" / "test.jsonl").open(encoding="utf-8") as file:
            trees = {row["text"]: row for row in map(json.loads, file)}
    examples = []
    for i in order[:limit]:
        row = rows[i]
        example = make_example(row["text"], row["label"])
        if task == "hatexplain" and row["label"] == 1 and any(row["rationale"]):
            example = make_example(row["text"], 1, row["rationale"])
        elif row["text"] in trees:
            tree = trees[row["text"]]
            marks = treebank_rationale(tree["token_labels"], row["label"])
            phrases = tuple(tuple(span) for span in tree["spans"])
            example = dataclasses.replace(make_example(row["text"], row["label"], marks), phrases=phrases)
        examples.append(example)
    return examples


def benchmark_of(task: str, seed: int, args: argparse.Namespace) -> FaithfulnessBenchmark | None:
    """The benchmark of a data set and seed; None where a model is not trained yet."""
    if not (folders := models_of(task, seed, args)):
        return None
    budget = (FULL if args.full else SMALL)[task]
    settings = BenchmarkSettings(
        max_length=TASKS[task].max_length,
        limit=budget.texts,
        pairs=budget.pairs,
        min_probability=MIN_PROBABILITY.get(task, 0.8),
        search_budget=200,
        seed=seed,
        method_options=METHOD_OPTIONS,
    )
    models = {name: str(folder) for name, folder in folders.items()}
    # Cells of different budgets and recipes have files of their own, so that none replaces another.
    kind = ("full" if args.full else "small") + ("" if args.recipe == RECIPE else "-other-recipe")
    kind += f"-b{args.recipe.b:g}" if args.recipe.b != RECIPE.b else ""
    output = args.runs / f"faithfulness-{kind}" / f"{task}-seed{seed}"
    methods = budget.methods if seed == 0 else budget.more_seeds
    return FaithfulnessBenchmark(models, examples_of(task, args.data, POOL * budget.pairs), output, methods, settings)
