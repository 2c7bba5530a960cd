"""Recipes: from TOML to checked components."""
