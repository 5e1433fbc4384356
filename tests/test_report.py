"""The benchmark's report: table, figure and records from cells written by hand."""

import importlib
import json
import math
from pathlib import Path

import pandas
import pytest
from PIL import Image

from bcos_transformers.evaluation.bootstrap import bootstrap_interval
from bcos_transformers.evaluation.report import failures, figure, latex, markdown, table, write_report

NAMES = ("comprehensiveness", "sufficiency", "log_odds", "aopc_comprehensiveness", "aopc_sufficiency")
FILES = {"table.csv", "table.md", "table.tex", "records.jsonl", "faithfulness.png", "differences.csv"}


def cell(model: str, method: str, comprehensiveness, sufficiency=None, **fields) -> dict:
    """A cell whose texts have these scores."""
    sufficiency = sufficiency or [0.1] * len(comprehensiveness)
    records = []
    for i, (a, b) in enumerate(zip(comprehensiveness, sufficiency, strict=True)):
        record = {"index": i, "comprehensiveness": a, "sufficiency": b}
        if method != "search":
            record |= {"label": 0, "predicted": 0, "scores": [0.0, 1.0, 0.0], **dict.fromkeys(NAMES[2:], 0.25)}
        records.append(record | fields.pop(f"record{i}", {}))
    values = {"texts": len(records), "accuracy": 0.5, "cost": 2.0, "seconds": 0.012, "residuals": None, "seqpg": None}
    return {"model": model, "method": method, "fingerprint": "0", **values, "records": records, **fields}


def failed(model: str, method: str, error: str) -> dict:
    return {**cell(model, method, [], cost=None, seconds=None, accuracy=None), "texts": 2, "error": error}


SEARCH = {"cost": None, "seconds": None}
CELLS = [
    cell("A", "bcos", [0.6, 0.3], [0.0, 0.2], residuals=[1e-7, 3e-7], seqpg=[0.75, 0.5], record0={"f1": 0.5}),
    cell("A", "random", [0.1, 0.2], [0.2, 0.4], cost=0.0),
    cell("A", "search", [0.5, 0.48], [0.1, 0.0], **SEARCH),
    cell("B", "occlusion", [0.4, 0.4]),
]


def lines_of(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.strip("|\n").split(" | ")] for line in text.splitlines() if "|" in line]


def test_the_table_by_hand():
    frame = table(CELLS)
    bcos = frame.iloc[0]
    assert bcos["comprehensiveness"] == pytest.approx(0.45)
    _, low, high = bootstrap_interval([[0.6, 0.3]])
    assert (bcos["comprehensiveness_low"], bcos["comprehensiveness_high"]) == (low, high)
    # Random reaches 0.15 and 0.3; the best of each text, whoever found it, 0.54 and 0.0.
    assert bcos["normalized_comprehensiveness"] == pytest.approx((0.45 - 0.15) / (0.54 - 0.15))
    assert bcos["normalized_sufficiency"] == pytest.approx((0.1 - 0.3) / (0.0 - 0.3))
    assert frame.iloc[1]["normalized_comprehensiveness"] == pytest.approx(0)
    assert (bcos["residual"], bcos["seqpg"], bcos["f1"]) == (3e-7, 0.625, 0.5)
    assert bcos["error"] is None
    assert math.isnan(frame.iloc[3]["normalized_comprehensiveness"])


def test_normalized_scores_are_bounded_by_the_best_of_each_text():
    cells = [
        cell("A", "random", [0.1, 0.2]),
        cell("A", "search", [0.3, 0.2], **SEARCH),
        cell("A", "lime", [0.2, 0.9]),  # better than the search on one text
        cell("A", "bcos", [0.3, 0.9]),
        cell("A", "saliency", [0.0, 0.1]),
    ]
    normalized = table(cells)["normalized_comprehensiveness"].tolist()
    assert max(normalized) == pytest.approx(1.0, abs=1e-12)
    assert normalized[3] == max(normalized)
    assert normalized[1] < 1
    assert normalized[4] < 0  # worse than chance is shown as such


@pytest.mark.parametrize("without", ["random", "search"])
def test_without_random_or_search_nothing_is_normalized(without):
    frame = table([one for one in CELLS if one["method"] != without])
    assert frame["normalized_comprehensiveness"].isna().all()
    assert "norm." not in markdown(frame)
    text = markdown(table([*CELLS]))
    header, _, *rows = lines_of(text)
    place = header.index("comp. norm. ↑")
    assert [row[place].split(" ± ")[0] for row in rows] == ["76.9", "0.0", "87.2", "–"]
    assert rows[1][place] == "0.0 ± 0.0"  # the end of the scale


def test_markdown_shows_only_columns_that_have_numbers():
    header, rule, *rows = lines_of(markdown(table(CELLS)))
    assert header == [
        *("model", "method", "comp. ↑", "suff. ↓", "comp. norm. ↑", "suff. norm. ↑", "SeqPG ↑", "F1 ↑", "residual ↓"),
        *("cost", "ms/text"),
    ]
    assert rule[0].count("|") == len(header) - 1
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][:3] == ["A", "bcos", "45.0 ± 15.0"]
    assert rows[0][-5:] == ["62.5 ± 12.5", "50.0 ± 0.0", "3e-07", "2.0", "12"]
    assert rows[2][-5:] == ["–"] * 5
    (header, _, row) = lines_of(markdown(table(CELLS[3:])))
    assert header == ["model", "method", "comp. ↑", "suff. ↓", "residual ↓", "cost", "ms/text"]
    assert row == ["B", "occlusion", "40.0 ± 0.0", "10.0 ± 0.0", "–", "2.0", "12"]


