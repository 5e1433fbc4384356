"""Optional dependencies: imported where used, with an error that names the extra to install."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`.

    Raises:
        ImportError: it is not installed; the message says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"This needs the package {package!r}: pip install 'bcos-transformers[{extra}]'.") from error
