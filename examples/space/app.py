"""Demo page: type a text and see which words make a B-cos model predict what it predicts.

The environment variable BCOS_MODEL names the model (Hub id or directory), BCOS_REVISION its revision:

    BCOS_MODEL=runs/reviews python examples/space/app.py
"""

import html
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers import BcosExplainer, TextExplanation, load_bcos_model
from bcos_transformers.explanations.html import render_fragment
from bcos_transformers.explanations.layout import heading

MAX_CHARACTERS = 50_000  # some 8,000 English words, read in about 30 windows
MAX_WINDOW, SHARED_TOKENS = 512, 64  # tokens; longer windows would cost memory that grows with their square
PREDICTED, NOTHING, MEAN = "the prediction", "nothing", "the mean of all classes"
HOUR = 3600  # seconds
EXAMPLES = [
    "A gripping, funny film with a superb cast.",
    "The plot is thin and the jokes are stale, but the acting is superb.",
    "Not bad at all! I expected a dull evening, and could not stop laughing.",
    "The food was cold. The waiter forgot us twice. We will not come back.",
]
INTRODUCTION = """# A prediction that explains itself
`{name}` is a B-cos model: each of its logits is the sum of what words and special tokens contribute. Nothing is sampled."""
LEGEND = """<div class="bcos legend"><span class="word for" style="--s:.9">for the class</span> (solid line)
<span class="word against" style="--s:.9">against it</span> (dashed line). Point at a word, or reach it with the Tab
key, for its number.</div>"""
# The page follows its own switch between light and dark, which may differ from the system's.
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto; }
.prediction { font-size: 1.25rem; overflow-wrap: anywhere; }
.prediction span { white-space: nowrap; }
#explanation article { border: 0; padding: 0; }
#explanation .sum { font-size: 1rem; opacity: 1; }
body .bcos { --for: 33, 102, 172; --against: 199, 100, 10; }
body.dark .bcos { --for: 90, 160, 235; --against: 235, 150, 60; }
"""


class Refused(ValueError):
    """A sentence for the user; it must not hold the user's text, since notices are rendered as HTML."""


class Shown(NamedTuple):
    """What the page shows of one text.

    Attributes:
        prediction: the explanation of the predicted class.
        explanation: the explanation that was asked for.
        notice: what the user should know about it; empty if nothing.
    """

    prediction: TextExplanation
    explanation: TextExplanation
    notice: str = ""


def load(environment: Mapping[str, str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer that the environment names.

    Raises:
        SystemExit: none is named, or it cannot be loaded; the message says what to do.
    """
    name, revision = environment.get("BCOS_MODEL", "").strip(), environment.get("BCOS_REVISION", "").strip()
    if not name:
        raise SystemExit(
            "No model: set the variable BCOS_MODEL to a B-cos classifier, by its Hub id or its directory (in a Space: "
            "Settings, Variables), and BCOS_REVISION to pin a revision. `python examples/run_classification.py` makes one."
        )
    options = {"revision": revision} if revision else {}
    try:
        return load_bcos_model(name, **options), AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise SystemExit(f"BCOS_MODEL={name} cannot be loaded: {error}") from error


def make_explainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BcosExplainer:
    """An explainer that reads long texts in windows.

    Raises:
        ValueError: the model is no classifier of whole texts.
    """
    task = getattr(model, "explanation_task", None)
    if task not in (None, "sequence-classification"):
        raise ValueError(f"This page shows classifiers of whole texts; {type(model).__name__} is a {task} model.")
    explainer = BcosExplainer(model, tokenizer, max_length=MAX_WINDOW, batch_size=8, progress=False)
    explainer.stride = min(SHARED_TOKENS, explainer.max_length // 4)
    return explainer


def readable(text: str | None, explainer: BcosExplainer) -> str:
    """The text without halves of characters, which no file could hold.

    Raises:
        Refused: it is too long, or the tokenizer finds nothing in it.
    """
    text = text or ""
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"The text has {len(text):,} characters; this page reads up to {MAX_CHARACTERS:,}.")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not explainer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
        raise Refused("There is nothing to read in this text: type a word or more.")
    return text


def explain(explainer: BcosExplainer, text: str | None, target: Any, foil: Any, granularity: str) -> Shown:
    """Explains a text for the page.

    Args:
        explainer: of `make_explainer`.
        text: what the user typed.
        target: a class by index, or `PREDICTED`.
        foil: a class by index, `MEAN` or `NOTHING`: what the target is compared with.
        granularity: `"word"`, `"sentence"` or `"token"`.

    Raises:
        Refused: see `readable`.
    """
    text = readable(text, explainer)
    prediction = explainer(text, granularity=granularity)
    if isinstance(prediction.target, list):  # multi-label: the likeliest class stands for the prediction
        prediction = prediction.for_target(max(prediction.target, key=prediction.logit.get))
    target = prediction.target if target == PREDICTED else target
    contrast = {NOTHING: None, MEAN: "mean"}.get(foil, foil)
    if contrast == target:
        return Shown(
            prediction, _of(explainer, prediction, target, None), "A class compared with itself leaves nothing."
        )
    return Shown(prediction, _of(explainer, prediction, target, contrast))


def _of(explainer: BcosExplainer, prediction: TextExplanation, target: int, contrast: Any) -> TextExplanation:
    if target == prediction.target and contrast is None:
        return prediction
    return explainer(prediction.text, target=target, contrast=contrast, granularity=prediction.granularity)


def write_files(explanation: TextExplanation, folder: str | Path) -> tuple[str, str]:
    """Writes the explanation as a page and as JSON, into a new directory that nobody else's request shares.

    Returns:
        The paths of the two files.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="explanation-", dir=folder))
    page, data = own / "explanation.html", own / "explanation.json"
    page.write_text(explanation.to_html(title=f"Why {heading(explanation)}?"), encoding="utf-8")
    data.write_text(explanation.to_json(), encoding="utf-8")
    return str(page), str(data)


