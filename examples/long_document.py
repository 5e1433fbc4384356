# ruff: noqa: E402
"""Explain a document that is longer than the model can read, in windows.

    python examples/run_classification.py            # makes runs/reviews, if there is no model yet
    python examples/long_document.py --model runs/reviews --file my-document.txt

Each window is explained exactly. The document's logit is the mean of its windows' logits; every token counts in the window
where it has most context, and what the same token contributed to other windows is `outside_score`, so that nothing is lost.
"""

# %% Which model, which document
import argparse
from pathlib import Path

from rich.console import Console

from bcos_transformers import BcosExplainer
from bcos_transformers.data import load_reviews

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="runs/reviews", help="A fine-tuned B-cos classifier: directory or Hub id.")
parser.add_argument(
    "--file", type=Path, help="A text file in UTF-8. Default: the embedded test reviews, one after another."
)
parser.add_argument("--window", type=int, default=128, help="Tokens a window.")
parser.add_argument("--stride", type=int, default=32, help="Tokens that neighbouring windows share.")
parser.add_argument("--output", type=Path, default=Path("runs/long-document.html"), help="The page.")
args = parser.parse_args()
console = Console(soft_wrap=True)
text = args.file.read_text(encoding="utf-8") if args.file else "\n".join(row["text"] for row in load_reviews("test"))
try:
    explainer = BcosExplainer.from_pretrained(args.model, max_length=args.window, stride=args.stride)
except OSError:
    raise SystemExit(f"There is no model {args.model}. `python examples/run_classification.py` makes one.") from None

# %% One explanation of the whole document
document = explainer(text)
total = sum(document.scores) + document.special_tokens_score + document.outside_score + document.residual
assert abs(total - document.logit) < 1e-5
console.print(
    f"{len(document)} words in {len(document.windows)} windows: {document.label} ({document.probability:.0%}), "
    f"logit {document.logit:+.4f} = words {sum(document.scores):+.4f} + special tokens "
    f"{document.special_tokens_score:+.4f} + overlaps {document.outside_score:+.4f}",
    highlight=False,
)
for word, score, (begin, _) in document.top(5):
    around = text[max(0, begin - 25) : begin + 25].replace("\n", " ")
    console.print(f"{word:>16} {score:+.4f}   …{around}…", highlight=False, markup=False)

# %% Which windows speak for the label, and which sentences
for number, window in enumerate(document.windows, 1):
    console.print(f"window {number}: logit {window.logit:+.4f}, residual {window.residual:+.0e}", highlight=False)
sentences = explainer(text, granularity="sentence")
for sentence, score, _ in sentences.top(3):
    console.print(f"{score:+.4f}  {sentence}", highlight=False, markup=False)

# %% The page
args.output.parent.mkdir(parents=True, exist_ok=True)
args.output.write_text(document.to_html(title="A long document"), encoding="utf-8")
console.print(f"Page: {args.output}", highlight=False)
