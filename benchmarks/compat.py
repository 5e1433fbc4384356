"""Models saved by this version, loaded and explained by other releases of transformers.

    python benchmarks/compat.py --output docs/compatibility.md
    python benchmarks/compat.py --versions 5.18.0 5.20.2 newest

Saves a tiny B-cos model of every architecture and head, then loads each of them in processes that see another transformers,
with this package and without it, and compares logits, contributions, explained generations and word scores. The default
versions are the two ends of what pyproject.toml allows: `oldest`, with the oldest huggingface_hub that it allows, and
`newest`. Each version comes from the package registry into a temporary folder, with those of its dependencies that the
current environment has in no fitting version; torch stays the installed one. The exit code is 1 when anything differs by
more than rounding.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ("sdpa", "eager")
TOLERANCE = 1e-6  # relative to the largest number compared, in float32
PACKAGE = ("bcos_transformers", "modeling")
TEXT, QUESTION = "the film was a very good film", "what was it"
REPORTED = ("transformers", "huggingface_hub", "tokenizers", "safetensors")


@dataclass
class Check:
    """One model under one version: the largest relative difference of each quantity, or why there is none."""

    architecture: str
    task: str
    kernel: str
    differences: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and all(value <= TOLERANCE for value in self.differences.values())


@dataclass
class Run:
    """All models under one version, with the package or without it."""

    version: str
    packaged: bool
    versions: dict[str, str]
    checks: list[Check]


class UnavailableVersionError(RuntimeError):
    """pip could not provide a version."""


class _Block:
    """Makes this package unimportable."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in PACKAGE:
            raise ImportError(f"{name} must not be imported here")


def quantities(model: Any, inputs: dict, tokenizer: Any = None) -> dict[str, torch.Tensor]:
    """What is compared of a model: its output, and explanations as far as it has them.

    Args:
        model: a B-cos model.
        inputs: token ids and mask, `(rows, tokens)`.
        tokenizer: with it, the scores of a text's words as well; that needs the package.
    """
    with torch.no_grad():
        result = {"logits": model(**inputs)[0]}
    task = model.explanation_task
    if task:
        explanation = model.explain(**inputs)
        result |= {"contributions": explanation.contributions, "explained logits": explanation.values}
    if task == "causal-lm":
        prompt = {name: value[:1] for name, value in inputs.items()}
        generation = model.explain_generation(prompt, max_new_tokens=4, do_sample=False)
        result |= {"generated tokens": generation.sequences, "generation": generation.contributions}
    if task and tokenizer is not None:
        from bcos_transformers import BcosExplainer

        text = TEXT if task != "masked-lm" else f"{TEXT} {tokenizer.mask_token}"
        pair = {"text_pair": TEXT} if task == "question-answering" else {}
        found = BcosExplainer(model, tokenizer)(QUESTION if pair else text, **pair)
        scores = [e.scores for e in (found if isinstance(found, list) else [found])]
        result["word scores"] = torch.tensor(scores)
    return result


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference relative to the largest wanted number; 0 where every bit is the same."""
    if got.shape != wanted.shape:
        raise ValueError(f"shape {tuple(got.shape)} instead of {tuple(wanted.shape)}")
    if torch.equal(got, wanted):
        return 0.0
    largest = (got.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-30)
    return largest.item() if largest.isfinite() else float("inf")


def load(path: Path, auto_class: str, kernel: str, packaged: bool) -> Any:
    """A saved model by its Auto class, and proof of where its code comes from."""
    import transformers

    trust = {} if packaged else {"trust_remote_code": True}
    auto = getattr(transformers, auto_class)
    model = auto.from_pretrained(path, attn_implementation=kernel, **trust).eval()
    expected = PACKAGE[0] if packaged else "transformers_modules"
    if type(model).__module__.partition(".")[0] != expected:
        raise ImportError(f"the class came from {type(model).__module__}, not from {expected}")
    return model


def make_tokenizer(pad: int) -> Any:
    """A tokenizer for words of `TEXT` and `QUESTION`, with the padding and mask ids of the models."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from contract import MASK_TOKEN

    special = ["[UNK]", "[CLS]", "[SEP]"]
    special.insert(pad, "[PAD]")
    special.insert(MASK_TOKEN, "[MASK]")
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(f"{TEXT} {QUESTION}".split())])}
    splitter = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{word[1:-1].lower()}_token": word for word in special}
    return PreTrainedTokenizerFast(tokenizer_object=splitter, model_max_length=32, **names)


