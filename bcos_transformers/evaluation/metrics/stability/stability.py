"""Whether explanations stay the same under other circumstances, as an `evaluate` module."""

from dataclasses import asdict

import evaluate

from bcos_transformers.evaluation.metric_results import metric_info
from bcos_transformers.evaluation.reliability import stability

DESCRIPTION = """\
Compares explanations of the same texts under two circumstances (alone and in a batch, two dtypes, two attention kernels;
`bcos_transformers.evaluation.reliability.explanations_under` makes them for B-cos models): largest difference over the
largest score of the text, and lowest rank correlation."""

INPUTS = """\
Args:
    predictions: of each text, one score a token.
    references: the same under the other circumstance."""


class StabilityOfExplanations(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, "", "[float64]", "[float64]")

    def _compute(self, predictions, references) -> dict:
        return asdict(stability(predictions, references))
