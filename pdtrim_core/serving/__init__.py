"""A pair on a real engine, on one machine: the commands that serve it, and the processes that they start."""
