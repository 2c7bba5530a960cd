from pdtrim_core.api import SimilarityScorer, hookimpl

class NormRatio(SimilarityScorer):
    """Scores a block by how little it changes the length of the stream."""
    name = "norm-ratio"

    def similarity(self, before, after):
        return -(after.norm(dim=-1) / before.norm(dim=-1) - 1).abs()

@hookimpl
def pdtrim_scorers():
    yield NormRatio
