"""Estimate from gradients what training on each subset would give, without training it."""
