"""What `pdtrim-core new KIND NAME` begins with: one whole plugin a kind, small, and right by the contract of its kind.

Each module is a real one: it is linted, type-checked and tested as it stands. `Example` and `example` are the names that a
new package replaces by its own.
"""
