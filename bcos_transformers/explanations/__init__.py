"""From token contributions to explanations that people read."""

from bcos_transformers.explanations.words import WordContributions, explain_texts

__all__ = ["WordContributions", "explain_texts"]
