"""The kinds of input that a frozen encoder reads, images and point clouds: one file and one row of ``table.py`` each."""
