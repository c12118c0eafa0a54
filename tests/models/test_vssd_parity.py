"""VSSD against the numbers of the official model."""

from vssm.models.vssd import FAMILY

from .parity_tester import ParityTester


class TestVSSD(ParityTester):
    """Vectors of VSSD, gradients only in float64.

    A LayerNorm right after the sum over all tokens makes those of A_log and dt_bias ill-conditioned: float32 gets some
    of them wrong by a tenth, in the official model as well as here.
    """

    family = FAMILY
    files = ("vssd",)
    output = 3e-4
