"""The best ranking that a search finds for each text: what an explanation of this model could reach at most, or nearly."""

from collections.abc import Sequence

import torch

from bcos_transformers.evaluation.perturbation import PERCENTAGES, count_of
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, Row


def greedy_orders(
    classifier: Classifier, rows: Sequence[Row], budget: int = 400, keep: bool = False, replacement: str = "mask"
) -> list[list[int]]:
    """Greedy search for the order of tokens that scores best, by the predicted class's probability itself.

    For comprehensiveness (`keep=False`) the next tokens to hide are those whose hiding lowers the probability most, given
    what is hidden already; for sufficiency (`keep=True`) the next ones to show are those whose showing raises it most.
    One after the other where the budget permits it, several at a time in long texts.

    Args:
        classifier: the model.
        rows: the texts.
        budget: forward passes a text may take; each round takes as many as tokens are left. One round is always made.
        keep: search for sufficiency.
        replacement: how a token is hidden.

    Returns:
        Of each text, positions in the order found.
    """
    states = [_State(row, budget) for row in rows]
    whole = classifier.probabilities([ChangedRow(row) for row in rows], replacement, "Whole texts").argmax(-1).tolist()
    rounds = 0
    while open_states := [i for i, state in enumerate(states) if state.left]:
        rounds += 1
        tried = [(i, position) for i in open_states for position in states[i].left]
        changed = [ChangedRow(states[i].row, states[i].hidden(position, keep)) for i, position in tried]
        found = classifier.probabilities(changed, replacement, f"Search, round {rounds}")
        values: dict[int, dict[int, float]] = {}
        for (i, position), row in zip(tried, found, strict=True):
            values.setdefault(i, {})[position] = float(row[whole[i]])
        for i in open_states:
            states[i].take(values[i], keep)
    return [state.taken for state in states]


class _State:
    def __init__(self, row: Row, budget: int) -> None:
        self.row, self.taken, self.left = row, [], row.positions
        count = len(self.left)
        self.ends = _steps(count, budget)

    def hidden(self, position: int, keep: bool) -> frozenset[int]:
        touched = {*self.taken, position}
        return frozenset(set(self.row.positions) - touched if keep else touched)

    def take(self, values: dict[int, float], keep: bool) -> None:
        end = next(e for e in self.ends if e > len(self.taken))
        order = sorted(self.left, key=lambda position: values[position], reverse=keep)
        new = order[: end - len(self.taken)]
        self.taken = [*self.taken, *new]
        self.left = [position for position in order if position not in set(new)]


def _steps(count: int, budget: int) -> list[int]:
    """How many tokens are taken after each round."""
    if count * (count + 1) // 2 <= budget:
        return list(range(1, count + 1))
    for rounds in range(len(PERCENTAGES), 1, -1):
        places = torch.linspace(0, len(PERCENTAGES) - 1, rounds).round().long().tolist()
        cuts = sorted({count_of(PERCENTAGES[place], count) for place in places} - {count})
        if count + sum(count - cut for cut in cuts) <= budget:
            return [*cuts, count]
    return [count]
