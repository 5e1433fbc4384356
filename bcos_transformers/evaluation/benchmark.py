"""The faithfulness benchmark: models × methods on a data set, resumable cell by cell, on one process or several."""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.evaluation.attribution_runs import AttributionRun, attribute_rows, play_pointing_game
from bcos_transformers.evaluation.baselines import build_method
from bcos_transformers.evaluation.benchmark_cells import CellStore
from bcos_transformers.evaluation.benchmark_data import EncodedExample, Example, check_labels, choose, encode_examples
from bcos_transformers.evaluation.benchmark_models import BenchmarkModels
from bcos_transformers.evaluation.benchmark_settings import KNOWN, SEARCH, BenchmarkSettings, check_methods
from bcos_transformers.evaluation.perturbation import perturbation_scores, scores_of_orders
from bcos_transformers.evaluation.plausibility import phrase_correlation, plausibility_scores
from bcos_transformers.evaluation.pointing_game import PointingPair, make_pairs
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, check_replacement
from bcos_transformers.evaluation.search import greedy_orders
from bcos_transformers.extras import require

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cells; another number makes old ones be computed again
POOL = 10  # texts for every pair of the pointing game
LONGEST_HALF = 60  # tokens of either text of a pair
LONGEST_WAIT = timedelta(hours=12)  # of a process for the others, one of which may have the slowest cells