def test_scores_without_sign_are_said_to_be():
    methods = ("random", "saliency", "attention", "bcos")
    shown = markdown(table([cell("one", method, [0.4, 0.5], seqpg=[0.5, 0.6]) for method in methods]))
    lines = {line.split("|")[2].strip(): line for line in shown.splitlines()[2:]}
    assert "(no sign)" in lines["saliency"]
    assert "(no sign)" in lines["attention"]
    assert "(no sign)" not in lines["bcos"]
    assert "(no sign)" not in lines["random"]


def test_no_minus_before_zero():
    frame = table([cell("A", "bcos", [-1e-9, 1e-12], [-0.03, -0.05])])
    assert "| 0.0 ± 0.0 | -4.0 ± 1.0 |" in markdown(frame)
    assert r" & 0.0 $\pm$ 0.0 & $-$4.0 $\pm$ 1.0 & " in latex(frame)


def test_latex_and_markdown_escape_names():
    name = "a_b|c & 50% {x} $y #z ~^\\<p>"
    cells = [cell(name, "input_x_gradient", [0.1]), failed(name, "lime", "no_thing | 100%\nleft")]
    text = latex(table(cells), "2 texts\nof 50%")
    escaped = (
        r"a\_b\textbar{}c \& 50\% \{x\} \$y \#z \textasciitilde{}\textasciicircum{}\textbackslash{}"
        r"\textless{}p\textgreater{} & input x gradient & 10.0 $\pm$ 0.0 & "
    )
    assert escaped in text
    assert text.startswith("% 2 texts\n% of 50%\n% lime failed on ")
    body = text[text.index(r"\begin") :]
    assert not any(sign in body for sign in "↑↓±–×")
    assert body.splitlines()[0] == r"\begin{tabular}{llrrrrr}"
    rows = body.splitlines()[4:6]
    assert all(row.endswith(r" \\") and row.count(" & ") == 6 for row in rows)  # "\&" is none
    assert r"a_b\|c & 50% {x} $y #z ~^\&lt;p> | input x gradient" in markdown(table(cells))


def test_failed_cells_are_shown_and_explained():
    cells = [*CELLS, failed("A", "deep_lift", "set the padding | token"), failed("B", "lime", "no")]
    frame = table(cells)
    text = markdown(frame)
    assert "| A | deep lift | failed | – | – |" in text
    assert text.endswith("\n\ndeep lift failed on A: set the padding \\| token\n\nlime failed on B: no\n")
    assert failures(frame) == ["deep lift failed on A: set the padding | token", "lime failed on B: no"]
    whole = table(CELLS)
    assert list(frame.columns) == list(whole.columns)
    numbers = [name for name in whole.columns if name != "error"]
    pandas.testing.assert_frame_equal(frame[numbers].iloc[:4], whole[numbers], check_dtype=False)
    alone = markdown(table([failed("A", "lime", "no")]))
    assert "| A | lime | failed | – | – |" in alone


def test_every_file_is_written(tmp_path):
    cells = [*CELLS, failed("A", "deep_lift", "no padding")]
    frame = write_report(cells, tmp_path / "new" / "folder", "Two texts.")
    output = tmp_path / "new" / "folder"
    assert {path.name for path in output.iterdir()} == FILES
    read = pandas.read_csv(output / "table.csv")
    assert list(read.columns) == list(frame.columns)
    assert read["comprehensiveness"].tolist()[:4] == frame["comprehensiveness"].tolist()[:4]
    assert read["error"].tolist()[4] == "no padding"
    assert (output / "table.md").read_text(encoding="utf-8") == markdown(frame) + "\nTwo texts.\n"
    assert (output / "table.tex").read_text(encoding="utf-8") == latex(frame, "Two texts.")
    records = [json.loads(line) for line in (output / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["model"], one["method"], one["index"]) for one in records] == [
        (one["model"], one["method"], i) for one in CELLS for i in range(2)
    ]
    assert records[0]["f1"] == 0.5
    with Image.open(output / "faithfulness.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**24)) > 50


def test_a_report_replaces_an_older_one_whole(tmp_path, monkeypatch):
    write_report(CELLS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(self, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_report(CELLS[:1], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_report(CELLS[:1], tmp_path)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2


def test_missing_numbers_are_left_out_of_means():
    one = cell("A", "bcos", [0.1, 0.2, 0.3], record0={"phrases": 0.5}, record1={"phrases": None})
    frame = table([one])
    assert frame["phrases"].tolist() == [0.5]
    assert frame["f1"].isna().all()


def test_figures_of_odd_cells(tmp_path):
    odd = [
        cell("_hidden", "bcos", [0.1] * 3),  # an interval without width
        cell("costs $5 and $6", "random", [0.3, 0.1, 0.2], cost=0.0),
        failed("gone", "lime", "no"),
    ]
    figure(table(odd), tmp_path / "odd.png")
    figure(table([cell("A", "search", [0.5], **SEARCH), failed("A", "lime", "no")]), tmp_path / "none.png")
    assert (tmp_path / "odd.png").read_bytes() != (tmp_path / "none.png").read_bytes()


def test_without_matplotlib_there_is_everything_but_the_figure(tmp_path, monkeypatch, caplog):
    real = importlib.import_module

    def without(name: str, *rest):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    write_report(CELLS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"faithfulness.png"}
    assert (
        "There is no figure. This needs the package 'matplotlib': pip install 'bcos-transformers[viz]'." in caplog.text
    )


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="No cell of the benchmark is finished"):
        write_report([], tmp_path)
    assert list(tmp_path.iterdir()) == []
