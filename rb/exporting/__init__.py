"""Trained parameters as folders that others can use: written (`writing.py`), described (`card.py`), read back (`layout.py`), uploaded."""
