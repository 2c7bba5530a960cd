"""The search space, and the loop that runs searchers."""
