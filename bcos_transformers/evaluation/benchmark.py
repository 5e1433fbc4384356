"""The faithfulness benchmark: models × methods on a data set, resumable cell by cell, on one process or several."""

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bcos_transformers.evaluation.attribution_runs import AttributionRun, attribute_rows
from bcos_transformers.evaluation.baselines import METHODS, build_method
from bcos_transformers.evaluation.benchmark_data import EncodedExample, Example, encode_examples
from bcos_transformers.evaluation.perturbation import perturbation_scores, scores_of_orders
from bcos_transformers.evaluation.plausibility import phrase_correlation, plausibility_scores
from bcos_transformers.evaluation.pointing_game import PointingPair, load_pairs, make_pairs, row_of, save_pairs, seqpg
from bcos_transformers.evaluation.rows import ChangedRow, Classifier
from bcos_transformers.evaluation.search import greedy_orders

logger = logging.getLogger(__name__)

SEARCH = "search"  # the pseudo-method whose rankings bound what a method could reach
FORMAT = 1  # of the cells; another number makes old ones be computed again


@dataclass(frozen=True)
class BenchmarkSettings:
    """What decides the numbers of a cell.

    Attributes:
        max_length: longer texts are cut to so many tokens; None cuts where the model must.
        limit: so many texts at most, chosen at random by `seed`.
        replacement: how a token is hidden, `"mask"` or `"attention"`.
        pairs: pairs of the pointing game; 0 leaves it out.
        min_probability: of the right class for a text to be in a pair.
        search_budget: forward passes a text of the search for the best ranking.
        seed: of everything that is drawn.
        batch_tokens: tokens a forward pass.
        method_options: options of methods by their name.
    """

    max_length: int | None = None
    limit: int | None = None
    replacement: str = "mask"
    pairs: int = 100
    min_probability: float = 0.8
    search_budget: int = 400
    seed: int = 0
    batch_tokens: int = 4096
    method_options: dict[str, dict[str, Any]] = field(default_factory=dict)


