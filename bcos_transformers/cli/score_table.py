"""An explained text as tables of words and scores."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bcos_transformers.cli.output import printable
from bcos_transformers.explanations import TextExplanation
from bcos_transformers.explanations.layout import heading, prototypes_sum_line, sum_line
from bcos_transformers.prototypes import PrototypeExplanation

COLUMNS = 4  # targets a table
TITLE = 72  # characters


def score_tables(explanation: TextExplanation | PrototypeExplanation, top: int | None = None) -> Iterator[Table]:
    """Tables with a row a word and a column a target, and under them the sum that is the logit.

    Of a text explained by prototypes, one table with a row a prototype.

    Args:
        explanation: one explained text.
        top: only the words with the largest contributions (to any of a table's targets), largest first.
    """
    if isinstance(explanation, PrototypeExplanation):
        yield _prototype_table(explanation)
        return
    targets = explanation.targets
    for begin in range(0, len(targets), COLUMNS):
        yield _table(explanation, [explanation.for_target(t) for t in targets[begin : begin + COLUMNS]], top)


def _table(explanation: TextExplanation, singles: list[TextExplanation], top: int | None) -> Table:
    table = Table(box=SIMPLE_HEAD, title=Text(_title(explanation), style="bold"), title_justify="left", pad_edge=False)
    table.add_column(explanation.granularity, overflow="fold")
    for single in singles:
        table.add_column(_heading(single), justify="right", overflow="fold")
    order = list(range(len(explanation)))
    if top is not None:
        order = sorted(order, key=lambda i: -max(abs(single.scores[i]) for single in singles))
    shown, rest = order[:top], order[len(order) if top is None else top :]
    for i in shown:
        table.add_row(_cell(explanation.words[i]), *(_number(single.scores[i]) for single in singles))
    if rest:
        sums = [_number(sum(single.scores[i] for i in rest)) for single in singles]
        table.add_row(Text(f"{len(rest)} more {explanation.granularity}s", style="italic"), *sums)
    table.add_section()
    terms = [dict(sum_line(single)) for single in singles]
    for name in dict.fromkeys(name for of_one in terms for name in of_one):
        table.add_row(Text(name, style="dim"), *(_number(of_one.get(name, 0.0), "dim") for of_one in terms))
    table.add_row("logit", *(_number(single.logit, "bold") for single in singles))
    table.add_row(Text("residual", style="dim"), *(Text(f"{single.residual:+.0e}", style="dim") for single in singles))
    return table


def _prototype_table(explanation: PrototypeExplanation) -> Table:
    table = Table(
        box=SIMPLE_HEAD, title=Text(_titled(explanation, ""), style="bold"), title_justify="left", pad_edge=False
    )
    table.add_column("looks like", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("similarity", justify="right")
    table.add_column("× weight", justify="right")
    table.add_column(_heading(explanation), justify="right", overflow="fold")
    for share in explanation.prototypes:
        known = _shortened(_one_line(share.name))
        numbers = (Text(f"{share.similarity:.4f}"), _number(share.weight), _number(share.contribution))
        table.add_row(Text(known), Text(_one_line(share.label)), *numbers)
    table.add_section()
    between = ("", "", "")
    for name, value in prototypes_sum_line(explanation)[len(explanation.prototypes) :]:  # rows already
        table.add_row(Text(name, style="dim"), *between, _number(value, "dim"))
    table.add_row("logit", *between, _number(explanation.logit, "bold"))
    table.add_row(Text("residual", style="dim"), *between, Text(f"{explanation.residual:+.0e}", style="dim"))
    return table


def _title(explanation: TextExplanation) -> str:
    pair = "" if explanation.text_pair is None else f"  |  {_one_line(explanation.text_pair)}"
    windows = f"  [mean of {len(explanation.windows)} windows]" if explanation.windows else ""
    return _titled(explanation, pair) + windows


def _titled(explanation: TextExplanation | PrototypeExplanation, pair: str) -> str:
    cut = "  [the text was cut]" if explanation.truncated else ""
    return _shortened(_one_line(explanation.text) + pair) + cut


def _shortened(text: str) -> str:
    return text if len(text) <= TITLE else f"{text[: TITLE - 1]}…"


def _heading(single: TextExplanation | PrototypeExplanation) -> Text:
    share = "" if single.probability is None else f"\n{single.probability:.0%}"
    return Text(_one_line(heading(single)) + share)


def _cell(word: str) -> Text:
    return Text(_one_line(word))


def _number(value: float, style: str = "") -> Text:
    return Text(f"{value:+.4f}", style=style)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
