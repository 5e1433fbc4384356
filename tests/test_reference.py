"""Numbers of the published implementation (../shared/reference), where they are at hand."""

import pytest
import torch

from bcos_transformers import from_pretrained_bcos
from conftest import SHARED, needs_shared, relative_residual

DECODERS = ("gpt2", "llama")


@needs_shared
@pytest.mark.parametrize("b", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_logits_and_contributions_of_the_published_implementation(name, b):
    numpy = pytest.importorskip("numpy")
    expected = numpy.load(SHARED / "reference" / name / "expected.npz")
    inputs = {key: torch.tensor(expected[key]) for key in ("input_ids", "attention_mask")}
    decoder = name in DECODERS
    task = "causal-lm" if decoder else "sequence-classification"
    model = from_pretrained_bcos(SHARED / "reference" / name, task=task, b=b)
    target = torch.tensor(expected["explained_token_ids"])[None].expand(3, -1) if decoder else "all"
    out = model.explain(**inputs, target=target, parts=True)
    logits = out.logits[:, -1] if decoder else out.logits
    torch.testing.assert_close(logits, torch.tensor(expected[f"b{b:g}_logits"]), rtol=1e-4, atol=1e-5)
    published = torch.tensor(expected[f"b{b:g}_contributions"])
    if name == "gpt2":  # which leaves the position part out
        torch.testing.assert_close(out.parts["word"], published, rtol=1e-4, atol=1e-5)
        assert (out.values - published.sum(-1)).abs().max() > 0.5
    elif name == "llama":  # which differentiates the gate too
        assert (out.values - published.sum(-1)).abs().max() > 0.05
    else:
        torch.testing.assert_close(out.contributions, published, rtol=1e-4, atol=1e-5)
    assert relative_residual(out) < 1e-4
    assert relative_residual(model.double().explain(**inputs, target=target)) < 1e-10
