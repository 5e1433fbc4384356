"""The demo page: its functions, what it refuses, its files, and what the Space says of itself."""

import importlib.util
import os
import re
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio", reason="the demo page needs the extra 'demo'")
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from bcos_transformers import TextExplanation
from conftest import bcos_model, make_tokenizer

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "examples" / "space"
HOSTILE = {
    "script": "<script>alert(1)</script> film",
    "image": '"><img src=x onerror=alert(1)> film',
    "templates": "${alert(1)} {{ 7 * 7 }} {% raw %} film",
    "right to left": "\u202egood film\u202c שלום עולם مرحبا",
    "emoji": "film 😀👩‍👩‍👧‍👦🏳️‍🌈 good",
    "control characters": "good\x00\x07\x1b[31m film\x7f\r\n\tdull",
    "half a character": "good \ud83d film",
    "10,000 words": "film " * 10_000,
}


def load_app():
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["space_app"] = module
    spec.loader.exec_module(module)
    return module


app = load_app()


@pytest.fixture(scope="module")
def explainer():
    return app.make_explainer(bcos_model(), make_tokenizer())


@pytest.fixture
def show(explainer, tmp_path):
    return app.answer(explainer, tmp_path)


class Elements(HTMLParser):
    """Names of a piece's elements and attributes, and the text of its explained paragraph."""

    def __init__(self, piece: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text, self._inside = "", False
        self.feed(piece)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self._inside = self._inside or (tag == "p" and dict(attrs).get("class") == "text")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "p"

    def handle_data(self, data):
        self.text += data if self._inside else ""


def test_prediction_words_and_sum_are_shown(show, explainer):
    prediction, piece, page, data = show("a very good film")
    expected = explainer("a very good film")
    assert f"<strong>{expected.label}</strong> <span>{100 * expected.probability:.1f} %</span>" in prediction
    assert Elements(piece).text == "a very good film"
    scores = re.findall(r'data-score="([^"]+)"', piece)
    assert scores == [f"{score:+.4f}" for score in expected.scores]
    words, special = sum(expected.scores), expected.special_tokens_score
    equation = (
        f"words {words:+.4f} + special tokens {special:+.4f} = sum {expected.total:+.4f} = logit {expected.logit:+.4f}"
    )
    assert equation in piece
    assert page["interactive"]
    assert data["interactive"]


def test_two_classes_are_compared(explainer):
    shown = app.explain(explainer, "not good", 2, 0, "word")
    plain = {target: explainer("not good", target=target).logit for target in (0, 2)}
    assert shown.explanation.logit == pytest.approx(plain[2] - plain[0])
    assert (shown.explanation.label, shown.explanation.contrast) == ("LABEL_2", "LABEL_0")
    assert shown.prediction == explainer("not good")
    mean = app.explain(explainer, "not good", app.PREDICTED, app.MEAN, "word").explanation
    assert (mean.contrast, mean.label) == ("mean", shown.prediction.label)


def test_a_class_is_not_compared_with_itself(explainer, show):
    predicted = explainer("not good").target
    shown = app.explain(explainer, "not good", app.PREDICTED, predicted, "word")
    assert shown.explanation == shown.prediction == explainer("not good")
    with pytest.warns(UserWarning, match="compared with itself"):
        _, piece, _, _ = show("not good", app.PREDICTED, predicted)
    assert "rather than" not in piece


@pytest.mark.parametrize(
    ("granularity", "units"),
    [
        ("token", ["The", "film", "is", "gripp", "ing", ".", "Not", "dull", "!"]),
        ("word", ["The", "film", "is", "gripping.", "Not", "dull!"]),
        ("sentence", ["The film is gripping.", "Not dull!"]),
    ],
)
def test_granularity(explainer, granularity, units):
    shown = app.explain(explainer, "The film is gripping. Not dull!", app.PREDICTED, app.NOTHING, granularity)
    assert [word.strip() for word in shown.explanation.words] == units


def test_files_hold_the_explanation_and_are_of_one_request(show, tmp_path):
    answers = [show(text, 1, 0) for text in ("good film", "good film", "dull")]
    pages, files = ([Path(answer[i]["value"]) for answer in answers] for i in (2, 3))
    assert len({path.parent for path in pages}) == 3
    assert all(tmp_path in path.parents for path in [*pages, *files])
    read = [TextExplanation.from_json(path.read_text(encoding="utf-8")) for path in files]
    assert [explanation.text for explanation in read] == ["good film", "good film", "dull"]
    assert {explanation.contrast for explanation in read} == {"LABEL_0"}
    page = pages[2].read_text(encoding="utf-8")
    assert "<title>Why LABEL_1 rather than LABEL_0?</title>" in page
    assert f"logit {read[2].logit:+.4f}" in page


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_stays_text(show, kind):
    text = HOSTILE[kind]
    _, piece, page, data = show(text)
    elements = Elements(piece)
    assert elements.tags == {"div", "style", "article", "p", "span"} | ({"details", "summary"} & elements.tags)
    assert not [name for name in elements.attributes if name.startswith("on") or name in ("src", "href")]
    expected = text.replace("\ud83d", "\ufffd")
    assert elements.text == expected
    read = TextExplanation.from_json(Path(data["value"]).read_text(encoding="utf-8"))
    assert read.text == expected
    assert "<script" not in Path(page["value"]).read_text(encoding="utf-8")


def test_long_texts_are_read_in_windows_to_their_end(explainer):
    shown = app.explain(explainer, "film " * 9_999 + "good", app.PREDICTED, app.NOTHING, "word").explanation
    assert not shown.truncated
    assert len(shown) == 10_000
    assert len(shown.windows) > 100
    assert shown.words[-1] == "good"
    assert shown.scores[-1] != 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "nothing to read"),
        (None, "nothing to read"),
        (" \n\t\u200b\x00", "nothing to read"),
        ("x" * 50_001, "50,001 characters; this page reads up to 50,000"),
    ],
)
def test_what_cannot_be_explained_gets_a_sentence_and_no_file(show, tmp_path, text, sentence):
    with pytest.warns(UserWarning, match=sentence) as caught:
        prediction, piece, page, data = show(text)
    assert (prediction, piece) == ("", "")
    assert page == data == gr.update(value=None, interactive=False)
    assert list(tmp_path.iterdir()) == []
    assert "xxx" not in str(caught[0].message)  # notices are rendered as HTML, so they never quote


