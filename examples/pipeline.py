"""The pipeline that explains: what `text-classification` says, and why.

A notebook in the form of a script: editors that know `# %%` run it cell by cell.

    python examples/pipeline.py --model runs/reviews
"""
# ruff: noqa: T201

# %% A fine-tuned B-cos classifier, such as examples/run_classification.py leaves in runs/reviews
import argparse
import json

from rich.console import Console
from transformers import AutoTokenizer, pipeline

from bcos_transformers import TextExplanation, load_bcos_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="runs/reviews", help="directory or Hub id of a B-cos sequence classifier")
parser.add_argument("--texts", nargs="+", default=["a gripping, funny film", "The soup was cold and the waiter rude."])
args = parser.parse_args()
try:
    model, tokenizer = load_bcos_model(args.model), AutoTokenizer.from_pretrained(args.model)
except OSError:
    raise SystemExit(f"There is no model {args.model}. `python examples/run_classification.py` makes one.") from None

# %% Without this package the same is pipeline(model=…, trust_remote_code=True), which finds the task by itself
classify = pipeline("bcos-text-classification", model=model, tokenizer=tokenizer)
for (answer,) in (classify(text) for text in args.texts):
    explanation = answer["explanation"]
    print(f"{answer['label']} {answer['score']:.1%}: {explanation['text']}")
    for word, score in zip(explanation["words"], explanation["scores"], strict=True):
        print(f"{word:>16}  {score:+.4f}")
    print(f"{'special tokens':>16}  {explanation['special_tokens_score']:+.4f}")
    print(f"{'logit':>16}  {explanation['logit']:+.4f}  (residual {explanation['residual']:+.0e})")

# %% Every label, in batches; sentences instead of words; one label rather than another
every = classify(args.texts, top_k=None, batch_size=8, granularity="sentence")
print([[(answer["label"], round(answer["score"], 4)) for answer in answers] for answers in every])
first, second, *_ = model.config.id2label.values()
(why,) = classify(args.texts[0], target=first, contrast=second)
print(f"{first} rather than {second}: {why['explanation']['logit']:+.4f}")

# %% Answers are plain values: JSON for a service, and a TextExplanation for whoever draws them
sent = json.dumps(why)
Console(soft_wrap=True).print(TextExplanation.from_dict(json.loads(sent)["explanation"]).to_terminal())

# %% The stock pipeline reads the same model, without explanations
print(pipeline("text-classification", model=model, tokenizer=tokenizer)(args.texts[0]))
