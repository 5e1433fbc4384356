"""Post-hoc attributions: wrong input, methods and options, and models that give NaN."""

import pytest
import torch

from attribution_toys import TARGET, classifiers, conventional, encoded, method_of
from bcos_transformers.evaluation.baselines import build_method
from conftest import make_tokenizer


@pytest.fixture(scope="module")
def models():
    return classifiers()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"position_ids": torch.zeros(4, 8, dtype=torch.long)}, ValueError, "position_ids"),
        ({"attention_mask": torch.ones(4, 3, dtype=torch.long)}, ValueError, "shape of `input_ids`"),
        ({"attention_mask": torch.ones(4, 8)}, TypeError, "integers"),
        ({"attention_mask": [[1] * 8] * 4}, TypeError, "integers"),
        ({"input_ids": torch.ones(8, dtype=torch.long)}, ValueError, "batch, tokens"),
        ({"attention_mask": torch.arange(8).gt(1).long().expand(4, 8)}, ValueError, "on the right"),
        ({"attention_mask": torch.arange(4)[:, None].gt(1).long().expand(4, 8)}, ValueError, "Text 0 has no tokens"),
        ({"target": torch.tensor([0, 1, 3, 0])}, ValueError, r"\[0, 3\)"),
        ({"target": torch.tensor([0, 1])}, ValueError, "class for every text"),
        ({"target": torch.zeros(4)}, TypeError, "target"),
        ({"keys": [1]}, ValueError, "keys"),
    ],
)
def test_wrong_input(change, error, message, models):
    given = {**encoded(), "target": TARGET, "keys": None, **change}
    target, keys = given.pop("target"), given.pop("keys")
    with pytest.raises(error, match=message):
        method_of("saliency", models["bert"]).attribute(given, target, keys)


def test_wrong_methods_and_options(models):
    model = models["bert"]
    with pytest.raises(ValueError, match="'magic'; there are saliency"):
        method_of("magic", model)
    with pytest.raises(TypeError, match="no option 'n_steps'; it has seed, n_samples"):
        build_method("lime", model, make_tokenizer(), n_steps=3)
    with pytest.raises(ValueError, match="n_steps"):
        method_of("integrated_gradients", model, n_steps=0)
    with pytest.raises(ValueError, match="'mask', 'pad', 'zero'"):
        method_of("deep_lift", model, baseline="blur")
    with pytest.raises(TypeError, match="not a B-cos model"):
        method_of("bcos", model)


def test_models_that_give_nan_are_named():
    model = conventional("bert")
    model.classifier.weight.data[0, 0] = torch.nan
    for name in ("integrated_gradients", "occlusion"):
        with pytest.raises(ValueError, match="not finite"):
            method_of(name, model).attribute(encoded(), torch.zeros(4, dtype=torch.long))
