"""`python -m bcos_transformers.cli`."""

from bcos_transformers.cli import main

main()
