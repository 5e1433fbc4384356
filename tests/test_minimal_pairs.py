"""Ranks of evidence words on minimal pairs, against slow code that follows the definitions."""

import csv
import importlib.util
import itertools
import math
import statistics
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import bcos_transformers
from bcos_transformers.evaluation.contrastive import METHODS, word_scores
from bcos_transformers.evaluation.minimal_pairs import (
    NO_BOUNDARY,
    NO_EVIDENCE,
    SAME_TOKENS,
    MinimalPair,
    bootstrap_interval,
    encode_pairs,
    evaluate_pairs,
    evidence_rank,
    expected_reciprocal_rank,
    load_pairs,
)
from conftest import SHARED, needs_shared

COLUMNS = ["one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad", "target"]
PAIRS = [
    MinimalPair("Zoë’s niece, Ann, thanked", "herself", "himself", "Ann"),
    MinimalPair("these waiters broke this lost", "foot", "feet", "this"),
    MinimalPair("the big the", "cats", "cups", "the"),
]


def byte_level(trim_offsets: bool = True, unknown: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without special tokens in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    text = [f"{pair.prefix} {word}" for pair in PAIRS for word in (pair.good, pair.bad)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=sorted(alphabet), special_tokens=["<unk>"])
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"unk_token": "<unk>"} if unknown else {}))


def wordpiece() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with [CLS] and [SEP]."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "great",
        "wait",
        "##er",
        "##s",
        "##ress",
        "broke",
        "this",
        ",",
        "lost",
        "foot",
        "feet",
        "to",
        "##y",
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def gpt2(tokenizer) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4
    )
    return GPT2LMHeadModel(config).double().eval()


def bcos_llama(tokenizer):
    torch.manual_seed(0)
    config = bcos_transformers.BcosLlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return bcos_transformers.BcosLlamaForCausalLM(config).double().eval()


