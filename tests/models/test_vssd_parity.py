"""VSSD against the numbers of the official model."""

from vssm.models.vssd import FAMILY

from .parity_tester import ParityTester


class TestVSSD(ParityTester):
    """Gradients in float64 alone: a LayerNorm right after the sum over all tokens makes those of A_log and dt_bias
    ill-conditioned, and float32 gets some of them wrong by a tenth, the official model's as well as ours.
    """

    family = FAMILY
    files = ("vssd",)
    output = 3e-4
