"""Whether perturbation metrics can be believed for a model, as an `evaluate` module."""

from dataclasses import asdict

import evaluate

from bcos_transformers.evaluation.metric_results import metric_info
from bcos_transformers.evaluation.reliability import masking_validity
from bcos_transformers.evaluation.rows import Classifier, rows_of

DESCRIPTION = """\
Accuracy and calibration of a classifier on inputs of which a random share is hidden, and how undecided it is when all
is: perturbation metrics of a model that was never shown masked inputs measure noise."""

INPUTS = """\
Args:
    predictions: of each text, its token ids, special tokens included, without padding.
    references: of each text, its class.
    model, tokenizer: the classifier.
    shares: of hidden tokens.
    draws: random choices of hidden tokens for each share.
    replacement: "mask" (default) or "attention".
    seed: of the choices."""


class MaskingValidityOfModel(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, "", "[int64]", "int64")

    def _compute(
        self,
        predictions,
        references,
        model,
        tokenizer,
        shares=(0.0, 0.25, 0.5, 0.75, 1.0),
        draws=2,
        replacement="mask",
        seed=0,
    ) -> dict:
        rows = rows_of(tokenizer, predictions)
        found = masking_validity(Classifier(model, tokenizer), rows, references, shares, draws, replacement, seed)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(found).items()}
