"""`generate` in all its modes, and the explanation of whole continuations."""

import itertools

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from bcos_transformers import explain_generation
from bcos_transformers.modeling.bcos_inputs import positions_of_real_tokens
from bcos_transformers.modeling.bcos_state import is_explaining
from conftest import relative_residual
from contract import DECODERS, tiny_inputs, tiny_model

decoders = pytest.mark.parametrize("name", DECODERS)
NO_END = {"eos_token_id": None, "pad_token_id": 0}


def next_logits(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of the next token from one plain forward pass over everything so far."""
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions_of_real_tokens(mask), use_cache=False)
    return out.logits[:, -1]


def by_hand(model, prompt: dict, new: int, pick) -> torch.Tensor:
    """A continuation that picks each token from a forward pass of its own."""
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    for _ in range(new):
        token = pick(next_logits(model, ids, mask))
        ids, mask = torch.cat((ids, token[:, None]), 1), torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
    return ids


class TestGenerate:
    @decoders
    def test_greedy_with_every_cache(self, name):
        model = tiny_model(name, "causal-lm")
        prompt = tiny_inputs(model, left=True)
        wanted = by_hand(model, prompt, 8, lambda logits: logits.argmax(-1))
        for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            got = model.generate(**prompt, max_new_tokens=8, do_sample=False, **NO_END, **options)
            assert torch.equal(got, wanted), options

    @decoders
    def test_sampling(self, name):
        model = tiny_model(name, "causal-lm")
        prompt = tiny_inputs(model, left=True)
        torch.manual_seed(3)
        wanted = by_hand(model, prompt, 8, lambda x: torch.multinomial(x.float().softmax(-1), 1).squeeze(1))
        torch.manual_seed(3)
        got = model.generate(**prompt, max_new_tokens=8, do_sample=True, top_k=0, **NO_END)
        assert torch.equal(got, wanted)

    @decoders
    def test_beams_wide_enough_find_the_most_probable_pair(self, name):
        model = tiny_model(name, "causal-lm")
        prompt = tiny_inputs(model, rows=1, padded=False)
        first = next_logits(model, **dict(zip(("ids", "mask"), prompt.values(), strict=True))).log_softmax(-1)[0]
        ids = torch.cat((prompt["input_ids"].expand(60, -1), torch.arange(60)[:, None]), dim=1)
        scores = first[:, None] + next_logits(model, ids, torch.ones_like(ids)).log_softmax(-1)
        best = divmod(int(scores.argmax()), 60)
        got = model.generate(**prompt, max_new_tokens=2, num_beams=60, do_sample=False, **NO_END)
        assert tuple(got[0, -2:].tolist()) == best

    @decoders
    def test_assisted(self, name):
        model, assistant = tiny_model(name, "causal-lm"), tiny_model(name, "causal-lm", seed=7)
        prompt = tiny_inputs(model, rows=1, padded=False)
        wanted = by_hand(model, prompt, 8, lambda logits: logits.argmax(-1))
        got = model.generate(**prompt, max_new_tokens=8, do_sample=False, assistant_model=assistant, **NO_END)
        assert torch.equal(got, wanted)


class TestExplainGeneration:
    @pytest.mark.parametrize("chunk_size", [1, 3, 16])
    @decoders
    def test_equals_one_explanation_per_prefix(self, name, chunk_size):
        for fields in ({}, {"bcos_lm_head": True, "b": 1.25}):
            model = tiny_model(name, "causal-lm", **fields)
            prompt = tiny_inputs(model, left=True)
            out = explain_generation(
                model, prompt, max_new_tokens=5, do_sample=False, chunk_size=chunk_size, parts=True, **NO_END
            )
            assert out.sequences.shape == (3, 14)
            assert out.contributions.shape == (3, 5, 14)
            assert relative_residual(out) < 1e-10
            torch.testing.assert_close(sum(out.parts.values()), out.contributions)
            for new in range(5):
                prefix = slice(0, 9 + new)
                one = model.explain(
                    input_ids=out.sequences[:, prefix],
                    attention_mask=out.attention_mask[:, prefix],
                    target=out.sequences[:, 9 + new],
                )
                torch.testing.assert_close(out.contributions[:, new, prefix], one.contributions[:, 0])
                torch.testing.assert_close(out.values[:, new], one.values[:, 0])
                assert (out.contributions[:, new, 9 + new :] == 0).all()

    def test_is_one_forward_pass(self):
        model = tiny_model("llama", "causal-lm")
        calls = []
        model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(is_explaining()))
        out = explain_generation(model, tiny_inputs(model, padded=False), max_new_tokens=6, **NO_END)
        assert calls.count(True) == 1
        assert calls.count(False) == 6
        assert out.contributions.shape == (3, 6, 15)

    def test_continuations_that_end_early(self):
        model = tiny_model("llama", "causal-lm")
        prompt = tiny_inputs(model, left=True)
        free = model.generate(**prompt, max_new_tokens=6, do_sample=False, **NO_END)
        end = int(free[1, 9 + 2])  # the third new token of row 1
        out = explain_generation(model, prompt, max_new_tokens=6, do_sample=False, eos_token_id=end, pad_token_id=end)
        for row in range(3):
            new = free[row, 9:].tolist()
            length = new.index(end) + 1 if end in new else 6
            length = min(length, out.target.shape[1])
            assert out.target[row, :length].tolist() == new[:length]
            assert (out.target[row, length:] == -1).all()
            assert (out.contributions[row, length:] == 0).all()
            assert (out.contributions[row, :, 9 + length :] == 0).all()
        assert (out.target[1] == -1).any() or out.target.shape[1] == 3
        assert relative_residual(out) < 1e-10

    def test_a_generation_config_that_leaves_the_end_to_the_model(self):
        model = tiny_model("llama", "causal-lm")
        ids = tiny_inputs(model, padded=False)["input_ids"]
        free = model.generate(ids, max_new_tokens=6, do_sample=False, **NO_END)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = int(free[0, 9]), 0
        given = GenerationConfig(max_new_tokens=6, do_sample=False)
        out = explain_generation(model, ids, generation_config=given)
        assert torch.equal(out.sequences, model.generate(ids, generation_config=given))
        assert out.target[0].tolist() == [int(free[0, 9]), *[-1] * (out.target.shape[1] - 1)]
        assert given.eos_token_id is None

    def test_other_reasons_to_stop(self):
        """With padding that looks like an end, and padding that was really chosen."""
        model = tiny_model("llama", "causal-lm")
        ids = tiny_inputs(model, padded=False)["input_ids"]
        free = model.generate(ids, max_new_tokens=6, do_sample=False, **NO_END)

        class ThirdTokenInRowOne(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                done = torch.zeros(len(input_ids), dtype=torch.bool)
                done[1] = input_ids.shape[1] == 9 + 3
                return done

        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 3, "pad_token_id": 3}
        out = explain_generation(model, ids, stopping_criteria=StoppingCriteriaList([ThirdTokenInRowOne()]), **options)
        assert out.sequences[1, 12:].tolist() == [3, 3, 3]
        assert out.target[1].tolist() == [*free[1, 9:12].tolist(), -1, -1, -1]
        assert out.target[0].tolist() == free[0, 9:].tolist()
        chosen = int(free[0, -1])
        out = explain_generation(model, ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=chosen)
        assert torch.equal(out.target, free[:, 9:])

    def test_padding_is_inferred_as_generate_does(self):
        model = tiny_model("llama", "causal-lm")
        prompt = tiny_inputs(model, left=True)
        model.generation_config.pad_token_id = None
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        out = explain_generation(model, prompt["input_ids"], **options)
        assert torch.equal(out.sequences, model.generate(prompt["input_ids"], **options))
        assert torch.equal(out.attention_mask[:, :9], prompt["attention_mask"])

    def test_beams_and_several_continuations(self):
        model = tiny_model("gpt2", "causal-lm")
        prompt = tiny_inputs(model, rows=2, left=True)
        options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False, **NO_END}
        out = explain_generation(model, prompt, **options)
        assert torch.equal(out.sequences, model.generate(**prompt, **options))
        assert out.contributions.shape == (4, 4, 13)
        assert relative_residual(out) < 1e-10
        assert out.attention_mask[:, :9].tolist() == prompt["attention_mask"].repeat_interleave(2, 0).tolist()

    def test_output_classes_of_generate_and_ids_alone(self):
        model = tiny_model("llama", "causal-lm")
        ids = tiny_inputs(model, padded=False)["input_ids"]
        options = {"max_new_tokens": 3, "do_sample": False, **NO_END}
        wanted = explain_generation(model, ids, **options)
        out = explain_generation(model, ids, return_dict_in_generate=True, output_scores=True, **options)
        assert torch.equal(out.contributions, wanted.contributions)
        assert torch.equal(model.explain_generation({"input_ids": ids}, **options).values, wanted.values)

    @pytest.mark.parametrize("head", [False, True])
    def test_contrast(self, head):
        model = tiny_model("gpt2", "causal-lm", bcos_lm_head=head)
        prompt = tiny_inputs(model, left=True)
        options = {"max_new_tokens": 4, "do_sample": False, **NO_END}
        plain = explain_generation(model, prompt, **options)
        with torch.no_grad():
            positions = positions_of_real_tokens(plain.attention_mask)
            logits = model(plain.sequences, attention_mask=plain.attention_mask, position_ids=positions).logits[
                :, 8:-1
            ]
        foils = {"mean": logits.mean(-1), 7: logits[..., 7]}
        table = torch.arange(12).view(3, 4)
        for contrast, foil in (*foils.items(), (table.tolist(), logits.gather(-1, table[..., None])[..., 0])):
            out = explain_generation(model, prompt, contrast=contrast, **options)
            torch.testing.assert_close(out.values, plain.values - foil)
            assert relative_residual(out) < 1e-10

    def test_leaves_the_model_as_found_and_generates_without_dropout(self):
        model = tiny_model("gpt2", "causal-lm")
        prompt = tiny_inputs(model, left=True)
        options = {"max_new_tokens": 4, "do_sample": False, **NO_END}
        wanted = explain_generation(model, prompt, **options)
        model.train()
        out = explain_generation(model, prompt, **options)
        assert torch.equal(out.sequences, wanted.sequences)
        assert all(module.training for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_says_what_is_wrong(self):
        model = tiny_model("llama", "causal-lm")
        prompt = tiny_inputs(model)
        with pytest.raises(ValueError, match=r"Rows \[1, 2\] are padded on the right.*padding_side = 'left'"):
            explain_generation(model, prompt, max_new_tokens=2)
        with pytest.raises(ValueError, match="`inputs` must be the tokenizer's output"):
            explain_generation(model, {"inputs_embeds": torch.zeros(1, 2, 16)})
        ids = prompt["input_ids"]
        for inputs, error, message in (
            (torch.zeros(1, 0, dtype=torch.long), ValueError, "is empty"),
            (ids[0], ValueError, "unsqueeze"),
            (torch.full((1, 3), 60), ValueError, r"\[0, 60\)"),
            ("a text", TypeError, "tokenizer's output.*got str"),
            ([1, 2], TypeError, "got list"),
            ({"input_ids": ids, "attention_mask": torch.ones(3, 2)}, ValueError, "shape of the tokens"),
            ({"input_ids": ids, "attention_mask": [[1]]}, TypeError, "must be a tensor"),
            ({"input_ids": ids, "attention_mask": torch.zeros_like(ids)}, ValueError, "no real token"),
        ):
            with pytest.raises(error, match=message):
                explain_generation(model, inputs, max_new_tokens=2)
        with pytest.raises(ValueError, match="30 new ones are more than the 32 positions"):
            explain_generation(tiny_model("gpt2", "causal-lm"), ids[:1], max_new_tokens=30)
        with pytest.raises(TypeError, match="not a B-cos causal language model"):
            explain_generation(tiny_model("bert", "masked-lm"), prompt)
        with pytest.raises(ValueError, match="chunk_size"):
            explain_generation(model, prompt["input_ids"][:1], chunk_size=0, max_new_tokens=1)


@decoders
def test_next_token_explanations(name):
    """Target, foil and position of a causal language model, all combinations of how they may be given."""
    model = tiny_model(name, "causal-lm")
    inputs = tiny_inputs(model)
    with torch.no_grad():
        logits = model(**inputs).logits
    last = torch.tensor([8, 6, 4])
    default = model.explain(**inputs)
    assert torch.equal(default.target[:, 0], logits[torch.arange(3), last].argmax(-1))
    targets = [7, torch.tensor([7, 8, 9]), torch.tensor([[7, 3], [8, 3], [9, 3]])]
    for target, contrast, position in itertools.product(targets, [None, 5, "mean"], [None, -2, 1]):
        out = model.explain(**inputs, target=target, contrast=contrast, position=position)
        where = last if position is None else torch.full((3,), 1) if position == 1 else last - 1
        picked = logits[torch.arange(3), where]
        chosen = torch.as_tensor(target).expand(3) if torch.as_tensor(target).dim() < 2 else target
        foil = 0.0 if contrast is None else picked[:, 5:6] if contrast == 5 else picked.mean(-1, keepdim=True)
        torch.testing.assert_close(out.values, picked.gather(1, chosen.reshape(3, -1)) - foil)
        assert relative_residual(out) < 1e-10
        for row in range(3):
            assert (out.contributions[row, :, int(where[row]) + 1 :] == 0).all()
