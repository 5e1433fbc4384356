# ruff: noqa: E402
"""Explain predictions of a fine-tuned B-cos classifier: words, targets, contrasts, granularities, files, pictures.

A script to read from top to bottom, or to run cell by cell in an editor that knows `# %%`:

    python examples/run_classification.py            # makes runs/reviews, if there is no model yet
    python examples/explain.py --model runs/reviews --output runs/explain
"""

# %% Which model
import argparse
from pathlib import Path

from rich.console import Console

from bcos_transformers import BcosExplainer, TextExplanation, load_explanations, save_explanations

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="runs/reviews", help="A fine-tuned B-cos classifier: directory or Hub id.")
parser.add_argument("--output", type=Path, default=Path("runs/explain"), help="Where the files go.")
args = parser.parse_args()
args.output.mkdir(parents=True, exist_ok=True)
console = Console(soft_wrap=True)
try:
    explainer = BcosExplainer.from_pretrained(args.model)
except OSError:
    raise SystemExit(f"There is no model {args.model}. `python examples/run_classification.py` makes one.") from None

# %% One text: the words' scores and the special tokens' add up to the logit
explanation = explainer("The plot is thin, but the acting is superb.")
console.print(explanation.to_terminal())
assert (
    abs(sum(explanation.scores) + explanation.special_tokens_score + explanation.residual - explanation.logit) < 1e-6
)
for word, score, _ in explanation.top(3):
    console.print(f"{word:>12} {score:+.3f}", highlight=False)

# %% Every class, and one class rather than another
labels = list(explainer.model.config.id2label.values())
every = explainer(explanation.text, target="all")
console.print(every.to_dataframe().to_string(index=False), highlight=False)
rather = explainer(explanation.text, target=labels[-1], contrast=labels[0])
console.print(rather.to_terminal())

# %% Sentences instead of words
text = "The food was cold. The waiter forgot us twice! We will not come back."
console.print(explainer(text, granularity="sentence").to_terminal())

# %% Many texts at once, kept in a file
texts = ["A gripping film.", "Dull and far too long.", "I have seen worse \N{GRINNING FACE}", "Not bad at all!"]
explanations = explainer(texts)
save_explanations(explanations, args.output / "explanations.jsonl")
assert load_explanations(args.output / "explanations.jsonl") == explanations
assert TextExplanation.from_json(every.to_json()) == every

# %% A page and pictures
(args.output / "every-class.html").write_text(every.to_html(title="Every class"), encoding="utf-8")
explanation.plot().savefig(args.output / "bars.png", dpi=120)
every.plot().savefig(args.output / "heat-map.png", dpi=120)
console.print(f"Page, pictures and file: {args.output}", highlight=False)
