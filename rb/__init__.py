"""RegionBLIP at scale: a frozen BLIP-2 extended to image regions and point clouds (arXiv 2308.02299)."""

__version__ = "0.1.0"
