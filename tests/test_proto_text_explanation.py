"""Explanations by prototypes as objects, files, pages, terminal texts and figures."""

import json
import re
from dataclasses import replace

import markupsafe
import matplotlib.pyplot
import pandas
import pytest
from rich.console import Console
from test_proto_explainer import proto_model
from test_renderings import HOSTILE, Page

from bcos_transformers import (
    BcosExplainer,
    ProtoExplainer,
    PrototypeExplanation,
    PrototypeShare,
    load_explanations,
    save_explanations,
)
from bcos_transformers.explanations.html import render_html
from conftest import bcos_model, make_tokenizer

TEXT = "The film is gripping, <script>alert(1)</script> [bold]funny[/bold]!"


@pytest.fixture(scope="module")
def split():
    """Its shares are split over words."""
    return ProtoExplainer(proto_model(), make_tokenizer(), top_k=4)(TEXT)


@pytest.fixture(scope="module")
def whole():
    """Its shares are not split."""
    return ProtoExplainer(proto_model(bcos=False, distance="l2"), make_tokenizer(), top_k=4)(TEXT)


@pytest.fixture(scope="module")
def unprojected():
    return ProtoExplainer(proto_model(bcos=False, projected=False), make_tokenizer(), top_k=4)(TEXT)


@pytest.fixture(scope="module")
def words():
    """Explanations of the other kind."""
    explainer = BcosExplainer(bcos_model(), make_tokenizer())
    return [explainer("soup"), explainer("not good", target="all")]


def test_json_round_trip(split, whole, unprojected):
    for explanation in (split, whole, unprojected):
        values = explanation.to_dict()
        assert values["format"] == "bcos-prototype-explanation/1"
        assert json.loads(json.dumps(values)) == json.loads(explanation.to_json())
        back = PrototypeExplanation.from_json(explanation.to_json(indent=2))
        assert back == explanation
        assert type(back.prototypes[0]) is PrototypeShare
        assert all(type(offset) is tuple for offset in back.offsets)
        assert PrototypeExplanation.from_dict(values) == explanation
    assert all(type(value) is float for value in (split.logit, split.probability, split.prototypes[0].contribution))


def first_share(change):
    def changed(values):
        first, *rest = values["prototypes"]
        return {"prototypes": [{**first, **change}, *rest]}

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "bcos-text-explanation/1"}, "not an explanation of the format"),
        ({"logit": 77.0}, "not to the logit of .*, which is 77:"),
        ({"other_prototypes_contribution": 9.0}, "shares come to"),
        ({"residual": float("nan")}, "come to nan"),
        ({"special_tokens_attention": 0.9}, "not to 1"),
        ({"attention": [0.5]}, "needs an offset and its attention"),
        ({"attention": None}, "wrong type"),
        ({"tokens": ["a"]}, "entries in `token_attention`"),
        ({"text": "something else"}, "not the word 'The'"),
        ({"special_tokens_score": 5.0}, "The words come to"),
        ({"words_residual": None}, "missing in the explanation"),
        ({"scores": None, "special_tokens_score": None, "token_scores": None, "words_residual": None}, "or none is"),
        ({"scores": [1.0]}, "as many scores"),
        ({"extra": 1}, "missing or too many: \\['extra'\\]"),
        ({"prototypes": 3}, "wrong type"),
        ({"prototypes": [3]}, "a prototype's share are missing"),
        (first_share({"extra": 1}), "a prototype's share are missing or too many: \\['extra'\\]"),
        (first_share({"weight": 99.0}), "Weight × similarity of prototype"),
        (first_share({"special_tokens_score": 9.0}), "The words of prototype"),
        (first_share({"contribution": "much"}), "wrong type"),
        (lambda values: {"prototypes": values["prototypes"][::-1]}, "largest shares first"),
        (lambda values: {"offsets": [[0], *values["offsets"][1:]]}, "wrong type: offsets are pairs"),
    ],
)
def test_numbers_that_were_changed_are_noticed(split, change, message):
    values = split.to_dict()
    with pytest.raises(ValueError, match=message):
        PrototypeExplanation.from_dict({**values, **(change(values) if callable(change) else change)})


def test_what_is_no_explanation_at_all(words):
    for text in ("[]", "3", '{"a": 1}', "no json", words[0].to_json()):
        with pytest.raises(ValueError, match=r"not an explanation|Expecting"):
            PrototypeExplanation.from_json(text)


