"""The search space and the loop that asks searchers."""
