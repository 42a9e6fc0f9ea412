"""Captioning: what prediction and validation share: captions of a dataset's examples, and a CIDEr that needs no Java.

Used by `rb/evaluation` and `rb/training`; below both, above `rb/data` and `rb/model`.
"""
