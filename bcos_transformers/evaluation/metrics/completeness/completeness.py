"""How far explanations are from adding up to what they explain, as an `evaluate` module."""

import evaluate

from bcos_transformers.evaluation.metric_results import metric_info, summarize
from bcos_transformers.evaluation.reliability import completeness_residuals

DESCRIPTION = "|explained quantity − Σ scores|, alone and divided by the largest |score| of the text: 0 is complete."

INPUTS = """\
Args:
    predictions: of each text, one score a token.
    references: of each text, what they should add up to, for instance the logit.
    seed, resamples: of the bootstrap."""


class Completeness(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, "arXiv 2502.12992, section 3.3", "[float64]", "float64")

    def _compute(self, predictions, references, seed=0, resamples=2000) -> dict:
        found = completeness_residuals(predictions, references)
        records = [{"residual": absolute, "relative_residual": relative} for absolute, relative in found]
        result = summarize(records, ("residual", "relative_residual"), seed, resamples)
        result["largest_relative_residual"] = max(relative for _, relative in found)
        return result