def prediction_html(prediction: TextExplanation) -> str:
    """The predicted label and its probability (of a regression, the value)."""
    known = prediction.probability
    number = f"{prediction.logit:+.4f}" if known is None else f"{100 * known:.1f} %"
    label = html.escape(str(prediction.label))
    return f'<div class="prediction">Prediction: <strong>{label}</strong> <span>{number}</span></div>'


def answer(explainer: BcosExplainer, folder: str | Path) -> Callable[..., tuple]:
    """The function behind the page: from the inputs to prediction, explanation and updates of the two download buttons."""

    def show(text: str, target: Any = PREDICTED, foil: Any = NOTHING, granularity: str = "word") -> tuple:
        try:
            shown = explain(explainer, text, target, foil, granularity)
        except Refused as refusal:
            gr.Warning(str(refusal), title="Not explained")
            nothing = gr.update(value=None, interactive=False)
            return "", "", nothing, nothing
        if shown.notice:
            gr.Warning(shown.notice, title="Not compared")
        files = (gr.update(value=path, interactive=True) for path in write_files(shown.explanation, folder))
        return prediction_html(shown.prediction), render_fragment(shown.explanation) + LEGEND, *files

    return show


def model_name(model: PreTrainedModel) -> str:
    """The model's Hub id, or the last part of its directory: the rest concerns nobody."""
    name = str(model.name_or_path or type(model).__name__)
    return (Path(name).name if Path(name).is_absolute() or Path(name).exists() else name).replace("`", "")


def theme() -> gr.themes.Base:
    """A look that needs no font of anybody's server."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Consolas", "monospace"]}
    shade = {"button_primary_background_fill": "*primary_600", "button_primary_background_fill_dark": "*primary_600"}
    return gr.themes.Default(primary_hue="blue", **fonts).set(**shade)


def launch_options() -> dict[str, Any]:
    """Options of `launch`: the look, and no record of what was typed in the browser."""
    return {"theme": theme(), "css": CSS, "footer_links": ["api", "gradio", "settings"], "run_history": False}


def build_demo(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> gr.Blocks:
    """The page for a B-cos classifier; show it with `build_demo(…).launch(**launch_options())`.

    Raises:
        TypeError: not a B-cos model.
        ValueError: not a classifier of whole texts.
    """
    explainer = make_explainer(model, tokenizer)
    labels = [(str(label), index) for index, label in sorted(model.config.id2label.items())]
    several = len(labels) > 1
    with gr.Blocks(analytics_enabled=False, title="B-cos explanations", delete_cache=(HOUR, HOUR)) as demo:
        gr.Markdown(INTRODUCTION.format(name=model_name(model)))
        text = gr.Textbox(label="Text", lines=3, max_lines=12, placeholder="Type or paste a text", elem_id="text")
        examples = gr.Examples(EXAMPLES, text, cache_examples=False)
        with gr.Row():
            target = gr.Dropdown([PREDICTED, *labels], value=PREDICTED, label="Explain", visible=several)
            foil = gr.Dropdown([NOTHING, MEAN, *labels], value=NOTHING, label="Compare with", visible=several)
            granularity = gr.Radio(
                ["word", "sentence", "token"], value="word", label="Contribution of each", min_width=350
            )
        button = gr.Button("Explain", variant="primary", elem_id="explain")
        prediction = gr.HTML(elem_id="prediction", padding=True)
        explanation = gr.HTML(elem_id="explanation", padding=True)
        with gr.Row():
            page = gr.DownloadButton("Download as HTML", interactive=False, elem_id="html-file")
            data = gr.DownloadButton("Download as JSON", interactive=False, elem_id="json-file")
        inputs, outputs = [text, target, foil, granularity], [prediction, explanation, page, data]
        show = answer(explainer, page.GRADIO_CACHE)
        asked = [button.click, text.submit, target.input, foil.input, granularity.input]
        gr.on(asked, show, inputs, outputs, trigger_mode="always_last", api_name="explain")
        examples.load_input_event.then(show, inputs, outputs, api_visibility="private")
    return demo.queue(max_size=32)


if __name__ == "__main__":
    build_demo(*load(os.environ)).launch(**launch_options())