class FaithfulnessBenchmark:
    """Measures explanations of several models by several methods on the same texts.

    Every cell (a model and a method) is one JSON file under `output/cells`, written when it is complete; a cell whose
    file was made from the same weights, texts and settings is not computed again. A method that fails does not stop the
    others: its cell has the message as `"error"` and no records, and is tried again by the next run. Under
    `accelerate launch` the cells are shared out among the processes; each cell is computed by one of them, so the numbers
    are those of a single process with as many threads.

    Args:
        models: name of each model, and where it is (a directory or Hub id of a sequence classifier) or model and
            tokenizer, loaded; these are left as they are.
        examples: the texts.
        output: the folder of results.
        methods: names of `METHODS`, or `"search"`; None is all that a model allows, `"bcos"` for B-cos models only.
        settings: see there.
        progress: show progress bars; None shows them in terminals.

    Raises:
        ValueError: no models, no texts, no methods, or an unknown method.
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
        self.methods = list(KNOWN if methods is None else dict.fromkeys(methods))
        check_methods(self.methods)
        if not models or not examples or not self.methods:
            raise ValueError(
                f"A benchmark needs models, texts and methods, got {len(models)}, {len(examples)} and {len(self.methods)}."
            )
        self.settings = settings or BenchmarkSettings()
        self.models, self.output = dict(models), Path(output)
        self.chosen = choose(len(examples), self.settings.limit, self.settings.seed)
        self.examples = [examples[i] for i in self.chosen]
        self._pool = [examples[i] for i in self._choose_pool(len(examples))]
        self.progress = progress
        self._models = BenchmarkModels(self.models, self.settings.batch_tokens, progress)
        self._store = CellStore(self.output / "cells")
        self._rows: dict[str, list[EncodedExample]] = {}
        self._described: dict[str, str] = {}
        self._pairs: list[PointingPair] | None = None

    def _choose_pool(self, count: int) -> list[int]:
        """The texts that pairs are made of: more than are measured, as many are too unsure or too short for a pair."""
        limit = self.settings.limit
        return choose(count, None if limit is None else max(limit, POOL * self.settings.pairs), self.settings.seed)

    def run(self) -> list[dict[str, Any]]:
        """Computes the cells that are missing and returns all, in the order of models and methods.

        Raises:
            OSError: a model is not there, or the folder of results cannot be written.
            ValueError: see `check`.
        """
        with _processes() as (index, count, wait):
            self.check()
            self._store.folder.mkdir(parents=True, exist_ok=True)
            if index == 0 and self.settings.pairs:
                self.pairs()
            missing = [(*cell, found) for *cell, found in self._cells() if found is None or "error" in found]
            wait()  # all see the same cells missing before one of them writes any
            for model, method, _ in missing[index::count]:
                self.cell(model, method)
            wait()
        return self.finished()

    def check(self) -> None:
        """Loads every model once and refuses what cannot be measured, before anything is.

        Raises:
            OSError: a model is not there.
            ValueError: a model that is no classifier of one label a text; models of different classes or, where the pointing
                game is played, tokenizers; a label that the models do not have; no mask token to hide tokens with; no
                text with tokens; no method that the models allow.
        """
        for name in reversed(self._models.names):  # so that the first one is still there when pairs are made
            self._encoded(name)
        self._models.check(same_tokens=self.settings.pairs > 0)
        if not any(self._applies(model, method) for model in self.models for method in self.methods):
            raise ValueError(f"{self.methods} explain B-cos models only, and none of {self._models.names} is one.")

    def finished(self) -> list[dict[str, Any]]:
        """The cells that are there, failed ones too, computed from the present weights, texts and settings."""
        return [found for _, _, found in self._cells() if found is not None]

    def cell(self, model: str, method: str) -> dict[str, Any]:
        """One cell, from its file or computed."""
        path, fingerprint = self._store.path(model, method), self._fingerprint(model, method)
        found = self._store.read(path, fingerprint)
        if found is not None and "error" not in found:
            return found
        logger.info("%s, %s", model, method)
        encoded, classifier = self._encoded(model), self._models.classifier(model)
        cell = {"model": model, "method": method, "fingerprint": fingerprint}
        try:
            measured = cell | self._measure(classifier, method, encoded)
            json.dumps(measured, allow_nan=False)
        except Exception as error:  # noqa: BLE001 - one method must not cost the others' work
            message = " ".join(str(error).split())
            if not isinstance(error, ValueError) or not message:
                message = f"{type(error).__name__}: {message}"
            logger.warning("%s, %s failed: %s", model, method, message)
            logger.debug("%s, %s", model, method, exc_info=error)
            nothing = dict.fromkeys(("accuracy", "cost", "seconds", "residuals", "seqpg"))
            measured = cell | {"texts": len(encoded), **nothing, "records": [], "error": message}
        self._store.write(path, measured)
        return measured

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
            found = self._search(classifier, rows)
            records = [{"index": self.chosen[one.index], **two} for one, two in zip(encoded, found, strict=True)]
            return result | {"cost": None, "seconds": None, "residuals": None, "records": records, "seqpg": None}
        settings = self.settings
        built = build_method(
            method,
            classifier.model,
            classifier.tokenizer,
            **{"seed": settings.seed, **settings.method_options.get(method, {})},
        )
        run = attribute_rows(built, classifier, rows, predicted, f"{method}: explaining")
        scores = perturbation_scores(classifier, rows, run.scores, settings.replacement, settings.seed)
        records = [
            {
                "index": self.chosen[one.index],
                "label": one.example.label,
                "predicted": prediction,
                "scores": attribution,
                **asdict(score),
            }
            for one, prediction, attribution, score in zip(encoded, predicted, run.scores, scores, strict=True)
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

    def _search(self, classifier: Classifier, rows: list) -> list[dict[str, float]]:
        settings = self.settings
        found = {}
        for name, keep in (("comprehensiveness", False), ("sufficiency", True)):
            orders = greedy_orders(classifier, rows, settings.search_budget, keep, settings.replacement)
            scores = scores_of_orders(classifier, rows, orders, settings.replacement)
            found[name] = [getattr(score, name) for score in scores]
        return [{name: found[name][i] for name in found} for i in range(len(rows))]

    def _add_plausibility(
        self,
        method: Any,
        classifier: Classifier,
        encoded: list[EncodedExample],
        run: AttributionRun,
        records: list[dict],
    ) -> None:
        """Explanations of the labelled class against the rationale, where there is one."""
        wanted = [i for i, one in enumerate(encoded) if one.rationale is not None or one.phrases]
        other = [i for i in wanted if records[i]["predicted"] != records[i]["label"]]
        scores = {i: run.scores[i] for i in wanted}
        if other:
            labels = [records[i]["label"] for i in other]
            again = attribute_rows(method, classifier, [encoded[i].row for i in other], labels)
            scores |= dict(zip(other, again.scores, strict=True))
        for i in wanted:
            words = encoded[i].word_scores(scores[i])
            if encoded[i].rationale is not None:
                records[i] |= asdict(plausibility_scores(words, encoded[i].rationale))
            if encoded[i].phrases:
                sign = 1.0 if records[i]["label"] == 1 or not method.signed else -1.0
                found = phrase_correlation([sign * word for word in words], encoded[i].phrases)
                records[i]["phrases"] = None if math.isnan(found) else found

    def _pointing_game(self, method: Any, classifier: Classifier) -> list[float]:
        return play_pointing_game(method, classifier, self.pairs())

    def pairs(self) -> list[PointingPair]:
        """The pairs of the pointing game; the first model makes them, once for all models.

        Empty, with a warning, where no two texts qualify.
        """
        if self._pairs is None:
            fingerprint = self._pairs_fingerprint
            path = self._store.folder / f"pairs-{fingerprint}.json"
            if (document := self._store.read(path, fingerprint)) is None:
                made, why = self._make_pairs()
                document = {"fingerprint": fingerprint, "pairs": [asdict(pair) for pair in made], "why": why}
                self._store.write(path, document)
            fields = ("input_ids", "segments", "labels")
            self._pairs = [PointingPair(*(tuple(pair[name]) for name in fields)) for pair in document["pairs"]]
            if not self._pairs:
                logger.warning("SeqPG is left out. %s", document["why"])
        return self._pairs

    def _make_pairs(self) -> tuple[list[PointingPair], str]:
        """The pairs, or why there are none."""
        classifier = self._models.classifier(self._models.first)
        try:
            encoded = encode_examples(classifier.tokenizer, self._pool, self._longest(self._models.first))
            pairs = make_pairs(
                classifier,
                [one.row for one in encoded],
                [one.example.label for one in encoded],
                self.settings.pairs,
                self.settings.min_probability,
                max_tokens=self._half,
                seed=self.settings.seed,
            )
        except ValueError as error:
            return [], str(error)
        return pairs, ""

    @cached_property
    def _half(self) -> int:
        """Tokens of either text of a pair, so that no model gets more than it can read."""
        facts = [self._models.facts(name) for name in self._models.names]
        room = [(one.longest - one.special) // 2 for one in facts if one.longest is not None]
        return max(1, min([LONGEST_HALF, *room]))

    def _cells(self) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
        """Every cell that the models allow, and what its file holds."""
        for model in self.models:
            for method in self.methods:
                if self._applies(model, method):
                    path = self._store.path(model, method)
                    yield model, method, self._store.read(path, self._fingerprint(model, method))

    def _applies(self, model: str, method: str) -> bool:
        return method != "bcos" or self._models.facts(model).explains

    def _encoded(self, model: str) -> list[EncodedExample]:
        """The texts as a model's tokenizer cuts them, without those that have nothing to explain."""
        if model not in self._rows:
            facts, tokenizer = self._models.facts(model), self._models.classifier(model).tokenizer
            check_labels(self.examples, self.chosen, facts.labels)
            check_replacement(tokenizer, self.settings.replacement)
            encoded = encode_examples(tokenizer, self.examples, self._longest(model))
            missing = len(self.examples) - len(encoded)
            if not encoded:
                raise ValueError(f"None of the {missing} texts has a token that is not a special one.")
            if missing:
                logger.warning(
                    "%d of %d texts have no token that is not a special one for the tokenizer of %s and are left out.",
                    *(missing, len(self.examples), model),
                )
            self._rows[model] = encoded
        return self._rows[model]

    def _longest(self, model: str) -> int | None:
        limits = (self.settings.max_length, self._models.facts(model).longest)
        return min((limit for limit in limits if limit is not None), default=None)

    def _fingerprint(self, model: str, method: str) -> str:
        settings = self.settings
        searched = method == SEARCH
        return _hash(
            input=self._input(model),
            rationales=[[one.rationale, one.phrases] for one in self.examples],
            replacement=settings.replacement,
            budget=settings.search_budget if searched else None,
            options=settings.method_options.get(method, {}),
            pairs=self._pairs_fingerprint if settings.pairs and not searched else None,
        )

    @cached_property
    def _pairs_fingerprint(self) -> str:
        settings = self.settings
        return _hash(
            input=self._input(self._models.first),
            count=settings.pairs,
            min_probability=settings.min_probability,
            half=self._half,
            longest=self._longest(self._models.first),
            pool=[[one.text, one.label] for one in self._pool],
        )

    def _input(self, model: str) -> str:
        """A fingerprint of what all numbers of a model depend on."""
        if model not in self._described:
            facts, settings = self._models.facts(model), self.settings
            self._described[model] = _hash(
                format=FORMAT,
                weights=facts.weights,
                vocabulary=facts.vocabulary,
                texts=[[i, one.text, one.label] for i, one in zip(self.chosen, self.examples, strict=True)],
                tokens=[one.row.input_ids for one in self._encoded(model)],
                seed=settings.seed,
                batch_tokens=settings.batch_tokens,
            )
        return self._described[model]


def _hash(**described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _processes() -> Iterator[tuple[int, int, Any]]:
    """Index of this process, how many there are, and a barrier."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1, lambda: None
        return
    accelerate = require("accelerate", "train")
    state = accelerate.PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    yield state.process_index, state.num_processes, state.wait_for_everyone


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
