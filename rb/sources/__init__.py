"""The kinds of input that a frozen encoder reads: images and point clouds."""
