"""The tables of the benchmark of prototypes, as Markdown."""

import json
import platform
from pathlib import Path

import torch
import transformers

from prototype_settings import ABLATION, MAIN, TREEBANK, Setting, plain_folder


def report(runs: Path) -> str:
    """The tables of what is there."""
    first = next(iter(MAIN.values()))[0]
    return "\n".join(
        [
            "# Prototypes, measured",
            "",
            "`python benchmarks/prototypes.py --data ../shared/data`",
            "",
            f"all-MiniLM-L6-v2, {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, bf16 autocast "
            f"while training. {first.num_prototypes} prototypes, K = half of a class's, λ = {first.lambdas}, {first.epochs} epochs as the "
            "plain fine-tune has (joint training; 8 for the regression), projection, one epoch of the last layer. Learning rate 5e-5, of "
            "prototypes, token attention and last layer 1e-3 (cosine 5e-4). No selection on test texts.",
            "",
            "## Beside the plain fine-tune",
            "",
            "Test accuracy in percent; for the regression root mean squared error on scores from 0 to 1, and rank correlation.",
            "",
            "| | seeds | plain | joint training | after projection | last layer trained | gap |",
            "|---|---|---|---|---|---|---|",
            *(row for name, settings in MAIN.items() for row in _main_rows(name, settings, runs)),
            "",
            "## What prototypes are worth",
            "",
            "Drop of the predicted class's probability (regression: change of the value), × 100, when the k prototypes that speak most "
            "for the prediction are removed (comprehensiveness ↑) or kept alone (sufficiency ↓), beside k random ones; seed 0, all test texts, "
            "± half the 95 % bootstrap interval. Projection harmless: share of the prototypes whose projection, all others left, lowers "
            "accuracy by at most half a point. Nearest is own: how often the nearest prototype is of the text's class.",
            "",
            "| | k | comp. ↑ | random | suff. ↓ | random | projection harmless | nearest is own |",
            "|---|---|---|---|---|---|---|---|",
            *(row for name, settings in MAIN.items() for row in _faithful_rows(name, settings[0], runs)),
            "",
            "## Ablation",
            "",
            "SST-2, 1,000 training sentences, seed 0; each row changes one thing. One standard error of an accuracy is about 0.8.",
            "",
            "| | joint training | after projection | last layer trained | projection harmless | nearest is own |",
            "|---|---|---|---|---|---|",
            *(_ablation_row(name, setting, runs) for name, setting in ABLATION.items()),
            "",
        ]
    )


def _read(folder: Path) -> dict | None:
    file = folder / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def _main_rows(name: str, settings: list[Setting], runs: Path) -> list[str]:
    pairs = [(_read(plain_folder(s, runs)), _read(runs / s.key)) for s in settings]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return [f"| {name} | 0 | not run | | | | |"]
    regression = settings[0].task == TREEBANK
    plain = [p["scores"] if regression else {"accuracy": p["test_accuracy"]} for p, _ in pairs]
    rows = []
    for score in plain[0]:
        digits = 1 if score == "accuracy" else 3
        stages = [[r["scores"][stage][score] for _, r in pairs] for stage in ("joint", "projected", "final")]
        columns = [[p[score] for p in plain], *stages]
        means = [sum(column) / len(column) for column in columns]
        each = ", ".join(f"{a:.{digits}f}/{b:.{digits}f}" for a, b in zip(columns[0], columns[-1], strict=True))
        title = name if score == "accuracy" else f"{name}, {score}"
        cells = " | ".join(f"{mean:.{digits}f}" for mean in means)
        rows.append(f"| {title} | {len(pairs)} ({each}) | {cells} | {means[0] - means[-1]:+.{digits}f} |")
    return rows


def _faithful_rows(name: str, setting: Setting, runs: Path) -> list[str]:
    result = _read(runs / setting.key)
    if result is None:
        return [f"| {name} | not run | | | | | | |"]
    kept, own = (result.get(key) for key in ("share_that_keeps_accuracy", "nearest_own"))
    ends = f"{'–' if kept is None else f'{kept:.0%}'} | {'–' if own is None else f'{own:.1f}'}"
    fields = ("comprehensiveness", "random_comprehensiveness", "sufficiency", "random_sufficiency")
    rows = []
    for one in result["faithfulness"]:
        cells = " | ".join(f"{100 * m:.1f} ± {50 * (high - low):.1f}" for m, low, high in (one[f] for f in fields))
        rows.append(f"| {name} | {one['count']} | {cells} | {ends} |")
    return rows


def _ablation_row(name: str, setting: Setting, runs: Path) -> str:
    result = _read(runs / setting.key)
    if result is None:
        return f"| {name} | not run | | | | |"
    cells = " | ".join(f"{result['scores'][stage]['accuracy']:.1f}" for stage in ("joint", "projected", "final"))
    return f"| {name} | {cells} | {result['share_that_keeps_accuracy']:.0%} | {result['nearest_own']:.1f} |"