def contrast(model, ids, pair) -> float:
    """logit(target) − logit(foil) after `ids`, one text at a time."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return (logits[pair.target] - logits[pair.foil]).item()


def test_expectation_of_a_random_ranking():
    for words in range(1, 7):
        for evidence in range(1, words + 1):
            orders = itertools.permutations(range(words))  # order[i] is the place of word i
            slow = statistics.fmean(1 / (1 + min(order[:evidence])) for order in orders)
            assert expected_reciprocal_rank(words, evidence) == pytest.approx(slow)
    for words, evidence in ((3, 0), (3, 4), (0, 0)):
        with pytest.raises(ValueError, match="evidence words"):
            expected_reciprocal_rank(words, evidence)


@pytest.mark.parametrize("evidence", [(0,), (1, 3), (0, 2), (2, 3, 4), (0, 1, 2, 3, 4)])
def test_rank_of_the_best_evidence_word_with_ties(evidence):
    scores = [0.5, 2.0, 0.5, -1.0, 0.5]
    ranks = []
    for shuffled in itertools.permutations(range(5)):  # a stable sort breaks ties as they come
        ranking = sorted(shuffled, key=lambda word: -scores[word])
        ranks.append(1 + min(ranking.index(word) for word in evidence))
    assert evidence_rank(scores, evidence) == pytest.approx(statistics.fmean(ranks))


def test_rank_is_signed_and_refuses_what_has_no_rank():
    assert evidence_rank([-9.0, 1.0, 0.0], (0,)) == 3
    assert evidence_rank([1.0, 1.0, 0.0], (1,)) == 1.5
    for scores, evidence in (([1.0], ()), ([math.nan, 1.0], (1,)), ([math.inf, 1.0], (0,))):
        with pytest.raises(ValueError, match="finite scores"):
            evidence_rank(scores, evidence)


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_byte_level_tokens_belong_to_the_word_whose_characters_they_hold(trim_offsets):
    tokenizer = byte_level(trim_offsets)
    encoded, skipped = encode_pairs(tokenizer, PAIRS)
    assert not skipped
    assert [pair.evidence for pair in encoded] == [(2,), (3,), (0, 2)]
    for pair, given in zip(encoded, PAIRS, strict=True):
        assert pair.words == tuple(given.prefix.split())
        for index, word in enumerate(pair.words):
            tokens = [t for t, owner in zip(pair.input_ids, pair.word_of_token, strict=True) if owner == index]
            assert tokenizer.decode(tokens).strip() == word
    assert len(encoded[0].input_ids) > len(encoded[0].words)


def test_wordpiece_tokens_belong_to_words_and_special_tokens_to_none():
    pair = MinimalPair("The great waiters, WAITRESS broke this lost", "foot", "feet", "WAITRESS broke")
    (encoded,), _ = encode_pairs(wordpiece(), [pair])
    assert encoded.word_of_token == (None, 0, 1, 2, 2, 2, 2, 3, 3, 4, 5, 6)
    assert encoded.evidence == (3, 4)
    assert (encoded.target, encoded.foil) == (14, 15)


def test_tokens_that_both_continuations_begin_with_are_read():
    tokenizer = byte_level()
    (pair,), _ = encode_pairs(tokenizer, [PAIRS[2]])
    good, bad = (tokenizer(f"the big the {word}")["input_ids"] for word in ("cats", "cups"))
    count = len(pair.input_ids)
    assert tuple(good[:count]) == tuple(bad[:count]) == pair.input_ids
    assert (pair.target, pair.foil) == (good[count], bad[count])
    assert pair.target != pair.foil
    assert tokenizer.decode(pair.input_ids) == "the big the c"
    assert pair.word_of_token[-1] is None


def test_what_is_skipped_is_counted():
    pairs = [
        MinimalPair("The great", "foot", "feet", "grea"),
        MinimalPair("The great", "foot", "feet", "reat"),
        MinimalPair("The great", "foot", "feet", ""),
        MinimalPair("The great", "FOOT", "foot", "great"),
        MinimalPair("The great", "to", "toy", "great"),
        MinimalPair("The great", "toy", "to", "great"),
        MinimalPair("The great", "foot", "feet", "The"),
    ]
    encoded, skipped = encode_pairs(wordpiece(), pairs)
    assert len(encoded) == 1
    assert skipped == {NO_EVIDENCE: 3, SAME_TOKENS: 3}
    pieces = [("<unk>", 0.0), ("t g", -1.0), ("t", -9.0), (" ", -9.0), ("g", -9.0), ("h", -9.0)]
    across = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, 0)), unk_token="<unk>")
    assert encode_pairs(across, [MinimalPair("t", "g", "h", "t")]) == ([], {NO_BOUNDARY: 1})


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="fast tokenizer"):
        encode_pairs(Slow(), PAIRS)


@pytest.mark.parametrize("unknown", [True, False])
def test_occlusion_is_one_forward_pass_a_word(unknown):
    tokenizer = byte_level(unknown=unknown)
    model = gpt2(tokenizer)
    encoded, _ = encode_pairs(tokenizer, PAIRS)
    fast = word_scores(model, tokenizer, encoded, "occlusion", batch_size=3)
    for pair, scores in zip(encoded, fast, strict=True):
        slow = []
        for word in range(len(pair.words)):
            ids = []
            for token, owner in zip(pair.input_ids, pair.word_of_token, strict=True):
                if owner != word:
                    ids.append(token)
                elif unknown:
                    ids.append(tokenizer.unk_token_id)
            slow.append(contrast(model, pair.input_ids, pair) - contrast(model, ids, pair))
        assert scores == pytest.approx(slow, abs=1e-9)


def test_leaving_out_the_only_word_scores_nothing():
    tokenizer = byte_level(unknown=False)
    encoded, _ = encode_pairs(tokenizer, [MinimalPair("Ann", "thanked", "big", "Ann")])
    only = [pair for pair in encoded if None not in pair.word_of_token]
    assert only, "the continuations share a token, so that the text would not be empty"
    assert word_scores(gpt2(tokenizer), tokenizer, only, "occlusion") == [[0.0]]


@pytest.mark.parametrize("make", [gpt2, bcos_llama])
def test_gradient_x_input_is_the_slope_along_the_embeddings(make):
    """Central differences: the embeddings of one word at a time times 1 ± h."""
    tokenizer = byte_level()
    model, h = make(tokenizer), 1e-5
    encoded, _ = encode_pairs(tokenizer, PAIRS)
    fast = word_scores(model, tokenizer, encoded, "gradient_x_input", batch_size=2)
    for pair, scores in zip(encoded, fast, strict=True):
        embeddings = model.get_input_embeddings()(torch.tensor([pair.input_ids])).detach()
        for word, score in enumerate(scores):
            mine = torch.tensor([owner == word for owner in pair.word_of_token]).double()[:, None]
            ends = []
            for step in (h, -h):
                with torch.no_grad():
                    logits = model(inputs_embeds=embeddings * (1 + step * mine)).logits[0, -1]
                ends.append((logits[pair.target] - logits[pair.foil]).item())
            assert score == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-6)


def test_bcos_scores_add_up_to_the_difference_of_the_logits():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 0)]
    )
    model = bcos_llama(tokenizer)
    encoded, _ = encode_pairs(tokenizer, PAIRS)
    for pair, scores in zip(encoded, word_scores(model, tokenizer, encoded, "bcos", batch_size=2), strict=True):
        assert pair.word_of_token[0] is None
        alone = model.explain(torch.tensor([pair.input_ids]), target=pair.target, contrast=pair.foil)
        tokens = alone.contributions[0, 0].tolist()
        rest = sum(s for s, owner in zip(tokens, pair.word_of_token, strict=True) if owner is None)
        assert sum(scores) + rest == pytest.approx(contrast(model, pair.input_ids, pair), abs=1e-9)


@pytest.mark.parametrize("make", [gpt2, bcos_llama])
def test_evaluation_leaves_everything_as_it_was(make):
    tokenizer = byte_level()
    model = make(tokenizer).train()
    model.get_output_embeddings().eval()
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[1].requires_grad_(False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    needs = [parameter.requires_grad for parameter in parameters]
    settings, state = tokenizer.backend_tokenizer.to_str(), torch.get_rng_state()
    evaluate_pairs(model, tokenizer, PAIRS)
    assert modes == [module.training for module in model.modules()]
    assert needs == [parameter.requires_grad for parameter in parameters]
    assert (parameters[0].grad == 1).all()
    assert all(parameter.grad is None for parameter in parameters[1:])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert settings == tokenizer.backend_tokenizer.to_str()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("make", [gpt2, bcos_llama])
def test_results(make):
    tokenizer = byte_level()
    model = make(tokenizer)
    pairs = [*PAIRS, MinimalPair("the big the", "cats", "cups", "NA")]
    results = evaluate_pairs(model, tokenizer, pairs, batch_size=2)
    assert results == evaluate_pairs(model, tokenizer, pairs, batch_size=2)
    assert list(results.ranks) == [m for m in METHODS if m != "bcos" or make is bcos_llama]
    assert results.skipped == {NO_EVIDENCE: 1}
    assert results.random_reciprocal_ranks[1:] == pytest.approx([(1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5, 5 / 6])
    for pair, (good, bad), gap in zip(results.pairs, results.probabilities, results.gaps, strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([pair.input_ids])).logits[0, -1].softmax(-1)
        assert (good, bad) == pytest.approx((expected[pair.target].item(), expected[pair.foil].item()))
        assert gap == good - bad
    assert results.accuracy == sum(good > bad for good, bad in results.probabilities) / 3
    for method, ranks in results.ranks.items():
        assert results.reciprocal_ranks(method) == [1 / rank for rank in ranks]
        scores = word_scores(model, tokenizer, results.pairs, method, batch_size=1)
        assert ranks == [evidence_rank(s, p.evidence) for s, p in zip(scores, results.pairs, strict=True)]


def test_wrong_methods():
    tokenizer = byte_level()
    with pytest.raises(ValueError, match="no B-cos model"):
        evaluate_pairs(gpt2(tokenizer), tokenizer, PAIRS, methods=["bcos"])
    with pytest.raises(ValueError, match="must be one of"):
        evaluate_pairs(gpt2(tokenizer), tokenizer, PAIRS, methods=["attention"])


def test_works_under_inference_mode():
    tokenizer = byte_level()
    model = bcos_llama(tokenizer)
    with torch.inference_mode():
        inside = evaluate_pairs(model, tokenizer, PAIRS)
    assert inside.ranks == evaluate_pairs(model, tokenizer, PAIRS).ranks


def test_bootstrap():
    state = torch.get_rng_state()
    groups = [[1.0, 0.5, 0.25] * 30, [1.0] * 10]
    center, low, high = bootstrap_interval(groups, seed=3)
    assert center == pytest.approx((1.75 / 3 + 1) / 2)
    assert bootstrap_interval(groups, seed=3) == (center, low, high)
    # The normal approximation: half the standard error of the first group, since the second one has none.
    error = statistics.pstdev(groups[0]) / math.sqrt(90) / 2
    assert (low, high) == pytest.approx((center - 1.96 * error, center + 1.96 * error), abs=error / 4)
    assert bootstrap_interval([[0.5, 0.5]]) == (0.5, 0.5, 0.5)
    assert torch.equal(state, torch.get_rng_state())
    for empty in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="needs a value"):
            bootstrap_interval(empty)


def write(path: Path, columns: list[str] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([(p.prefix, f"{p.good} ", p.bad, p.evidence)[: len(columns)] for p in PAIRS])
    return path


def test_pairs_from_a_file(tmp_path):
    assert load_pairs(write(tmp_path / "pairs.csv")) == PAIRS
    with pytest.raises(ValueError, match=r"lacks the columns \['target'\]"):
        load_pairs(write(tmp_path / "short.csv", COLUMNS[:3]))


def test_benchmark_writes_a_page_and_keeps_the_reading(tmp_path, monkeypatch):
    tokenizer = byte_level()
    for name, make in (("plain", gpt2), ("bcos", bcos_llama)):
        make(tokenizer).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "agreement.csv")
    page = tmp_path / "page.md"
    page.write_text("# Old\n\n## What it shows\n\nLittle.\n\n## plain\n\nold table\n", encoding="utf-8")
    script = Path(__file__).parents[1] / "benchmarks" / "decoder_minimal_pairs.py"
    spec = importlib.util.spec_from_file_location("decoder_minimal_pairs", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = ["--data", str(tmp_path / "data"), "--output", str(page), "--limit", "2"]
    words += ["--model", f"plain={tmp_path / 'plain'}", "--model", str(tmp_path / "bcos")]
    monkeypatch.setattr(sys, "argv", ["decoder_minimal_pairs.py", *words])
    module.main()
    text = page.read_text(encoding="utf-8")
    assert "Little.\n\n## plain\n" in text
    assert "old table" not in text
    assert text.count("| agreement | 2 | 0 |") == 2
    assert "| plain | – | 0." in text


@needs_shared
def test_sentencepiece_tokens_belong_to_words():
    for module in ("sentencepiece", "google.protobuf"):
        pytest.importorskip(module, reason="reading tokenizer.model needs the extra [eval]")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "data" / "stories260K")
    files = sorted((SHARED / "data" / "decoder").rglob("*.csv"))
    assert len(files) == 12
    for file in files:
        encoded, skipped = encode_pairs(tokenizer, load_pairs(file)[:20])
        assert len(encoded) + sum(skipped.values()) == 20
        for pair in encoded:
            assert pair.word_of_token[0] is None
            for index, word in enumerate(pair.words):
                tokens = [t for t, owner in zip(pair.input_ids, pair.word_of_token, strict=True) if owner == index]
                assert tokenizer.decode(tokens).strip() == word
