"""Predicting, scoring and comparing: predictions go to a file, the file is scored without model or data."""
