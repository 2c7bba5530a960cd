from pdtrim_depth_and_width import DepthAndWidth

from pdtrim_core.testing import PrunerContract


class TestDepthAndWidth(PrunerContract):
    component = DepthAndWidth
