"""Which runs the benchmark of prototypes consists of."""

import dataclasses
import hashlib
import json
from pathlib import Path

from finetuning import Setting as Finetuning
from finetuning import conventional
from recipe_search import RECIPE

TREEBANK = "sst_scores"
EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run with prototypes."""

    task: str
    seed: int = 0
    distance: str = "l2"
    num_prototypes: int = 40
    k: int | float = 0.5
    lambdas: tuple[float, float, float] = (0.5, 0.25, 0.25)
    lr: float = 5e-5
    prototype_lr: float = 1e-3
    epochs: int = EPOCHS
    bcos: bool = False  # over the encoder of a B-cos classifier
    train_texts: int | None = None
    freeze_backbone: bool = False
    initialize: bool = True

    @property
    def key(self) -> str:
        """A folder name."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"proto-{self.task}-{self.distance}-seed{self.seed}-{digest}"


change = dataclasses.replace
SMALL = Setting("sst2", train_texts=1000)
MAIN = {
    "SST-2": [Setting("sst2", seed) for seed in (0, 1, 2)],
    "AG News": [Setting("ag_news")],
    "SST-2, cosine": [Setting("sst2", seed, "cosine", prototype_lr=5e-4) for seed in (0, 1, 2)],
    "SST-2, B-cos encoder, cosine": [Setting("sst2", 0, "cosine", prototype_lr=5e-4, bcos=True)],
    "SST treebank scores (regression)": [Setting(TREEBANK, epochs=8)],
    "SST treebank scores (regression), cosine": [Setting(TREEBANK, 0, "cosine", prototype_lr=5e-4, epochs=8)],
}
ABLATION = {
    "as above": SMALL,
    "K = 1": change(SMALL, k=1),
    "K = all of a class": change(SMALL, k=1.0),
    "no cohesion (λ = ½, 0, ½)": change(SMALL, lambdas=(0.5, 0.0, 0.5)),
    "no separation (λ = ½, ½, 0)": change(SMALL, lambdas=(0.5, 0.5, 0.0)),
    "cross-entropy alone (λ = 1, 0, 0)": change(SMALL, lambdas=(1.0, 0.0, 0.0)),
    "cross-entropy little (λ = ⅕, ⅖, ⅖)": change(SMALL, lambdas=(0.2, 0.4, 0.4)),
    "cosine": change(SMALL, distance="cosine", prototype_lr=5e-4),
    "4 prototypes": change(SMALL, num_prototypes=4),
    "200 prototypes": change(SMALL, num_prototypes=200),
    "prototypes not initialised from texts": change(SMALL, initialize=False),
    "encoder frozen": change(SMALL, freeze_backbone=True),
}


def plain_folder(setting: Setting, runs: Path) -> Path:
    """Where the plain fine-tune is."""
    if setting.task == TREEBANK:
        return runs / f"plain-{TREEBANK}-seed{setting.seed}-epochs{setting.epochs}"
    return runs / conventional(setting.task, setting.seed).key


def bcos_run(setting: Setting) -> Finetuning:
    """The B-cos classifier whose encoder a run starts from."""
    return dataclasses.replace(RECIPE, task=setting.task, seed=setting.seed)
