"""Addressable examples: where they come from, how they are decoded, split, planned and batched."""
