"""Mining of regions and captions from images: the unit of work so far. Nothing of it is imported by training."""
