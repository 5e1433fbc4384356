"""Time and memory of `explain_generation` beside one `explain` per new token.

    python benchmarks/generation.py --output docs/generation.md

A Llama of 4 layers, 256 wide, random weights; 64 new tokens after a prompt of 128. Times are medians over repetitions in
turn; memory is the peak of what one call allocates.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from bcos_transformers import BcosLlamaConfig, BcosLlamaForCausalLM, explain_generation
from speed import peak_bytes

PROMPT, NEW = 128, 64
CHUNKS = (1, 4, 16, 64)


def build(vocabulary: int) -> tuple[BcosLlamaForCausalLM, torch.Tensor]:
    """The model, and a prompt `(1, 128)`."""
    torch.manual_seed(0)
    config = BcosLlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    return BcosLlamaForCausalLM(config).eval(), torch.randint(5, vocabulary, (1, PROMPT))


def one_by_one(model: BcosLlamaForCausalLM, sequences: torch.Tensor) -> torch.Tensor:
    """Contributions `(new, tokens)` from an explanation of each growing prefix."""
    rows = torch.zeros(NEW, PROMPT + NEW)
    for new in range(NEW):
        length = PROMPT + new
        out = model.explain(input_ids=sequences[:, :length], target=sequences[:, length])
        rows[new, :length] = out.contributions[0, 0]
    return rows


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Wall-clock seconds of one call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure_times(vocabulary: int, repetitions: int) -> list[str]:
    """Rows of the table of times."""
    model, prompt = build(vocabulary)
    options = {"max_new_tokens": NEW, "do_sample": False}
    sequences = model.generate(prompt, **options)
    times: dict[object, list[float]] = {"generate": [], "one by one": [], **{chunk: [] for chunk in CHUNKS}}
    worst = 0.0
    for repetition in range(repetitions + 1):  # the first one warms up
        taken, _ = timed(lambda: model.generate(prompt, **options))
        new_times = {"generate": taken}
        new_times["one by one"], wanted = timed(lambda: one_by_one(model, sequences))
        for chunk in CHUNKS:
            new_times[chunk], out = timed(
                lambda chunk=chunk: explain_generation(model, prompt, chunk_size=chunk, **options)
            )
            worst = max(worst, (out.contributions[0] - wanted).abs().max().item())
        if repetition:
            for name, value in new_times.items():
                times[name].append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [f"| {vocabulary:,} | 64 × `explain` | {medians['one by one']:.2f} s | 1 | |"]
    for chunk in CHUNKS:
        ratio = medians[chunk] / medians["one by one"]
        alone = (medians[chunk] - medians["generate"]) / medians["one by one"]
        rows.append(
            f"| | `explain_generation`, chunk_size={chunk} | {medians[chunk]:.2f} s | {ratio:.2f} | {alone:.2f} |"
        )
    rows.append(f"| | `generate` alone | {medians['generate']:.2f} s | | largest difference {worst:.0e} |")
    return rows


def measure_memory(vocabulary: int) -> list[str]:
    """Rows of the table of memory: the peak of newly allocated memory, in MiB."""
    model, prompt = build(vocabulary)
    sequences = model.generate(prompt, max_new_tokens=NEW, do_sample=False)
    one = peak_bytes(lambda: model.explain(input_ids=sequences[:, :-1], target=sequences[:, -1]))
    rows = [f"| `explain` of the last token | {one / 2**20:.0f} |"]
    for chunk in CHUNKS:
        options = {"chunk_size": chunk, "max_new_tokens": NEW, "do_sample": False}
        peak = peak_bytes(lambda options=options: explain_generation(model, prompt, **options))
        rows.append(f"| `explain_generation`, chunk_size={chunk} | {peak / 2**20:.0f} |")
    return rows


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/generation.md"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    lines = [
        "# What explaining a whole continuation costs",
        "",
        f"`python benchmarks/generation.py --threads {args.threads} --repetitions {args.repetitions}`",
        "",
        f"B-cos Llama, 4 layers, hidden size 256, float32, random weights (seed 0); {NEW} new tokens after a prompt of "
        f"{PROMPT}. {args.threads} thread(s) of a CPU ({platform.machine()}), torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Medians of {args.repetitions} repetitions in turn. *ratio*: to 64 calls of "
        "`explain` on the growing prefix, which give the same numbers; *without generate*: the same, less the time of "
        "`generate`, which the 64 calls do not include either.",
        "",
        "| vocabulary | | time | ratio | without generate |",
        "|---|---|---|---|---|",
    ]
    for vocabulary in (2000, 32000):
        lines += measure_times(vocabulary, args.repetitions)
    lines += [
        "",
        "Peak of newly allocated memory, vocabulary 2,000. What grows with the chunk are the gradients of so many tokens "
        "at a time; what does not are the factors that the one forward pass keeps:",
        "",
        "| | MiB |",
        "|---|---|",
        *measure_memory(2000),
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
