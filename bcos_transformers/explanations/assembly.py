"""From a batch's contributions to the explanation of each text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bcos_transformers.explanations.encoding import EncodedText, owners
from bcos_transformers.explanations.targets import TargetNames
from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.modeling.bcos_text_units import TextUnits, text_units


@dataclass(frozen=True)
class RowScores:
    """What `explain` found for one row, as plain numbers; with positions, each list has one more level.

    Attributes:
        target: of each target.
        values: the explained logits.
        contributions: of each target, one number a token.
        probability: of each target, or None.
        position: of the row, of each of its positions, or of each target; None for sequence classification.
        logits: `(labels,)`, all logits of a sequence classifier.
    """

    target: list
    values: list
    contributions: list
    probability: list | None
    position: Any
    logits: torch.Tensor | None

    @classmethod
    def of(cls, out: Any, probability: torch.Tensor | None, row: int, encoded: EncodedText) -> "RowScores":
        """Picks a row, without its padding."""
        return cls(
            target=out.target[row].tolist(),
            values=out.values[row].double().tolist(),
            contributions=out.contributions[row, ..., : len(encoded)].double().tolist(),
            probability=None if probability is None else probability[row].tolist(),
            position=None if out.position is None else out.position[row].tolist(),
            logits=out.logits[row] if out.logits.dim() == 2 else None,
        )


class Assembler:
    """Puts explanations together.

    Args:
        names: names targets.
        granularity: what a unit is.
        several: whether explanations hold dicts by target.
        contrast: name of what was subtracted.
    """

    def __init__(self, names: TargetNames, granularity: str, several: bool, contrast: str | None) -> None:
        self.names, self.granularity, self.several, self.contrast = names, granularity, several, contrast

    def units(self, encoded: EncodedText, granularity: str | None = None) -> TextUnits:
        """The units of an encoded text."""
        granularity = (granularity or self.granularity) if encoded.has_words else "token"
        return text_units(encoded.texts, encoded.offsets, encoded.word_ids, encoded.segments, granularity)

    def first_tokens(self, encoded: EncodedText) -> list[int]:
        """Position of the first token of every word."""
        seen, places = -1, []
        for token, unit in enumerate(self.units(encoded, "word").of_token):
            if unit is not None and unit > seen:
                seen = unit
                places.append(token)
        return places

    def texts(
        self,
        whole: Sequence[EncodedText],
        rows: Sequence[tuple[int, EncodedText]],
        scores: Sequence[RowScores],
        single_position: bool,
    ) -> list[Any]:
        """The explanation of every text from those of its rows."""
        first = rows[0][0] if rows else 0
        of_text: list[list[int]] = [[] for _ in whole]
        for i, (text, _) in enumerate(rows):
            of_text[text - first].append(i)
        result = []
        for encoded, group in zip(whole, of_text, strict=True):
            parts, found = [rows[i][1] for i in group], [scores[i] for i in group]
            if self.names.task == "token-classification":
                each = self._positions(encoded, parts, found)
                result.append(each[0] if single_position else each)
            elif len(parts) == 1:
                result.append(self._explanation(parts[0], found[0]))
            else:
                result.append(self._mean_of_windows(encoded, parts, found))
        return result

    def _positions(
        self, encoded: EncodedText, parts: Sequence[EncodedText], found: Sequence[RowScores]
    ) -> list[TextExplanation]:
        """One explanation a position; with windows, in the window where the position has most context."""
        owner = owners(parts, len(encoded)) if len(parts) > 1 else [0] * len(encoded)
        explanations = []
        for index, (part, scores) in enumerate(zip(parts, found, strict=True)):
            units, seen = self.units(part), set()
            for place, position in enumerate(scores.position):
                column = part.columns[position] if part.columns else position
                if position < 0 or position in seen or (len(parts) > 1 and owner[column] != index):
                    continue
                seen.add(position)
                probability = None if scores.probability is None else scores.probability[place]
                one = RowScores(
                    scores.target[place],
                    scores.values[place],
                    scores.contributions[place],
                    probability,
                    position,
                    None,
                )
                explanations.append(self._explanation(part, one, units))
        return explanations

    def _explanation(self, encoded: EncodedText, scores: RowScores, units: TextUnits | None = None) -> TextExplanation:
        units = units or self.units(encoded)
        sums = [units.sums(contributions) for contributions in scores.contributions]
        position = scores.position
        if isinstance(position, list):  # an answer's, of each target
            position = tuple(position[0]) if len({tuple(p) for p in position}) == 1 else None
        return self._build(
            encoded,
            units,
            scores.target,
            scores.values,
            scores.probability,
            token_scores=scores.contributions,
            unit_scores=[s for s, _ in sums],
            special=[s for _, s in sums],
            outside=[0.0] * len(sums),
            position=position,
            truncated=encoded.truncated,
        )

    def _mean_of_windows(
        self, encoded: EncodedText, parts: Sequence[EncodedText], found: Sequence[RowScores]
    ) -> TextExplanation:
        """The text's logit is the mean of its windows'; a token counts in the window where it has most context."""
        count, owner = len(parts), owners(parts, len(encoded))
        units = self.units(encoded)
        last = len(encoded.texts) - 1
        token_scores, special, outside, unit_scores = [], [], [], []
        for target in range(len(found[0].target)):
            tokens, elsewhere = [0.0] * len(encoded), 0.0
            for index, (part, scores) in enumerate(zip(parts, found, strict=True)):
                for column, segment, score in zip(
                    part.columns, part.segments, scores.contributions[target], strict=True
                ):
                    if segment != last or owner[column] == index:  # what stands in every window counts in each
                        tokens[column] += score / count
                    else:
                        elsewhere += score / count
            sums, specials = units.sums(tokens)
            token_scores.append(tokens)
            unit_scores.append(sums)
            special.append(specials)
            outside.append(elsewhere)
        values = [sum(scores.values[t] for scores in found) / count for t in range(len(token_scores))]
        probability = self._probability_of_mean(found)
        each = tuple(self._explanation(part, scores) for part, scores in zip(parts, found, strict=True))
        return self._build(
            encoded,
            units,
            found[0].target,
            values,
            probability,
            token_scores,
            unit_scores,
            special,
            outside,
            windows=each,
        )

    def _probability_of_mean(self, found: Sequence[RowScores]) -> list[float] | None:
        if found[0].probability is None:
            return None
        logits = torch.stack([scores.logits.float() for scores in found]).mean(0)
        config = self.names.config
        single = config.problem_type == "multi_label_classification" or config.num_labels == 1
        return (logits.sigmoid() if single else logits.softmax(-1))[found[0].target].tolist()

    def _build(
        self,
        encoded: EncodedText,
        units: TextUnits,
        targets: list[int],
        values: list[float],
        probability: list[float] | None,
        token_scores: list[list[float]],
        unit_scores: list[list[float]],
        special: list[float],
        outside: list[float],
        **rest: Any,
    ) -> TextExplanation:
        totals = [sum(scores) + s + o for scores, s, o in zip(unit_scores, special, outside, strict=True)]
        per_target = {
            "token_scores": token_scores,
            "scores": unit_scores,
            "special_tokens_score": special,
            "outside_score": outside,
            "label": [self.names.name(target) for target in targets],
            "logit": values,
            "probability": probability or [None] * len(targets),
            "residual": [value - total for value, total in zip(values, totals, strict=True)],
        }
        if self.several:
            per_target = {name: dict(zip(targets, value, strict=True)) for name, value in per_target.items()}
        else:
            per_target = {name: value[0] for name, value in per_target.items()}
        return TextExplanation(
            text=encoded.texts[0],
            text_pair=encoded.texts[1] if len(encoded.texts) == 2 else None,
            words=[encoded.texts[s][a:b] for s, (a, b) in zip(units.segments, units.spans, strict=True)],
            offsets=units.spans,
            segments=units.segments,
            target=targets if self.several else targets[0],
            tokens=encoded.tokens,
            unit_of_token=units.of_token,
            contrast=self.contrast,
            task=self.names.task,
            granularity=self.granularity if encoded.has_words else "token",
            **per_target,
            **rest,
        )
