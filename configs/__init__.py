"""Recipes, shipped with the package."""
