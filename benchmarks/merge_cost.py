"""What one merge costs: seconds to train it, and memory beyond the weights, against the tokens that it sees.

    python benchmarks/merge_cost.py [--tokens 20000] [--runs 3] [--json FILE]

The pair is the most redundant one of the model with default options. Each run is a process of its own, so that its peak of
memory is its own; the store of trained merges is a folder that is thrown away. The goal on two cores is 60 seconds and 1.5 GB
for 20,000 tokens. The ratio is to the plain way, the same training with every batch run from the first block on.
"""
