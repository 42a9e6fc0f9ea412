"""Drawing for people: curves, boxes on images, rotatable clouds, self-contained pages. Knows nothing of runs; no network, no library."""
