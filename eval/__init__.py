"""Thin commands: ``python -m eval.predict``, ``eval.score``, ``eval.table``, ``eval.report``; the logic is in ``rb/evaluation``."""
