"""Texts in, explanations to read out: words, terminal, HTML page, plots, files."""

from bcos_transformers.explanations.explainer import BcosExplainer
from bcos_transformers.explanations.files import load_explanations, save_explanations
from bcos_transformers.explanations.text_explanation import TextExplanation, WordScore

__all__ = ["BcosExplainer", "TextExplanation", "WordScore", "load_explanations", "save_explanations"]
