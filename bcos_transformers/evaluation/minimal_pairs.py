"""Minimal pairs with a marked evidence word: does a contrastive explanation rank the evidence first?

A pair is a prefix and two continuations, of which the prefix rules out one: "Some waiters broke this lost" + "foot" or
"feet", with the evidence "this". The explained quantity is logit(good) − logit(bad) at the first token where the two
continuations differ; the measure is the mean reciprocal rank of the evidence among the words of the prefix, in
descending order of signed contribution (decoder experiment of arXiv 2502.12992; alignment of contrastive explanations with
known evidence, arXiv 2202.10419).
"""

import csv
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from bcos_transformers.evaluation.bootstrap import bootstrap_interval as bootstrap_interval
from bcos_transformers.evaluation.contrastive import METHODS, ContrastivePrompt, probabilities, word_scores

NO_EVIDENCE = "evidence not found in the prefix"
SAME_TOKENS = "continuations not told apart by a token"
NO_BOUNDARY = "no token boundary between prefix and continuation"


@dataclass(frozen=True)
class MinimalPair:
    """A prefix, the word that may follow, the word that may not, and the part of the prefix that decides."""

    prefix: str
    good: str
    bad: str
    evidence: str


@dataclass(frozen=True)
class EncodedPair(ContrastivePrompt):
    """A pair as token ids; `evidence` are the indices of the evidence words.

    The prompt ends with the tokens that both continuations begin with. `target` is the first token that only the good
    continuation has, `foil` the one that the bad one has there.
    """

    evidence: tuple[int, ...]


@dataclass(frozen=True)
class MinimalPairResults:
    """Pair by pair, in the order of `pairs`.

    Attributes:
        pairs: the pairs that were evaluated.
        skipped: how many were not, by reason.
        ranks: rank of the evidence (see `evidence_rank`) by method.
        probabilities: P(good) and P(bad), softmax over the vocabulary; where the continuations share their first tokens,
            after these.
    """

    pairs: list[EncodedPair]
    skipped: Counter[str]
    ranks: dict[str, list[float]]
    probabilities: list[tuple[float, float]]

    def reciprocal_ranks(self, method: str) -> list[float]:
        return [1 / rank for rank in self.ranks[method]]

    @property
    def random_reciprocal_ranks(self) -> list[float]:
        """What a random ranking is expected to reach on each pair."""
        return [expected_reciprocal_rank(len(pair.words), len(pair.evidence)) for pair in self.pairs]

    @property
    def gaps(self) -> list[float]:
        """P(good) − P(bad)."""
        return [good - bad for good, bad in self.probabilities]

    @property
    def accuracy(self) -> float:
        """Share of the pairs with P(good) > P(bad); NaN without pairs."""
        return sum(gap > 0 for gap in self.gaps) / len(self.gaps) if self.gaps else math.nan


def load_pairs(path: str | Path, evidence: str = "target") -> list[MinimalPair]:
    """Reads pairs from a CSV file with the columns `one_prefix_prefix`, `one_prefix_word_good` and `one_prefix_word_bad`.

    Args:
        path: the file, in UTF-8.
        evidence: the column with the evidence.

    Raises:
        ValueError: a column is missing.
    """
    columns = ("one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad", evidence)
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{Path(path).name} lacks the columns {missing}; it has {reader.fieldnames}.")
        return [MinimalPair(*(row[column].strip() for column in columns)) for row in reader]