def save_models(folder: Path) -> None:
    """Saves a tiny seeded model of every architecture and head in float32, with a tokenizer and what is expected of it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from transformers.utils.logging import disable_progress_bar

    from contract import ALL, tiny_inputs, tiny_model

    disable_progress_bar()
    for name, task in ALL:
        path = folder / f"{name}-{task}"
        model = tiny_model(name, task).float()
        tokenizer = make_tokenizer(model.config.pad_token_id)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        inputs = tiny_inputs(model)
        expected = {}
        for kernel in KERNELS:
            expected[kernel] = quantities(load(path, model._auto_class, kernel, packaged=True), inputs, tokenizer)
        record = {"architecture": name, "task": task, "auto_class": model._auto_class}
        torch.save({**record, "inputs": inputs, "expected": expected}, path / "expected.pt")


def check_models(folder: Path, packaged: bool) -> dict:
    """Runs in the other environment: every saved model against what is expected of it."""
    if packaged:
        importlib.import_module(PACKAGE[0])
    else:
        sys.meta_path.insert(0, _Block())
    from transformers import AutoTokenizer

    checks = []
    for file in sorted(folder.glob("*/expected.pt")):
        record = torch.load(file)
        for kernel, expected in record["expected"].items():
            check = Check(record["architecture"], record["task"], kernel)
            checks.append(check)
            try:
                model = load(file.parent, record["auto_class"], kernel, packaged)
                tokenizer = AutoTokenizer.from_pretrained(file.parent) if packaged else None
                found = quantities(model, record["inputs"], tokenizer)
                check.differences = {name: difference(value, expected[name]) for name, value in found.items()}
            except Exception as error:  # noqa: BLE001
                check.error = f"{type(error).__name__}: {error}"
    versions = {name: importlib.import_module(name).__version__ for name in REPORTED}
    return {"versions": versions, "checks": [asdict(check) for check in checks]}


def declared_bounds() -> dict[str, str]:
    """The version specifiers of pyproject.toml, by distribution."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = map(Requirement, project["dependencies"])
    return {requirement.name: str(requirement.specifier) for requirement in requirements}


def lower_bound(specifier: str) -> str:
    """The version behind `>=`."""
    return next(part.removeprefix(">=") for part in specifier.split(",") if part.startswith(">="))


def requirements_of(version: str) -> list[str]:
    """What pip is asked for: `oldest`, `newest` or a version number."""
    bounds = declared_bounds()
    if version == "oldest":
        return [f"{name}=={lower_bound(bounds[name])}" for name in REPORTED[:2]]
    if version == "newest":
        return ["--upgrade", *(f"{name}{bounds[name]}" for name in REPORTED[:2])]
    return [f"transformers=={version}"]


