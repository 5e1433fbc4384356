"""SeqPG, the sequence pointing game, as an `evaluate` module."""

import evaluate

from bcos_transformers.evaluation.metric_results import metric_info, summarize
from bcos_transformers.evaluation.pointing_game import PointingPair, seqpg

DESCRIPTION = """\
Share of positive attribution inside the right half of an input that joins two texts of different classes, averaged over
the explanations of the two classes: 1 is perfect, about 0.5 chance. `bcos_transformers.evaluation.pointing_game.make_pairs`
makes the inputs."""

INPUTS = """\
Args:
    predictions: of each pair, two lists of scores, one a token: for the first text's class, and for the second text's.
    references: of each pair, one number a token: 0 first text, 1 second text, -1 special token.
    seed, resamples: of the bootstrap."""


class PointingGame(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, INPUTS, "arXiv 2502.12992, section 4", "[[float64]]", "[int64]")

    def _compute(self, predictions, references, seed=0, resamples=2000) -> dict:
        if unknown := {part for row in references for part in row} - {-1, 0, 1}:
            raise ValueError(f"`references` say 0, 1 or -1 (special) of each token, got {sorted(unknown)} too.")
        pairs = [
            PointingPair(tuple(range(len(row))), tuple(None if part < 0 else part for part in row), (0, 1))
            for row in references
        ]
        return summarize([{"seqpg": share} for share in seqpg(predictions, pairs)], ("seqpg",), seed, resamples)
