"""What sits on features: heads, poolings, prompts, adapters."""
