"""What is added to diffusion models: instance control, grounding, faster attention."""
