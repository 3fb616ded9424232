"""Measuring models: speed, memory and multiply-adds, side by side."""
