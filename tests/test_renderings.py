"""Terminal, page, notebook and figures: sums are shown as they are, and users' text stays text."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.pyplot
import pytest
from rich.console import Console

from bcos_transformers import BcosExplainer
from bcos_transformers.explanations.html import render_html
from bcos_transformers.explanations.layout import pieces_of
from bcos_transformers.extras import require
from conftest import bcos_model, make_tokenizer

HOSTILE = [
    "<script>alert(1)</script> & dull",
    '"><img src=x onerror=alert(1)>',
    "</style></title><b>film",
    "{{ 7 * 7 }} {% raw %} ${x}",
    "\u202efilm good\u202c שלום",
]
TEXTS = ["The film is gripping, funny!", "", "soup", "a  b\n\nc \U0001f600", *HOSTILE]


@pytest.fixture(scope="module")
def explainer():
    return BcosExplainer(bcos_model(), make_tokenizer())


@pytest.fixture(scope="module")
def explanations(explainer):
    return explainer(TEXTS)


class Page(HTMLParser):
    """Collects a page's elements and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.paragraphs: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "p" and dict(attrs).get("class") == "text":
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "p" in self.open and self.paragraphs:
            self.paragraphs[-1] += data

    def all(self, tag: str, **attributes: str) -> list[dict]:
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]


@pytest.mark.parametrize("special", [False, True])
def test_pieces_are_the_text(explanations, special):
    for explanation in explanations:
        (line,) = pieces_of(explanation, special)
        assert "".join(piece.text for piece in line if not piece.special) == explanation.text
        assert [piece.score for piece in line if piece.score is not None and not piece.special] == explanation.scores
        specials = [piece.text for piece in line if piece.special]
        assert specials == (["[CLS]", "[SEP]"] if special else [])
        assert max((piece.strength for piece in line), default=1.0) <= 1.0


def test_special_tokens_stand_where_they_are(explainer):
    first, second = pieces_of(explainer(("good film", "bad")), special_tokens=True)
    assert [piece.text for piece in first] == ["[CLS]", "good", " ", "film", "[SEP]"]
    assert [piece.text for piece in second] == ["bad", "[SEP]"]


def test_page_shows_texts_scores_and_sums(explanations):
    page = Page(render_html(explanations, title="<b>title</b>"))
    assert page.paragraphs == [e.text for e in explanations]
    words = [a for a in page.all("span") if "data-score" in a]
    assert [a["data-score"] for a in words] == [f"{score:+.4f}" for e in explanations for score in e.scores]
    assert all(a["tabindex"] == "0" for a in words)
    for word, score in zip(words, [s for e in explanations for s in e.scores], strict=True):
        assert ("for" in word["class"].split()) == (score >= 0)
    text = render_html(explanations)
    for explanation in explanations:
        assert f"sum {explanation.total:+.4f} = logit {explanation.logit:+.4f}" in text


def test_page_is_whole_and_needs_nothing_else(explainer, explanations):
    page = render_html([*explanations, explainer(TEXTS[0], target="all")], title="</title><script>")
    parsed = Page(page)
    assert parsed.open == []
    assert not {tag for tag, _ in parsed.tags} & {"script", "img", "link", "iframe", "object", "b", "form"}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert not re.search(r"https?:|@import|url\(|src=", styles)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }} {% raw %} ${x}" in parsed.paragraphs
    for wanted in ("prefers-color-scheme: dark", "@media print", ":focus"):
        assert wanted in page


def test_several_targets_are_chosen_by_radio_buttons(explainer):
    page = Page(render_html([explainer(TEXTS[0], target="all"), explainer(TEXTS[2], target=[2, 1])]))
    buttons = page.all("input", type="radio")
    assert len(buttons) == 5
    assert [("checked" in b) for b in buttons] == [True, False, False, True, False]
    assert {b["name"] for b in buttons} == {buttons[0]["name"], buttons[3]["name"]}
    assert buttons[0]["name"] != buttons[3]["name"]
    assert [a["for"] for a in page.all("label")] == [b["id"] for b in buttons]
    assert page.paragraphs == [TEXTS[0]] * 3 + [TEXTS[2]] * 2


def test_notebooks_get_a_fragment(explainer, explanations):
    fragment = explanations[4]._repr_html_()
    parsed = Page(fragment)
    assert fragment.startswith('<div class="bcos">')
    assert parsed.open == []
    assert parsed.paragraphs == [TEXTS[4]]
    several = explainer(TEXTS[0], target="all")
    ids = [Page(several._repr_html_()).all("input")[0]["id"] for _ in range(2)]
    assert ids[0] != ids[1]  # two outputs on one page do not switch each other


