"""A model under a plan: scoring in one pass, generating in two phases."""
