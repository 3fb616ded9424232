"""What steers diffusion models: adapters for UNets of diffusers, and pipelines that use them.

Nothing of it is imported with visattn, and diffusers only where it is used.
"""
