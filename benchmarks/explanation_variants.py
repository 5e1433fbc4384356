"""Would another B-cos explanation be more faithful: of logit differences, or of the words without their positions?

    python benchmarks/explanation_variants.py --data ../shared/data --runs runs/evidence --output docs/explanation-variants.md

The B-cos models of `benchmarks/evidence.py` (which trains them), on its texts and pairs.
"""

import argparse
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bcos_transformers.evaluation.attribution_runs import attribute_rows, play_pointing_game
from bcos_transformers.evaluation.baselines.base import Batch
from bcos_transformers.evaluation.baselines.direct import Bcos
from bcos_transformers.evaluation.bootstrap import bootstrap_interval
from bcos_transformers.evaluation.perturbation import perturbation_scores
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, encode_rows
from evidence_settings import SEEDS, benchmark_of
from recipe_search import RECIPE

MEASURES = ("comprehensiveness", "sufficiency", "SeqPG")


class OfTheLogit(Bcos):
    """What the package does: contributions to the logit of the class."""

    title = "of the logit"


class OfTheContrast(Bcos):
    """Contributions to the logit minus the mean of all logits."""

    title = 'of the logit minus the mean logit (`contrast="mean"`)'

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = self.model.explain(**batch.inputs, target=batch.target[:, None], contrast="mean")
        return out.contributions[:, 0], out.values[:, 0]


class OfTheWords(Bcos):
    """The word embeddings' part of the contributions to the logit."""

    title = 'of the word embeddings alone (`parts["word"]`)'
    complete = False

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = self.model.explain(**batch.inputs, target=batch.target[:, None], parts=True)
        return out.parts["word"][:, 0], None


VARIANTS = (OfTheLogit, OfTheContrast, OfTheWords)


def scores_of(task: str, seed: int, args: argparse.Namespace) -> dict[str, list[list[float]]] | None:
    """Of each variant, three lists: comprehensiveness and sufficiency of each text, SeqPG of each pair."""
    benchmark = benchmark_of(task, seed, args)
    if benchmark is None:
        return None
    folder = benchmark.models["B-cos"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier = Classifier(AutoModelForSequenceClassification.from_pretrained(folder).eval(), tokenizer)
    rows = encode_rows(tokenizer, [one.text for one in benchmark.examples], benchmark.settings.max_length)
    pairs = benchmark.pairs()
    predicted = classifier.probabilities([ChangedRow(row) for row in rows]).argmax(-1).tolist()
    found = {}
    for kind in VARIANTS:
        method = kind(classifier.model, classifier.tokenizer)
        given = attribute_rows(method, classifier, rows, predicted).scores
        scores = perturbation_scores(classifier, rows, given, seed=seed)
        pointing = play_pointing_game(method, classifier, pairs)
        found[kind.title] = [[s.comprehensiveness for s in scores], [s.sufficiency for s in scores], pointing]
    return found


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--output", type=Path, default=Path("docs/explanation-variants.md"))
    args = parser.parse_args()
    args.recipe, args.full = RECIPE, False
    transformers.logging.set_verbosity_error()
    lines = [
        "# Variants of the B-cos explanation",
        "",
        "`python benchmarks/explanation_variants.py --data ../shared/data`",
        "",
        "B-cos MiniLM as in [evidence.md](evidence.md), its texts and pairs; × 100, ± half the width of the 95 % bootstrap interval.",
        "",
        "| data | seeds | explanation | comprehensiveness ↑ | sufficiency ↓ | SeqPG ↑ |",
        "|---|---|---|---:|---:|---:|",
    ]
    for task, seeds in SEEDS.items():
        runs = [found for seed in seeds if (found := scores_of(task, seed, args))]
        for kind in VARIANTS if runs else ():
            row = f"| {task} | {len(runs)} | {kind.title} |"
            for place in range(len(MEASURES)):
                mean, low, high = bootstrap_interval([run[kind.title][place] for run in runs])
                row += f" {100 * mean:.1f} ± {50 * (high - low):.1f} |"
            lines.append(row)
    args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