def test_without_jinja2_a_notebook_falls_back_to_text(explanations, monkeypatch):
    monkeypatch.setattr("bcos_transformers.explanations.html.require", _missing)
    assert explanations[0]._repr_html_() is None
    with pytest.raises(ImportError):
        explanations[0].to_html()


def _missing(module, extra):
    raise ImportError(module)


def test_truncation_windows_and_special_tokens_are_shown(explainer):
    cut = explainer("film " * 40)
    assert "a part of it was cut" in cut.to_html()
    assert "[the text was cut]" in cut.to_terminal().plain
    assert "a part of it was cut" not in explainer("soup").to_html()
    long = explainer("film good " * 30, stride=5, target="all")
    assert "mean of 3 windows" in long.to_terminal().plain
    assert "Read in 3 windows" in long.to_html()
    assert "overlaps" in long.to_html()
    special = explainer("soup").to_html(show_special_tokens=True)
    assert Page(special).paragraphs == ["[CLS]soup[SEP]"]
    assert "left out" in explainer("a good film")[:2].to_html()


def test_terminal_shows_text_and_sum(explanations):
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    for explanation in explanations:
        console.print(explanation.to_terminal())
    text = console.export_text()
    assert "<script>alert(1)</script>" in re.sub(r"[+-]\d\.\d\d", "", text)
    for explanation in explanations:
        assert f"sum {explanation.total:+.4f} = logit {explanation.logit:+.4f}" in text


def test_text_cannot_steer_the_terminal(explainer):
    shown = explainer("film\x1b[31m good\x07 [bold]soup[/bold]").to_terminal().plain
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]soup" in re.sub(r"[+-]\d\.\d\d", "", shown)


def test_terminal_shows_several_targets_one_after_the_other(explainer):
    several = explainer("not good", target=[1, 0])
    assert several.to_terminal().plain.split("\n")[0::2] == [
        several.for_target(target).to_terminal().plain.split("\n")[0] for target in (1, 0)
    ]


def test_contrast_and_explained_word_are_named(explainer):
    contrasted = explainer("not good", target=1, contrast=0)
    assert "LABEL_1 rather than LABEL_0" in contrasted.to_html()
    assert "LABEL_1 rather than LABEL_0" in contrasted.to_terminal().plain
    mean = explainer("not good", contrast="mean")
    assert "rather than the mean" in mean.to_terminal().plain
    token = BcosExplainer(bcos_model("token-classification"), make_tokenizer())("soup film")[1]
    assert token.to_terminal().plain.startswith(f"film: {token.label}")


def test_rounding_is_not_called_equality(explanations):
    off = replace(explanations[0], logit=explanations[0].logit + 0.1, residual=explanations[0].residual + 0.1)
    assert "≈ logit" in off.to_terminal().plain
    assert "≈ logit" in off.to_html()


def test_bars_are_the_scores(explanations):
    one = explanations[0]
    figure = one.plot()
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [*one.scores, one.special_tokens_score]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*one.words, "special tokens"]
    assert matplotlib.pyplot.get_fignums() == []


def test_bars_of_a_long_text_keep_the_total(explainer):
    one = explainer("film " * 20 + "good soup")
    figure = one.plot(max_units=5)
    bars = figure.axes[0].patches
    assert len(bars) == 7
    assert sum(bar.get_width() for bar in bars) == pytest.approx(one.total, abs=1e-9)
    assert "17 more words" in figure.axes[0].get_xlabel()


def test_heat_map_is_the_scores(explainer):
    several = explainer("not $good$ soup", target="all")
    figure = several.plot()
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (3, 4)
    for row, target in enumerate(several.target):
        assert image[row].tolist() == pytest.approx([*several.scores[target], several.special_tokens_score[target]])


def test_figures_are_drawn(explanations, explainer, tmp_path):
    for index, explanation in enumerate([*explanations, explainer("a film", target="all")]):
        if explanation.text.isascii():  # the font of matplotlib lacks the others
            explanation.plot().savefig(tmp_path / f"{index}.png")
            assert (tmp_path / f"{index}.png").read_bytes().startswith(b"\x89PNG")
    explainer("a film").plot("heatmap").savefig(tmp_path / "one.svg")


def test_figures_that_cannot_be(explainer):
    with pytest.raises(ValueError, match="one of bar, heatmap"):
        explainer("film").plot("pie")
    with pytest.raises(ValueError, match="Bars show one target"):
        explainer("film", target="all").plot("bar")


def test_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"pip install 'bcos-transformers\[viz\]'"):
        require("no_such_package.module", "viz")


def test_labels_are_escaped_too(explainer):
    label = "<i>0</i>"
    named = replace(explainer("film"), label=label)
    assert label not in named.to_html()
    assert html.escape(label) in named.to_html()
