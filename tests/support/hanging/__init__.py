"""The folder of a `sitecustomize.py` that makes a rank hang."""

from pathlib import Path

FOLDER = Path(__file__).parent
