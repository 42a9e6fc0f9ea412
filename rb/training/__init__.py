"""Training: schedule, optimizer groups, the DeepSpeed engine, checkpoints, the loop. Used by `rb/train.py`."""