def test_labels_are_escaped(explainer, tmp_path):
    model = bcos_model(id2label={0: "<b>no</b>", 1: "<i>x</i>", 2: "<u>y</u>"})
    prediction, piece, _, _ = app.answer(app.make_explainer(model, make_tokenizer()), tmp_path)("good")
    assert not {"b", "i", "u"} & (Elements(prediction).tags | Elements(piece).tags)


def test_multi_label_and_regression(tmp_path):
    several = app.make_explainer(bcos_model(problem_type="multi_label_classification"), make_tokenizer())
    shown = app.explain(several, "good film", app.PREDICTED, app.NOTHING, "word")
    logits = several("good film").logit
    assert shown.explanation.target == max(logits, key=logits.get)
    one = app.make_explainer(bcos_model(num_labels=1, problem_type="regression"), make_tokenizer())
    shown = app.explain(one, "good film", app.PREDICTED, app.NOTHING, "word")
    assert f"{shown.prediction.logit:+.4f}" in app.prediction_html(shown.prediction)
    assert "%" not in app.prediction_html(shown.prediction)


def test_page_is_built_without_analytics_and_global_state():
    before = dict(os.environ)
    model, tokenizer = bcos_model(), make_tokenizer()
    demo = app.build_demo(model, tokenizer)
    assert demo.analytics_enabled is False
    assert demo.delete_cache == (3600, 3600)
    changed = {name for name, value in os.environ.items() if before.get(name) != value}
    assert changed <= {"HF_HUB_DISABLE_TELEMETRY"}  # by gradio, where it is told to send nothing
    assert tokenizer.model_max_length == 32
    choices = [c["props"]["choices"] for c in demo.config["components"] if c["type"] == "dropdown"]
    classes = [("LABEL_0", 0), ("LABEL_1", 1), ("LABEL_2", 2)]
    assert [list(map(tuple, c))[-3:] for c in choices] == [classes, classes]
    options = app.launch_options()
    assert options["run_history"] is False
    assert not re.search(r"https?:|url\(|@import", options["css"])


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="classifiers of whole texts; BcosBertForMaskedLM is a masked-lm model"):
        app.build_demo(bcos_model("masked-lm"), make_tokenizer())
    with pytest.raises(TypeError, match="is not a B-cos model"):
        app.build_demo(object(), make_tokenizer())


def test_model_is_named_by_the_environment(tmp_path):
    bcos_model().float().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    model, tokenizer = app.load({"BCOS_MODEL": str(tmp_path / "model"), "BCOS_REVISION": ""})
    assert app.make_explainer(model, tokenizer)("good film").text == "good film"
    assert app.model_name(model) == "model"
    model.name_or_path = "org/bcos-bert-sst2"
    assert app.model_name(model) == "org/bcos-bert-sst2"
    for environment in ({}, {"BCOS_MODEL": "  "}):
        with pytest.raises(SystemExit, match="set the variable BCOS_MODEL"):
            app.load(environment)
    with pytest.raises(SystemExit, match="cannot be loaded"):
        app.load({"BCOS_MODEL": str(tmp_path / "nothing")})


def test_conventional_models_are_refused_with_what_to_do(checkpoint):
    with pytest.raises(SystemExit, match="not a B-cos model but a conventional one"):
        app.load({"BCOS_MODEL": str(checkpoint)})


def test_space_says_what_it_is():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---\n")[1])
    needed = {
        "title",
        "emoji",
        "colorFrom",
        "colorTo",
        "sdk",
        "sdk_version",
        "app_file",
        "pinned",
        "license",
        "models",
    }
    assert needed | {"short_description"} <= metadata.keys()
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {metadata["colorFrom"], metadata["colorTo"]} <= colours
    assert (metadata["sdk"], metadata["license"], metadata["pinned"]) == ("gradio", "apache-2.0", False)
    assert (SPACE / metadata["app_file"]).is_file()
    assert len(metadata["short_description"]) <= 60
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model) for model in metadata["models"])
    for said in ("BCOS_MODEL", "BCOS_REVISION", f"{app.MAX_CHARACTERS:,} characters", f"{app.MAX_WINDOW} tokens"):
        assert said in text


def test_requirements_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").split("\n")
    wanted = {r.name: r for r in map(Requirement, filter(None, lines))}
    assert set(wanted) == {"bcos-transformers", "gradio"}
    assert wanted["bcos-transformers"].extras <= extras.keys()
    assert project["version"] in wanted["bcos-transformers"].specifier
    (gradio,) = (r for r in map(Requirement, extras["demo"]) if r.name == "gradio")
    assert wanted["gradio"].specifier == gradio.specifier
    metadata = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert metadata["sdk_version"] in gradio.specifier
    assert f"gradio=={metadata['sdk_version']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert Version(metadata["python_version"]) in Requirement(f"python{project['requires-python']}").specifier
    named = {Requirement(line).name for extra in wanted["bcos-transformers"].extras for line in extras[extra]}
    assert "jinja2" in named  # which the page renders with
