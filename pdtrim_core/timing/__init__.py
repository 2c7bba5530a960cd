"""How long the models of a plan take: what is timed, how, and on which shapes."""
