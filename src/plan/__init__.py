"""From measured gains to a plan: which subsets to train, and who is served by which."""
