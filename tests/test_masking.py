"""Random masking: which tokens are hidden, and how many."""

import pytest
import torch

from bcos_transformers import MaskingCollator
from bcos_transformers.data.masking import maskable_tokens
from masking_toys import MASK, texts
from tiny_tokenizers import byte_level

PAD, CLS, SEP = 0, 2, 3


@pytest.fixture
def features(tokenizer) -> list[dict]:
    return texts(tokenizer)


class TestWhatIsHidden:
    def test_only_real_tokens_that_are_not_special(self, tokenizer, features):
        collator = MaskingCollator(tokenizer, share=1.0)
        whole = collator.collator(features)
        special = (whole["input_ids"] < 5) & (whole["input_ids"] != 1)
        ever = torch.zeros_like(special)
        for seed in range(60):
            torch.manual_seed(seed)
            batch = collator(features)
            hidden = batch["input_ids"] != whole["input_ids"]
            assert (batch["input_ids"][hidden] == MASK).all()
            assert not (hidden & special).any()
            assert set(batch) == set(whole)
            assert all(torch.equal(batch[name], whole[name]) for name in whole if name != "input_ids")
            ever |= hidden
        assert torch.equal(ever, ~special)

    def test_unknown_words_are_hidden_like_others(self, tokenizer):
        ids = torch.tensor([tokenizer("film zzz")["input_ids"] + [PAD]])
        assert ids.tolist() == [[CLS, 7, 1, SEP, PAD]]
        assert maskable_tokens(tokenizer, ids).tolist() == [[False, True, True, False, False]]

    def test_masks_that_a_text_has_already_and_extra_special_tokens(self, tokenizer):
        tokenizer.add_special_tokens({"extra_special_tokens": ["[X]"]})
        ids = torch.tensor([tokenizer("[MASK] film [X]")["input_ids"]])
        assert maskable_tokens(tokenizer, ids).tolist() == [[False, False, True, False, False]]

    def test_what_the_attention_mask_leaves_out(self, tokenizer):
        ids, mask = torch.tensor([[CLS, 7, 8, SEP]]), torch.tensor([[1, 1, 0, 0]])
        assert maskable_tokens(tokenizer, ids, mask).tolist() == [[False, True, False, False]]

    def test_an_unknown_token_that_also_ends_texts_is_special(self):
        tokenizer = byte_level(unk_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>")
        ids = torch.tensor([[5, 6, tokenizer.eos_token_id]])
        assert maskable_tokens(tokenizer, ids).tolist() == [[True, True, False]]

    @pytest.mark.parametrize("replacement", ["mask", "attention"])
    def test_share_of_zero_hides_nothing(self, tokenizer, features, replacement):
        collator = MaskingCollator(tokenizer, share=0.0, replacement=replacement)
        whole = collator.collator(features)
        for _ in range(5):
            assert all(torch.equal(value, whole[name]) for name, value in collator(features).items())

    def test_number_of_hidden_tokens(self, tokenizer, features):
        """The ratio is the first draw of a batch; rounded is its product with the number of tokens, special ones apart."""
        collator = MaskingCollator(tokenizer, share=1.0)
        sizes = torch.tensor([len(row["input_ids"]) - 2 for row in features])
        for seed in range(20):
            torch.manual_seed(seed)
            ratio = torch.rand(len(features))
            torch.manual_seed(seed)
            count = (collator(features)["input_ids"] == MASK).sum(-1)
            assert torch.equal(count, (ratio * sizes).round().long())

    def test_ratios_are_uniform_and_so_are_positions(self, tokenizer):
        """Of n = 10 tokens, k are hidden in a tenth of the texts, none and all of them in a twentieth."""
        rows, n = 20000, 10
        ids = torch.tensor([CLS, *range(6, 6 + n), SEP]).expand(rows, -1)
        torch.manual_seed(0)
        hidden = MaskingCollator(tokenizer, share=1.0).draw({"input_ids": ids})
        observed = hidden.sum(-1).bincount(minlength=n + 1)
        wanted = torch.full((n + 1,), rows / n)
        wanted[[0, n]] /= 2
        assert ((observed - wanted).square() / wanted).sum() < 25.2  # chi squared, 10 degrees of freedom, p = 0.005
        assert (hidden[:, 1:-1].float().mean(0) - 0.5).abs().max() < 0.02

    @pytest.mark.parametrize("share", [0.25, 0.5])
    def test_share_of_the_texts(self, tokenizer, share):
        """A picked text of 100 tokens has none hidden with probability 1 / 200."""
        ids = torch.full((5000, 100), 8)
        torch.manual_seed(0)
        hidden = MaskingCollator(tokenizer, share=share).draw({"input_ids": ids})
        assert abs(hidden.any(-1).float().mean() - share * 0.995) < 0.02

    def test_the_seed_decides(self, tokenizer, features):
        batches = []
        for seed in (7, 7, 8):
            torch.manual_seed(seed)
            batches.append(MaskingCollator(tokenizer)(features)["input_ids"])
        assert torch.equal(batches[0], batches[1])
        assert not torch.equal(batches[0], batches[2])

    def test_out_of_the_attention_mask(self, tokenizer, features):
        for replacement in ("mask", "attention"):
            torch.manual_seed(3)
            batch = MaskingCollator(tokenizer, share=1.0, replacement=replacement)(features)
            if replacement == "mask":
                hidden = batch["input_ids"] == MASK
        whole = MaskingCollator(tokenizer).collator(features)
        assert hidden.any()
        assert torch.equal(batch["input_ids"], whole["input_ids"])
        assert torch.equal(batch["attention_mask"], whole["attention_mask"] * ~hidden)
        assert batch["attention_mask"].dtype == whole["attention_mask"].dtype

    def test_another_collator_inside(self, tokenizer):
        def no_mask(rows):
            return {"input_ids": torch.tensor(rows), "extra": "kept"}

        rows = [[CLS, *range(6, 26), SEP]] * 4
        torch.manual_seed(0)
        batch = MaskingCollator(tokenizer, share=1.0, replacement="attention", collator=no_mask)(rows)
        assert batch["extra"] == "kept"
        assert batch["input_ids"].tolist() == rows
        assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].numel()
        assert batch["attention_mask"][:, [0, -1]].all()

    def test_the_tokenizer_is_not_changed(self, tokenizer, features):
        before = tokenizer.backend_tokenizer.to_str(), dict(tokenizer.init_kwargs), tokenizer.special_tokens_map
        MaskingCollator(tokenizer, share=1.0)(features)
        assert before == (
            tokenizer.backend_tokenizer.to_str(),
            dict(tokenizer.init_kwargs),
            tokenizer.special_tokens_map,
        )

    def test_refusals(self, tokenizer):
        for share in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match=r"share.*\[0, 1\]; got"):
                MaskingCollator(tokenizer, share=share)
        with pytest.raises(ValueError, match=r"one of \('mask', 'attention'\), got 'drop'"):
            MaskingCollator(tokenizer, replacement="drop")
        with pytest.raises(ValueError, match="no mask token. Use replacement='attention'"):
            MaskingCollator(byte_level())
