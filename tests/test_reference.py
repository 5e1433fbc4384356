"""Numbers of the published implementation (../shared/reference), where they are at hand."""

import pytest
import torch

from bcos_transformers import from_pretrained_bcos
from conftest import SHARED, needs_shared, relative_residual

REFERENCE = SHARED / "reference" / "bert"


@needs_shared
@pytest.mark.parametrize("b", [1.0, 1.5, 2.0])
def test_logits_and_contributions_of_the_published_implementation(b):
    numpy = pytest.importorskip("numpy")
    expected = numpy.load(REFERENCE / "expected.npz")
    inputs = {name: torch.tensor(expected[name]) for name in ("input_ids", "attention_mask")}
    model = from_pretrained_bcos(REFERENCE, task="sequence-classification", b=b)
    out = model.explain(**inputs, target="all")
    torch.testing.assert_close(out.logits, torch.tensor(expected[f"b{b:g}_logits"]), rtol=1e-4, atol=1e-5)
    wanted = torch.tensor(expected[f"b{b:g}_contributions"])
    torch.testing.assert_close(out.contributions, wanted, rtol=1e-4, atol=1e-5)
    assert relative_residual(out) < 1e-4
