"""The model: frozen encoders, Q-Former, adapters, language model and the five losses.

Layer 1: imports rb/core only, never rb/data. Built by `rb/model/weights`, run by rb/training and rb/evaluation.
"""
