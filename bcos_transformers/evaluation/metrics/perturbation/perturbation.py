"""Comprehensiveness, sufficiency, log-odds and ERASER's AOPC as an `evaluate` module."""

from dataclasses import asdict

import evaluate
import torch

from bcos_transformers.evaluation.comparison import normalized_interval
from bcos_transformers.evaluation.metric_results import metric_info, summarize
from bcos_transformers.evaluation.perturbation import perturbation_scores, scores_of_orders
from bcos_transformers.evaluation.rows import Classifier, rows_of
from bcos_transformers.evaluation.search import greedy_orders

DESCRIPTION = """\
How much the probability of the predicted class falls when the tokens with the highest scores are hidden
(comprehensiveness, higher is better) or alone are left (sufficiency, lower is better): area by the trapezoid over
10 %…90 % of the tokens that are no special ones. Also log-odds (top 20 % hidden) and ERASER's AOPC variants."""

INPUTS = """\
Args:
    predictions: of each text, one score a token, special tokens included.
    references: of each text, its token ids, special tokens included, without padding.
    model, tokenizer: the classifier whose predictions are explained.
    replacement: "mask" (default) or "attention": how a token is hidden.
    search_budget: forward passes a text for a search of the best ranking; with it `normalized_comprehensiveness` and
        `normalized_sufficiency` say where the scores lie between a random ranking (0) and the best one found (1), with
        `…_interval`.
    seed, resamples: of ties, random rankings and the bootstrap."""

CITATION = "DeYoung et al. 2020, arXiv 1911.03429; arXiv 2502.12992, section 4"
NAMES = ("comprehensiveness", "sufficiency", "log_odds", "aopc_comprehensiveness", "aopc_sufficiency")


class Perturbation(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, CITATION, "[float64]", "[int64]")

    def _compute(
        self, predictions, references, model, tokenizer, replacement="mask", search_budget=None, seed=0, resamples=2000
    ) -> dict:
        classifier = Classifier(model, tokenizer)
        rows = rows_of(tokenizer, references)
        scores = perturbation_scores(classifier, rows, predictions, replacement, seed)
        result = summarize([asdict(score) for score in scores], NAMES, seed, resamples)
        if search_budget is not None:
            random = perturbation_scores(classifier, rows, random_attributions(rows, seed), replacement, seed)
            for name, keep in (("comprehensiveness", False), ("sufficiency", True)):
                orders = greedy_orders(classifier, rows, search_budget, keep, replacement)
                found = scores_of_orders(classifier, rows, orders, replacement)
                better = min if keep else max
                every = zip(found, scores, random, strict=True)  # a greedy search can miss what chance finds
                best = [better(getattr(score, name) for score in of_text) for of_text in every]
                chance = [getattr(score, name) for score in random]
                result[f"random_{name}"], result[f"best_{name}"] = sum(chance) / len(chance), sum(best) / len(best)
                values = [getattr(score, name) for score in scores]
                center, low, high = normalized_interval(values, chance, best, seed, resamples)
                result[f"normalized_{name}"], result[f"normalized_{name}_interval"] = center, [low, high]
        return result


def random_attributions(rows, seed: int) -> list[list[float]]:
    """Normally distributed scores, drawn for each text from the seed and its token ids."""
    return [torch.randn(len(row), generator=row.generator(seed)).tolist() for row in rows]
