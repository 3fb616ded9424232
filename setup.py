"""The repository root is the package ``visattn``; setuptools cannot discover that by itself."""

from setuptools import find_packages, setup

ROOMS = ("kernels", "backbones", "heads", "zoo", "tools", "configs")

rooms = find_packages(include=[f"{room}{suffix}" for room in ROOMS for suffix in ("", ".*")])
setup(packages=["visattn", *(f"visattn.{room}" for room in rooms)])
