"""Probing of frozen networks: heads side by side, cached features, k-NN."""
