"""``rb plan``: what a training run will take, before it starts and without a GPU, weights or data."""
