"""Diffusion models: layouts of instances, training, evaluation, drawings."""
