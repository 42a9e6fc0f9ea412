"""Pre-training of the toy foundation; not part of the wheel."""
