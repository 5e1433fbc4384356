"""Agreement with human rationales as an `evaluate` module."""

from dataclasses import asdict

import evaluate

from bcos_transformers.evaluation.metric_results import metric_info, summarize
from bcos_transformers.evaluation.plausibility import plausibility_scores

DESCRIPTION = """\
Agreement of word scores with the words that people marked: F1 of as many top words as are marked, area under the
precision-recall curve, and mean reciprocal rank of the best-ranked marked word."""

INPUTS = """\
Args:
    predictions: of each text, one score a word.
    references: of each text, 1 for words that people marked, 0 for the others; at least one must be marked.
    seed, resamples: of the bootstrap."""


class Plausibility(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            DESCRIPTION, INPUTS, "DeYoung et al. 2020, arXiv 1911.03429, section 4.1", "[float64]", "[int64]"
        )

    def _compute(self, predictions, references, seed=0, resamples=2000) -> dict:
        records = [asdict(plausibility_scores(*pair)) for pair in zip(predictions, references, strict=True)]
        return summarize(records, ("f1", "auprc", "mrr"), seed, resamples)
