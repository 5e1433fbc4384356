"""The command line `bcos-transformers`; it needs the extra `cli`."""

import sys

from bcos_transformers.extras import require


def main() -> None:
    """Runs the command line of this process; without the extra, says how to install it."""
    try:
        require("typer", "cli")
        require("rich", "cli")
    except ImportError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)
    from bcos_transformers.cli.app import app
    from bcos_transformers.cli.output import own_the_process

    own_the_process()
    app(prog_name="bcos-transformers")
