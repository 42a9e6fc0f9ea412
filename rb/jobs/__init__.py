"""Evaluation jobs: a plan of models, tasks and variants, predicted, scored and put into one table; the paper's Table 1 as such a plan."""