class FaithfulnessBenchmark:
    """Measures explanations of several models by several methods on the same texts.

    Every cell (a model and a method) is one JSON file under `output/cells`, written when it is complete; a cell whose
    file was made from the same weights, texts and settings is not computed again. Under `accelerate launch` the cells are
    shared out among the processes; each cell is computed by one of them, so the numbers are those of a single process.

    Args:
        models: name of each model, and where it is (a directory or Hub id of a sequence classifier) or model and
            tokenizer, loaded.
        examples: the texts.
        output: the folder of results.
        methods: names of `METHODS`, or `"search"`; None is all that a model allows, `"bcos"` for B-cos models only.
        settings: see there.
        progress: show progress bars; None shows them in terminals.

    Raises:
        ValueError: no models, no texts, or an unknown method.
    """

    def __init__(
        self,
        models: Mapping[str, str | tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        examples: Sequence[Example],
        output: str | Path,
        methods: Sequence[str] | None = None,
        settings: BenchmarkSettings | None = None,
        progress: bool | None = None,
    ) -> None:
        known = (*METHODS, SEARCH)
        unknown = [method for method in methods or () if method not in known]
        if unknown:
            raise ValueError(f"Unknown methods {unknown}; there are: {', '.join(known)}.")
        if not models or not examples:
            raise ValueError(f"A benchmark needs models and texts, got {len(models)} and {len(examples)}.")
        self.models, self.output = dict(models), Path(output)
        self.methods = list(methods) if methods is not None else list(known)
        self.settings = settings or BenchmarkSettings()
        self.examples = choose(list(examples), self.settings.limit, self.settings.seed)
        self.progress = progress
        self._loaded: tuple[str, Classifier] | None = None
        self._checksums: dict[str, str] = {}
        self._explains: dict[str, bool] = {}

    def run(self) -> list[dict[str, Any]]:
        """Computes the cells that are missing and returns all, in the order of models and methods."""
        (self.output / "cells").mkdir(parents=True, exist_ok=True)
        cells = [(model, method) for model in self.models for method in self.methods]
        with _processes() as (index, count, wait):
            if index == 0 and self.settings.pairs:
                self.pairs()
            wait()
            for model, method in cells[index::count]:
                if self._applies(model, method):
                    self.cell(model, method)
            wait()
        return self.finished()

    def finished(self) -> list[dict[str, Any]]:
        """The cells that are there, computed from the present weights, texts and settings."""
        found = []
        for model in self.models:
            for method in self.methods:
                if self._applies(model, method) and (cell := self._read(model, method)) is not None:
                    found.append(cell)
        return found

    def cell(self, model: str, method: str) -> dict[str, Any]:
        """One cell, from its file or computed."""
        if (found := self._read(model, method)) is not None:
            return found
        classifier = self._classifier(model)
        logger.info("%s, %s", model, method)
        encoded = encode_examples(classifier.tokenizer, self.examples, self._max_length(classifier))
        cell = {"model": model, "method": method, "fingerprint": self._fingerprint(model)}
        cell |= self._measure(classifier, method, encoded)
        _write(self._path(model, method), json.dumps(cell))
        return cell

    def _measure(self, classifier: Classifier, method: str, encoded: list[EncodedExample]) -> dict[str, Any]:
        rows = [one.row for one in encoded]
        whole = classifier.probabilities([ChangedRow(row) for row in rows], description="Predicting")
        predicted = whole.argmax(-1).tolist()
        labels = [one.example.label for one in encoded]
        result: dict[str, Any] = {
            "texts": len(rows),
            "accuracy": _mean([a == b for a, b in zip(predicted, labels, strict=True)]),
        }
        if method == SEARCH:
            records = self._search(classifier, rows)
            return result | {"cost": None, "seconds": None, "residuals": None, "records": records, "seqpg": None}
        settings = self.settings
        built = build_method(
            method,
            classifier.model,
            classifier.tokenizer,
            seed=settings.seed,
            **settings.method_options.get(method, {}),
        )
        run = attribute_rows(built, classifier, rows, predicted, f"{method}: explaining")
        scores = perturbation_scores(classifier, rows, run.scores, settings.replacement, settings.seed)
        records = [
            {"index": i, "label": label, "predicted": prediction, "scores": attribution, **asdict(score)}
            for i, (label, prediction, attribution, score) in enumerate(
                zip(labels, predicted, run.scores, scores, strict=True)
            )
        ]
        self._add_plausibility(built, classifier, encoded, run, records)
        pointing = self._pointing_game(built, classifier) if settings.pairs else None
        return result | {
            "cost": run.cost,
            "seconds": run.seconds,
            "residuals": run.residuals,
            "records": records,
            "seqpg": pointing,
        }

    def _search(self, classifier: Classifier, rows: list) -> list[dict[str, Any]]:
        settings = self.settings
        found = {}
        for name, keep in (("comprehensiveness", False), ("sufficiency", True)):
            orders = greedy_orders(classifier, rows, settings.search_budget, keep, settings.replacement)
            scores = scores_of_orders(classifier, rows, orders, settings.replacement)
            found[name] = [getattr(score, name) for score in scores]
        return [{"index": i, **{name: found[name][i] for name in found}} for i in range(len(rows))]

    def _add_plausibility(
        self,
        method: Any,
        classifier: Classifier,
        encoded: list[EncodedExample],
        run: AttributionRun,
        records: list[dict],
    ) -> None:
        """Explanations of the labelled class against the rationale, where there is one."""
        wanted = [i for i, one in enumerate(encoded) if one.rationale is not None]
        other = [i for i in wanted if records[i]["predicted"] != records[i]["label"]]
        scores = {i: run.scores[i] for i in wanted}
        if other:
            labels = [records[i]["label"] for i in other]
            again = attribute_rows(method, classifier, [encoded[i].row for i in other], labels)
            scores |= dict(zip(other, again.scores, strict=True))
        for i in wanted:
            words = encoded[i].word_scores(scores[i])
            records[i] |= asdict(plausibility_scores(words, encoded[i].rationale))
            if encoded[i].phrases:
                sign = 1.0 if records[i]["label"] == 1 else -1.0
                records[i]["phrases"] = phrase_correlation([sign * word for word in words], encoded[i].phrases)

    def _pointing_game(self, method: Any, classifier: Classifier) -> list[float]:
        pairs = self.pairs()
        rows = [row_of(pair) for pair in pairs for _ in range(2)]
        targets = [label for pair in pairs for label in pair.labels]
        run = attribute_rows(method, classifier, rows, targets, f"{method.name}: pointing game")
        return seqpg([run.scores[2 * i : 2 * i + 2] for i in range(len(pairs))], pairs)

    def pairs(self) -> list[PointingPair]:
        """The pairs of the pointing game; the first model makes them, once for all models."""
        first = next(iter(self.models))
        path = self.output / "cells" / f"pairs-{self._fingerprint(first)}.jsonl"
        if not path.exists():
            classifier = self._classifier(first)
            encoded = encode_examples(classifier.tokenizer, self.examples, self._max_length(classifier))
            pairs = make_pairs(
                classifier,
                [one.row for one in encoded],
                [one.example.label for one in encoded],
                self.settings.pairs,
                self.settings.min_probability,
                seed=self.settings.seed,
            )
            partial = path.with_suffix(f".{os.getpid()}")
            save_pairs(pairs, partial)
            os.replace(partial, path)
        return load_pairs(path)

    def _applies(self, model: str, method: str) -> bool:
        if method == "bcos" and model not in self._explains:
            self._explains[model] = hasattr(self._classifier(model).model, "explain")
        return method != "bcos" or self._explains[model]

    def _classifier(self, name: str) -> Classifier:
        if self._loaded is None or self._loaded[0] != name:
            given = self.models[name]
            if isinstance(given, tuple):
                model, tokenizer = given
            else:
                model = AutoModelForSequenceClassification.from_pretrained(given).eval()
                if torch.cuda.is_available():
                    model.cuda()
                tokenizer = AutoTokenizer.from_pretrained(given)
            self._loaded = (name, Classifier(model, tokenizer, self.settings.batch_tokens, self.progress))
        return self._loaded[1]

    def _max_length(self, classifier: Classifier) -> int | None:
        limits = (self.settings.max_length, getattr(classifier.model.config, "max_position_embeddings", None))
        return min((limit for limit in limits if limit is not None), default=None)

    def _fingerprint(self, model: str) -> str:
        described = {
            "format": FORMAT,
            "weights": self._checksum(model),
            "texts": [[one.text, one.label, one.rationale, one.phrases] for one in self.examples],
            "settings": asdict(self.settings),
        }
        if self.settings.pairs and model != next(iter(self.models)):
            described["pairs"] = self._checksum(next(iter(self.models)))
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    def _checksum(self, model: str) -> str:
        if model not in self._checksums:
            self._checksums[model] = weights_fingerprint(self._classifier(model).model)
        return self._checksums[model]

    def _path(self, model: str, method: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in model)
        return self.output / "cells" / f"{safe}--{method}.json"

    def _read(self, model: str, method: str) -> dict[str, Any] | None:
        path = self._path(model, method)
        if not path.exists():
            return None
        cell = json.loads(path.read_text(encoding="utf-8"))
        return cell if cell.get("fingerprint") == self._fingerprint(model) else None


def choose(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """So many examples at most, in their order; files are often sorted by label, so not the first ones."""
    if limit is None or limit >= len(examples):
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return [examples[i] for i in sorted(order[:limit].tolist())]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A checksum of a model's configuration and parameters."""
    checksum = zlib.crc32(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy(), checksum)
    config = model.config.to_dict()
    fields = {name: config.get(name) for name in ("b", "b_per_layer", "normalize_weights", "hidden_act")}
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode(), checksum):08x}"


@contextlib.contextmanager
def _processes() -> Iterator[tuple[int, int, Any]]:
    """Index of this process, how many there are, and a barrier."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1, lambda: None
        return
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    yield state.process_index, state.num_processes, state.wait_for_everyone


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
