"""What a trained model is on disk: checkpoints of a training run, and the folders that ``rb export`` writes."""
