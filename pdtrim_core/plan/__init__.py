"""Plans as values: what each stage loses, the law, what it costs. No torch."""
