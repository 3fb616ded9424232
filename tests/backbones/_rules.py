"""What the tests of all backbones share: weights and inputs by rule, and counts."""

import torch


def count(*modules):
    """Parameters of modules."""
    return sum(p.numel() for module in modules for p in module.parameters())


def polynomial(shape):
    """Values in [-0.5, 0.5) by a rule of the index."""
    j = torch.arange(torch.Size(shape).numel())
    return ((1103 * j * j + 7919 * j + 12345) % 65537 / 65537 - 0.5).double().view(shape)


def fill(module):
    """Sets float64 parameters by the rule that the recorded operator outputs were made with."""
    for name, p in module.named_parameters():
        u = polynomial(p.shape)
        if name.endswith("weight") and p.ndim >= 2:
            value = u * (12 * p.shape[0] / p.numel()) ** 0.5
            value = 0.25 * value if p.ndim == 4 and p.shape[1] == 1 else value
        else:
            value = 1 + 0.2 * u if name.endswith("weight") else 0.5 * u
        p.data.copy_(value)
    return module


def summary(out):
    """What was recorded of an output: its first four and last element, its sum and its norm."""
    out = out.detach().flatten()
    return torch.stack((*out[:4], out[-1], out.sum(), out.norm()))
