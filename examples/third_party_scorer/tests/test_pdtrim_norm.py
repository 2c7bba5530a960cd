from pdtrim_norm import NormRatio

from pdtrim_core.testing import ScorerContract


class TestNormRatio(ScorerContract):
    component = NormRatio
