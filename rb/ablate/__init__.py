"""Ablations: variants of one run trained, predicted and scored over seeds, and the table of what each change costs."""
