"""Models, texts and settings of the benchmark's tests."""

import random
import re
from dataclasses import replace
from pathlib import Path

from attribution_toys import conventional
from bcos_transformers.evaluation.benchmark import BenchmarkSettings, FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_data import make_example
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, encode_rows
from conftest import WORDS, bcos_model, make_tokenizer

DRAWN = random.Random(0)
PLAIN = [word for word in WORDS if not word.startswith("##")]
TEXTS = [" ".join(DRAWN.choice(PLAIN) for _ in range(DRAWN.randint(5, 11))) for _ in range(14)]


def models() -> dict:
    """A conventional model, which predicts two of its classes and makes the pairs, and a B-cos model."""
    return {"plain": (conventional("bert"), make_tokenizer()), "B-cos": (bcos_model(seed=3), make_tokenizer())}


def predictions(model) -> list[int]:
    classifier = Classifier(model, make_tokenizer(), progress=False)
    return (
        classifier.probabilities([ChangedRow(row) for row in encode_rows(make_tokenizer(), TEXTS)]).argmax(-1).tolist()
    )


LABELS = predictions(conventional("bert"))
EXAMPLES = [
    make_example(text, label, [int(word in ("good", "bad", "dull", "the")) for word in text.split()])
    for text, label in zip(TEXTS, LABELS, strict=True)
]
SETTINGS = BenchmarkSettings(pairs=2, min_probability=0.3, limit=8, search_budget=60)


def made(
    output, methods=("bcos", "random", "occlusion"), given=None, examples=None, **settings
) -> FaithfulnessBenchmark:
    return FaithfulnessBenchmark(
        models() if given is None else given,
        EXAMPLES if examples is None else examples,
        output,
        methods,
        replace(SETTINGS, **settings),
        progress=False,
    )


def without_seconds(cells: list[dict]) -> list[dict]:
    return [{k: v for k, v in cell.items() if k != "seconds"} for cell in cells]


def contents(output: Path) -> dict[str, bytes]:
    """Every file below, but for the seconds in it."""
    seconds = re.compile(rb'"seconds": [^,]+,')
    return {path.name: seconds.sub(b"", path.read_bytes()) for path in output.rglob("*") if path.is_file()}
