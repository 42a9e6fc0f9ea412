"""The toy world as raw files of the real data sets."""
