"""What the tests of pushing share: processes without the package, and what a commit lacks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from test_remote_code import BLOCK

TEXT = "a very good film , not dull !"


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs)[0]


SAME = """
def same(a, b):
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)
"""


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to the last bits, which depend on where in memory the weights lie."""
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def run(code: str, hub, home: Path, **env: str) -> subprocess.CompletedProcess:
    """Runs `code` in a process that cannot import the package, with a cache of its own."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env = {
        **inherited,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": "",
        **env,
    }
    return subprocess.run(
        [sys.executable, "-c", BLOCK + SAME + code],
        capture_output=True,
        text=True,
        cwd=home,
        env=env,
        stdin=subprocess.DEVNULL,
    )


def missing_code(files: dict[str, bytes]) -> list[str]:
    """What the configurations of a commit name but the commit lacks, relative imports of the code included."""
    missing = []
    for path, content in files.items():
        if path.rpartition("/")[2] != "config.json":
            continue
        config, folder = json.loads(content), path.removesuffix("config.json")
        references = list(config.get("auto_map", {}).values())
        references += [entry["impl"] for entry in config.get("custom_pipelines", {}).values()]
        wanted = [reference.partition(".")[0] for reference in references]
        seen = set()
        while wanted:
            module = wanted.pop()
            if module in seen:
                continue
            seen.add(module)
            code = files.get(f"{folder}{module}.py")
            if code is None:
                missing.append(f"{folder}{module}.py")
            else:
                wanted += re.findall(r"^\s*from \.(\w+) import", code.decode(), flags=re.MULTILINE)
    return missing
