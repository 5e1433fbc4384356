"""`bcos-transformers doctor`: what is installed, what is missing, and how to get it."""

import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
import typer
from packaging.requirements import Requirement
from rich.text import Text

from bcos_transformers import __version__
from bcos_transformers.cli.output import JsonOption, console, emit, facts_table

DISTRIBUTION = "bcos-transformers"


def doctor(as_json: JsonOption = False) -> None:
    """Show versions, the device, and which extras are complete (exit code 1 if the core itself is not)."""
    core, extras = _examine()
    document = {
        "bcos_transformers": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device(),
        "threads": torch.get_num_threads(),
        "core": core,
        "extras": extras,
    }
    if as_json:
        emit(document)
    else:
        _show(document)
    if not core["complete"]:
        raise typer.Exit(1)


def _examine() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The run-time dependencies, and those of each extra."""
    try:
        own = metadata.metadata(DISTRIBUTION)
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        missing = [f"{DISTRIBUTION} itself: it runs from a checkout that is not installed"]
        return {"complete": False, "installed": {}, "missing": missing, "install": "pip install -e ."}, {}
    core = _state([r for r in requirements if _applies(r, "")], f"pip install {DISTRIBUTION}")
    extras = {}
    for extra in own.get_all("Provides-Extra") or []:
        wanted = [r for r in _of_extra(requirements, extra) if not _applies(r, "")]
        extras[extra] = _state(wanted, f"pip install '{DISTRIBUTION}[{extra}]'")
    return core, extras


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _of_extra(requirements: list[Requirement], extra: str) -> list[Requirement]:
    """What an extra requires, those of the extras that it includes too."""
    found: dict[str, Requirement] = {}
    for requirement in requirements:
        if requirement.marker is None or not _applies(requirement, extra):
            continue
        if requirement.name == DISTRIBUTION:
            for included in sorted(requirement.extras):
                found.update({r.name: r for r in _of_extra(requirements, included)})
        else:
            found[requirement.name] = requirement
    return list(found.values())


def _state(requirements: Iterable[Requirement], install: str) -> dict[str, Any]:
    """Which of them are installed, and what is missing."""
    installed, missing = {}, []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{requirement.name}{requirement.specifier}")
            continue
        installed[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier} (installed: {version})")
    return {
        "complete": not missing,
        "installed": dict(sorted(installed.items())),
        "missing": sorted(missing),
        "install": install if missing else None,
    }


def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda ({', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))})"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _show(document: dict[str, Any]) -> None:
    screen = console()
    rows = {
        DISTRIBUTION: document["bcos_transformers"],
        "Python": f"{document['python']} ({sys.executable})",
        "platform": document["platform"],
        "device": f"{document['device']}, {document['threads']} threads",
        **document["core"]["installed"],
    }
    screen.print(facts_table(rows))
    parts = {"core": document["core"], **document["extras"]}
    screen.print()
    screen.print(facts_table({name: _verdict(state) for name, state in parts.items()}))


def _verdict(state: dict[str, Any]) -> Text:
    if state["complete"]:
        return Text("complete", style="green")
    return Text(f"missing: {', '.join(state['missing'])}\n→ {state['install']}", style="yellow")