def pip_install(*arguments: str) -> None:
    """Calls pip and raises with its last words."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise UnavailableVersionError("; ".join(line.removeprefix("ERROR: ") for line in said[-3:]))


def install(requirements: list[str], folder: Path) -> None:
    """Puts into `folder` what pip would change in the current environment to meet the requirements.

    Raises:
        UnavailableVersionError: pip failed, or it would change torch, which is too large to install for a test.
    """
    report = folder.with_suffix(".json")
    pip_install("--dry-run", "--report", str(report), *requirements)
    changes = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    pins = [f"{change['name']}=={change['version']}" for change in changes]
    if any(change["name"] == "torch" for change in changes):
        raise UnavailableVersionError(f"{' '.join(requirements)} needs another torch: {' '.join(pins)}")
    folder.mkdir()
    if pins:
        pip_install("--no-deps", "--no-compile", "--target", str(folder), *pins)


def run_checks(version: str, models: Path, packages: Path, packaged: bool) -> Run:
    """Starts a process that finds `packages` before everything else, and reads what it found."""
    folder = packages.with_name(f"{packages.name}-{'with' if packaged else 'without'}")
    folder.mkdir()
    result = folder / "result.json"
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--check", str(models), "--result", str(result)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(packages), *([str(ROOT)] if packaged else [])]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as many as here, for results that are the same bit for bit
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder),
        "HF_MODULES_CACHE": str(folder / "modules"),
    }
    done = subprocess.run(
        command + ["--packaged"] * packaged,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        records = [torch.load(file) for file in sorted(models.glob("*/expected.pt"))]
        checks = [Check(record["architecture"], record["task"], "", error=error) for record in records]
        return Run(version, packaged, {}, checks)
    found = json.loads(result.read_text(encoding="utf-8"))
    return Run(version, packaged, found["versions"], [Check(**check) for check in found["checks"]])


def run_matrix(versions: list[str]) -> Iterator[Run]:
    """Every version, without the package and with it; each environment is gone before the next one is made."""
    with tempfile.TemporaryDirectory(prefix="bcos-compat-") as temporary:
        models = Path(temporary, "models")
        save_models(models)
        for version in versions:
            with tempfile.TemporaryDirectory(dir=temporary) as place:
                packages = Path(place, "packages")
                install(requirements_of(version), packages)
                for packaged in (False, True):
                    yield run_checks(version, models, packages, packaged)


def cell(checks: list[Check]) -> str:
    """All heads of an architecture in a few words."""
    failed = defaultdict(list)
    for check in checks:
        what = check.error.partition("\n")[0][:200].replace("|", "\\|")
        if not what and not check.passed:
            what = f"differs by {max(check.differences.values()):.1e}"
        if what:
            failed[what].append(f"{check.task} {check.kernel}".strip())
    if failed:
        return "; ".join(f"**{what}** ({', '.join(dict.fromkeys(where))})" for what, where in failed.items())
    largest = max(value for check in checks for value in check.differences.values())
    return f"differs by {largest:.1e}" if largest else "identical"


def table(runs: list[Run]) -> list[str]:
    """Markdown: a row for each version and architecture."""
    cells: dict[tuple[str, str], dict[bool, str]] = defaultdict(dict)
    versions: dict[str, dict[str, str]] = {}
    for run in runs:
        versions[run.version] = run.versions or versions.get(run.version, {})
        for name in dict.fromkeys(check.architecture for check in run.checks):
            own = [check for check in run.checks if check.architecture == name]
            cells[run.version, name][run.packaged] = cell(own)
    lines = []
    for version, seen in versions.items():
        found = ", ".join(f"{name} {number}" for name, number in seen.items()) or "it does not start"
        lines.append(f"- {version if version in ('oldest', 'newest') else 'chosen'}: {found}")
    lines += ["", "| transformers | model | without the package | with the package |", "|---|---|---|---|"]
    for (version, name), row in cells.items():
        number = versions[version].get("transformers", version)
        lines.append(f"| {number} | {name} | {row[False]} | {row[True]} |")
    return lines


def report(runs: list[Run]) -> list[str]:
    """The page without its title."""
    models = len({(check.architecture, check.task) for check in runs[0].checks})
    return [
        f"{models} tiny models with random weights, every architecture and head, saved with transformers "
        f"{importlib.import_module('transformers').__version__}; loaded under {' and '.join(KERNELS)} attention, in "
        "float32. Compared: logits, contributions of the default target, greedy generations with their explanations and, "
        "with the package, word scores of a text. *identical*: the same bit for bit; otherwise the largest difference "
        f"relative to the largest number, of which {TOLERANCE:g} is tolerated. *Without the package*: loaded with "
        "`trust_remote_code=True` in a process that cannot import it. "
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}.",
        "",
        *table(runs),
    ]


def main() -> int:
    """Checks, prints, and with --output also writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=["oldest", "newest"], help="oldest, newest or numbers")
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--packaged", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # models this small only lose time by sharing their work
    if args.check:
        args.result.write_text(json.dumps(check_models(args.check, args.packaged)), encoding="utf-8")
        return 0
    try:
        runs = list(run_matrix(args.versions))
    except UnavailableVersionError as error:
        parser.exit(2, f"pip cannot provide a version: {error}\n")
    lines = report(runs)
    print("\n".join(lines))  # noqa: T201
    if args.output:
        title = ["# Releases of transformers", "", "`python benchmarks/compat.py`", ""]
        unfinished = args.output.with_name(f".{args.output.name}.unfinished")
        unfinished.write_text("\n".join([*title, *lines]) + "\n", encoding="utf-8")
        unfinished.replace(args.output)
    return 0 if all(check.passed for run in runs for check in run.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
