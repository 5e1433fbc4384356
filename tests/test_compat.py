"""The ends of the supported range of transformers, as `benchmarks/compat.py` tests them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from contract import tiny_model

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("compat", ROOT / "benchmarks" / "compat.py")
compat = importlib.util.module_from_spec(spec)
sys.modules["compat"] = compat
spec.loader.exec_module(compat)


@pytest.mark.slow
def test_saved_models_explain_identically_under_the_oldest_and_the_newest_transformers(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    try:
        runs = list(compat.run_matrix(["oldest", "newest"]))
    except compat.UnavailableVersionError as error:
        pytest.skip(f"pip cannot provide a version: {error}")
    assert [(run.version, run.packaged) for run in runs] == [
        (version, packaged) for version in ("oldest", "newest") for packaged in (False, True)
    ]
    for run in runs:
        assert len(run.checks) == 64
        assert not [check for check in run.checks if not check.passed], (run.version, run.packaged)
    oldest = compat.lower_bound(compat.declared_bounds()["transformers"])
    assert runs[0].versions["transformers"] == oldest


def test_a_difference_is_seen(tmp_path):
    """The comparison fails where a weight is another one."""
    model = tiny_model("bert", "sequence-classification").float().eval()
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    wanted = compat.quantities(model, inputs)
    same = {name: compat.difference(value, wanted[name]) for name, value in compat.quantities(model, inputs).items()}
    assert set(same) == {"logits", "contributions", "explained logits"}
    assert max(same.values()) == 0
    with torch.no_grad():
        model.classifier.weight[0, 0] += 0.01
    found = {name: compat.difference(value, wanted[name]) for name, value in compat.quantities(model, inputs).items()}
    check = compat.Check("bert", "sequence-classification", "sdpa", found)
    assert not check.passed
    with pytest.raises(ValueError, match="shape"):
        compat.difference(torch.zeros(2), torch.zeros(3))


def test_the_lower_bounds_are_declared():
    bounds = compat.declared_bounds()
    assert compat.lower_bound(bounds["transformers"]).startswith("5.")
    assert compat.requirements_of("oldest")[0] == f"transformers=={compat.lower_bound(bounds['transformers'])}"
    assert json.dumps(bounds)
