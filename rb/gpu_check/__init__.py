"""Full-size models with random weights on one device: does everything run, fit and agree there? ``python -m rb.gpu_check``."""
