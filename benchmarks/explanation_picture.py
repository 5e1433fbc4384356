"""Draws explanations of a trained B-cos classifier as a picture, for README and model cards.

python examples/run_classification.py --output_dir runs/reviews
python benchmarks/explanation_picture.py --model runs/reviews --output docs/explanation.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bcos_transformers import BcosExplainer, TextExplanation
from bcos_transformers.data import load_reviews

FOR, AGAINST = (33 / 255, 102 / 255, 172 / 255), (199 / 255, 100 / 255, 10 / 255)


def draw_text(axes: plt.Axes, explanation: TextExplanation, y: float) -> None:
    """One line: label and logit, then the words with their signed contributions under them."""
    renderer = axes.figure.canvas.get_renderer()
    to_axes = axes.transData.inverted()
    axes.text(0, y, f"{explanation.label}  {explanation.logit:+.2f}", fontsize=11, fontweight="bold", va="center")
    largest = max(abs(score) for score in explanation.scores)
    x = 19.0
    for word, score in zip(explanation.words, explanation.scores, strict=True):
        share = abs(score) / largest
        box = {"facecolor": (*(FOR if score > 0 else AGAINST), 0.65 * share), "edgecolor": "none", "pad": 2.5}
        drawn = axes.text(x, y, word, fontsize=12, va="center", bbox=box)
        extent = drawn.get_window_extent(renderer).transformed(to_axes)
        number = axes.text(
            (extent.x0 + extent.x1) / 2, y - 0.43, f"{score:+.2f}", fontsize=7, ha="center", color="0.35"
        )
        wide = number.get_window_extent(renderer).transformed(to_axes)
        overhang = max(0.0, extent.x0 - wide.x0)
        for text in (drawn, number):
            text.set_x(text.get_position()[0] + overhang)
        x = max(extent.x1, wide.x1) + overhang + 0.9
    special = f"special tokens {explanation.special_tokens_score:+.2f}"
    axes.text(x + 1, y, special, fontsize=8, va="center", color="0.35")


def main() -> None:
    """Explains the first test reviews that fit on a line, and draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=6)
    args = parser.parse_args()
    model = AutoModelForSequenceClassification.from_pretrained(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = [row["text"] for row in load_reviews("test") if len(row["text"]) <= 62][: args.lines]
    explanations = BcosExplainer(model, tokenizer)(texts)
    figure, axes = plt.subplots(figsize=(11, 0.62 * len(texts) + 0.5), dpi=150)
    axes.set_xlim(0, 100)
    axes.set_ylim(-len(texts) - 0.1, 0.5)
    axes.axis("off")
    for line, explanation in enumerate(explanations):
        draw_text(axes, explanation, -line)
    axes.text(
        0,
        -len(texts) + 0.05,
        "Blue: for the predicted class; orange: against it. The numbers under the words and the special tokens' add up to the logit.",
        fontsize=8,
        color="0.35",
    )
    figure.savefig(args.output, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
