"""Measuring models and explanations."""
