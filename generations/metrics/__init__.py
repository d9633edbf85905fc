"""Evaluation metrics, one a file: pure functions of captions, features and probabilities."""