def encode_pairs(tokenizer, pairs: Sequence[MinimalPair]) -> tuple[list[EncodedPair], Counter[str]]:
    """Tokenises pairs; prefix and continuation are tokenised together, as one text.

    The evidence is every occurrence of its characters that begins and ends with a word. Tokens that both texts begin with
    belong to what the model reads. Skipped are pairs without evidence, pairs whose tokens are the same or those of one
    text the beginning of the other's ("toy", "toys" as "to y", "to y s"), and pairs of which a token reaches from the
    prefix into the differing part of a continuation.

    Returns:
        The encoded pairs, and how many were skipped by reason.

    Raises:
        ValueError: the tokenizer does not know the characters of its tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} cannot tell which characters a token stands for. Use a fast tokenizer "
            "(AutoTokenizer.from_pretrained(...) of a model with a tokenizer.json)."
        )
    encoded, skipped = [], Counter()
    for pair in pairs:
        result = _encode(tokenizer, pair)
        if isinstance(result, EncodedPair):
            encoded.append(result)
        else:
            skipped[result] += 1
    return encoded, skipped


def _encode(tokenizer, pair: MinimalPair) -> EncodedPair | str:
    """The pair as token ids, or the reason why there is no such thing."""
    spans = [match.span() for match in re.finditer(r"\S+", pair.prefix)]
    evidence = _evidence_words(pair, spans)
    if not evidence:
        return NO_EVIDENCE
    good, bad = (_tokens(tokenizer, f"{pair.prefix} {word}") for word in (pair.good, pair.bad))
    shared = list(takewhile(lambda both: both[0][0] == both[1][0], zip(good, bad, strict=False)))
    count = len(shared)
    if count in (len(good), len(bad)):
        return SAME_TOKENS
    if min(good[count][1], bad[count][1]) < len(pair.prefix):
        return NO_BOUNDARY
    ends = [end for _, end in spans]
    return EncodedPair(
        words=tuple(pair.prefix[begin:end] for begin, end in spans),
        evidence=evidence,
        input_ids=tuple(token for token, *_ in good[:count]),
        word_of_token=tuple(_word_at(begin, special, ends) for _, begin, special in good[:count]),
        target=good[count][0],
        foil=bad[count][0],
    )


def _evidence_words(pair: MinimalPair, spans: list[tuple[int, int]]) -> tuple[int, ...]:
    """Indices of the words that share a character with the evidence."""
    if not pair.evidence:
        return ()
    found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(pair.evidence)}(?!\w)", pair.prefix)]
    return tuple(i for i, (begin, end) in enumerate(spans) if any(a < end and begin < b for a, b in found))


def _tokens(tokenizer, text: str) -> list[tuple[int, int, bool]]:
    """Id, first character and being special of each token, without the special tokens at the end."""
    # Not `verbose`: a text longer than the tokenizer's limit is no matter of the tokenizer here.
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    begins = [begin for begin, _ in encoded["offset_mapping"]]
    tokens = list(zip(encoded["input_ids"], begins, map(bool, encoded["special_tokens_mask"]), strict=True))
    while tokens and tokens[-1][2]:
        tokens.pop()
    return tokens


def _word_at(begin: int, special: bool, ends: list[int]) -> int | None:
    """The word of a token that begins at `begin`; white space belongs to the word after it, whose start it marks."""
    word = bisect_right(ends, begin)
    return None if special or word == len(ends) else word


def evidence_rank(scores: Sequence[float], evidence: Sequence[int]) -> float:
    """Rank of the best-ranked evidence word in descending order of `scores`, counted from 1.

    Where it ties with other words, the expectation over all orders of the tied: the mean rank `g + (t + 1) / 2` for one
    evidence word among t tied words after g greater ones, `g + (t + 1) / (m + 1)` where m of them are evidence.

    Raises:
        ValueError: no evidence, or scores that are not finite.
    """
    if not evidence or not all(map(math.isfinite, scores)):
        raise ValueError(f"A rank needs evidence and finite scores, got {list(evidence)} and {list(scores)}.")
    best = max(scores[word] for word in evidence)
    greater = sum(score > best for score in scores)
    tied = sum(score == best for score in scores)
    tied_evidence = sum(scores[word] == best for word in set(evidence))
    return greater + (tied + 1) / (tied_evidence + 1)


def expected_reciprocal_rank(words: int, evidence: int) -> float:
    """Expected 1 / rank of the best-ranked of `evidence` words in a random order of `words` words.

    The best one has rank r where the other evidence words all lie among the `words - r` behind it.

    Raises:
        ValueError: not 1 ≤ evidence ≤ words.
    """
    if not 1 <= evidence <= words:
        raise ValueError(f"There must be 1 to {words} evidence words, got {evidence}.")
    ways = sum(math.comb(words - rank, evidence - 1) / rank for rank in range(1, words - evidence + 2))
    return ways / math.comb(words, evidence)


def evaluate_pairs(
    model, tokenizer, pairs: Sequence[MinimalPair], methods: Sequence[str] | None = None, batch_size: int = 32
) -> MinimalPairResults:
    """Ranks the evidence of every pair by every method, and compares the probabilities of the two words.

    Args:
        model: a causal language model, B-cos or conventional; left as it was.
        tokenizer: its fast tokenizer.
        pairs: the pairs.
        methods: some of `METHODS`; None is all that the model allows.
        batch_size: token sequences a forward pass.

    Raises:
        ValueError: an unknown method, "bcos" for a conventional model, or a tokenizer that is not fast.
    """
    if methods is None:
        methods = [method for method in METHODS if method != "bcos" or hasattr(model, "explain")]
    encoded, skipped = encode_pairs(tokenizer, pairs)
    ranks = {}
    for method in methods:
        scores = word_scores(model, tokenizer, encoded, method, batch_size)
        ranks[method] = [evidence_rank(row, pair.evidence) for row, pair in zip(scores, encoded, strict=True)]
    return MinimalPairResults(encoded, skipped, ranks, probabilities(model, encoded, batch_size))
