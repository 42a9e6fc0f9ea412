"""Drawing for people: curves, boxes on images, rotatable clouds, self-contained pages. Knows nothing about runs; needs PIL and numpy, no drawing library, and no network."""