def test_short_forms(split, unprojected):
    assert split.top(2) == split.prototypes[:2]
    assert split.top(99) == split.prototypes
    assert repr(split).startswith(f"PrototypeExplanation({TEXT[:59]!r}"[:-1])
    assert f"{split.label!r}: {split.logit:+.4f}, most like {split.prototypes[0].text!r}" in repr(split)
    assert "not projected onto a text" in repr(unprojected)


def test_data_frame(split, unprojected):
    frame = split.to_dataframe()
    assert list(frame.columns) == ["number", "text", "label", "index", "similarity", "weight", "contribution"]
    assert frame["text"].tolist() == [share.text for share in split.prototypes]
    total = frame["contribution"].sum() + split.other_prototypes_contribution + split.bias + split.residual
    assert total == pytest.approx(split.logit, abs=1e-10)
    assert unprojected.to_dataframe()["text"].isna().all()


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_files_of_both_kinds(split, whole, unprojected, words, tmp_path, ending):
    explanations = [split, *words, whole, unprojected]
    path = tmp_path / f"explanations.{ending}"
    save_explanations(explanations, path)
    assert load_explanations(path) == explanations
    if ending == "parquet":
        frame = pandas.read_parquet(path)
        assert frame["text"].tolist() == [explanation.text for explanation in explanations]
        assert frame["scores"][0].tolist() == split.scores
        assert frame["scores"][3] is None


def test_a_damaged_line_is_named(split, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(split.to_json() + "\n" + split.to_json().replace(f'"logit": {split.logit}', '"logit": 1e3') + "\n")
    with pytest.raises(ValueError, match=r"Entry 2 of .*bad\.jsonl is not an explanation: The shares"):
        load_explanations(path)


def words_of(parsed, kind):
    return [a for a in parsed.all("span") if "data-score" in a and (kind in a["class"].split())]


def test_page_shows_prototypes_and_sums(split, whole, unprojected):
    for explanation in (split, whole, unprojected):
        page = explanation.to_html()
        assert "This looks like" in page
        for share in explanation.prototypes:
            assert str(markupsafe.escape(share.name)) in page
            assert f"{share.contribution:+.4f}" in page
            assert f"similarity {share.similarity:.4f} × weight {share.weight:+.4f}" in page
            assert (f"training text {share.index}" in page) == (share.text is not None)
        terms = [f"prototype {share.number} {share.contribution:+.4f}" for share in explanation.prototypes]
        terms += [f"2 others {explanation.other_prototypes_contribution:+.4f}", f"bias {explanation.bias:+.4f}"]
        sums = f"{' + '.join(terms)} = sum {explanation.total:+.4f} = logit {explanation.logit:+.4f}"
        assert sums in page
        assert page.count('class="bar minus"') == sum(share.contribution < 0 for share in explanation.prototypes)
    assert "not projected onto a text" in unprojected.to_html()


def test_words_are_coloured_where_shares_split_and_shaded_where_not(split, whole):
    parsed = Page(split.to_html())
    assert parsed.paragraphs == [TEXT] * 6  # the text, its attention, and once for each of four prototypes
    attention = [f"α {100 * value:.1f} %" for value in split.attention]
    assert [a["data-score"] for a in words_of(parsed, "attended")] == attention
    shown = [a["data-score"] for a in words_of(parsed, "for") + words_of(parsed, "against")]
    wanted = split.scores + [score for share in split.prototypes for score in share.scores]
    assert sorted(shown) == sorted(f"{score:+.4f}" for score in wanted)
    assert len(parsed.all("details")) == 5
    assert not [a for a in parsed.all("details") if "open" in a]
    for share in split.prototypes:
        assert (
            f"= sum {sum(share.scores) + share.special_tokens_score:+.4f} = share {share.contribution:+.4f}"
            in split.to_html()
        )
    parsed = Page(whole.to_html())
    assert parsed.paragraphs == [TEXT]
    assert len(words_of(parsed, "attended")) == len(whole.words)
    assert not words_of(parsed, "for")
    assert not parsed.all("details")
    strengths = [float(a["style"].removeprefix("--s:")) for a in words_of(parsed, "attended")]
    assert strengths == pytest.approx([value / max(whole.attention) for value in whole.attention], abs=1e-3)


def test_special_tokens_are_shown_on_demand(split, whole):
    for explanation in (split, whole):
        assert set(Page(explanation.to_html(show_special_tokens=True)).paragraphs) == {f"[CLS]{TEXT}[SEP]"}


def hostile(explanation):
    """With texts and labels that try to be more than text."""
    shares = [
        replace(share, text=HOSTILE[i % len(HOSTILE)], label="<i>0</i>")
        for i, share in enumerate(explanation.prototypes)
    ]
    return replace(explanation, prototypes=shares, label="<b>1</b>")


def test_page_of_both_kinds_is_whole_and_needs_nothing_else(split, whole, unprojected, words):
    explanations = [split, *words, hostile(split), whole, hostile(whole), unprojected]
    page = render_html(explanations, title="</title><script>")
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.all("article")) == 7
    assert not {tag for tag, _ in parsed.tags} & {"script", "img", "link", "iframe", "object", "b", "i", "form"}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert not re.search(r"https?:|@import|url\(|src=", styles)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; dull" in page
    assert "{{ 7 * 7 }} {% raw %} ${x}" in page
    for kind in ("for it", "shaded", "made of similarities to training texts"):
        assert kind in page
    assert "Elsewhere a text" in page


