"""Pure networks, Model to Model: backbones, TF Hub modules, heads and adapters."""