def test_the_page_explains_only_what_it_shows(split, whole, words):
    assert "similarities to training texts" not in render_html(words)
    assert "shaded" not in render_html(words)
    alone = render_html([whole])
    assert "coloured by its signed contribution" not in alone
    assert "A text is" in alone
    assert "Each word is coloured" in render_html([split])
    assert "Each word is coloured" in render_html([])


def test_notebooks_get_a_fragment(split, monkeypatch):
    fragment = split._repr_html_()
    assert fragment.startswith('<div class="bcos">')
    assert Page(fragment).open == []
    monkeypatch.setattr("bcos_transformers.explanations.html.require", _missing)
    assert split._repr_html_() is None


def _missing(module, extra):
    raise ImportError(module)


def printed(explanation, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(explanation.to_terminal())
    return console.export_text()


def test_terminal(split, whole, unprojected):
    for explanation in (split, hostile(split), whole, unprojected):
        plain = explanation.to_terminal().plain
        assert "this looks like:" in plain
        for share in explanation.prototypes:
            name = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(share.name.split()))
            assert f"{share.label}: {name}" in plain
            assert f"{share.contribution:+.4f}" in plain
        assert f"sum {explanation.total:+.4f} = logit {explanation.logit:+.4f}" in plain
        assert "[bold]funny[/bold]" in re.sub(r"[+-]\d\.\d\d|\d+%", "", printed(explanation, 200))
        for width in (20, 40, 80):
            lines = printed(explanation, width).splitlines()
            assert max(map(len, lines)) <= width
    assert "through" in split.to_terminal().plain
    assert "through" not in whole.to_terminal().plain


def test_texts_cannot_steer_the_terminal_and_long_ones_are_shortened(whole):
    first, *rest = whole.prototypes
    shown = replace(whole, prototypes=[replace(first, text="a\x1b[31m\x07" + "b" * 500), *rest]).to_terminal().plain
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "b" * 150 in shown
    assert "b" * 200 not in shown


def test_truncation_is_said(split):
    cut = replace(split, truncated=True)
    assert "[the text was cut]" in cut.to_terminal().plain
    assert "a part of it was cut" in cut.to_html()
    assert "a part of it was cut" not in split.to_html()


def test_bars_are_the_shares(split, whole, unprojected, tmp_path):
    figure = split.plot()
    axes = figure.axes[0]
    wanted = [share.contribution for share in split.prototypes] + [split.other_prototypes_contribution]
    assert [bar.get_width() for bar in axes.patches] == wanted
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[-1] == "2 other prototypes"
    assert all(share.label in name for share, name in zip(split.prototypes, names, strict=False))
    bars = replace(whole, bias=whole.bias + 1, logit=whole.logit + 1).plot(max_prototypes=2).axes[0].patches
    assert len(bars) == 4
    assert sum(bar.get_width() for bar in bars) == pytest.approx(whole.logit + 1, abs=1e-10)
    assert "not projected" in unprojected.plot().axes[0].get_yticklabels()[0].get_text()
    dollars = replace(split, prototypes=[replace(split.prototypes[0], text="$x$ " * 40), *split.prototypes[1:]])
    dollars.plot().savefig(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert matplotlib.pyplot.get_fignums() == []
    with pytest.raises(ValueError, match="`max_prototypes` must be at least 1"):
        split.plot(max_prototypes=0)
