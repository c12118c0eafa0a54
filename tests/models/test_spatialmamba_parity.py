"""Spatial-Mamba against the numbers of the official model."""

import timm

from tests import parity
from vssm.models.spatialmamba import FAMILY

from .parity_tester import ParityTester


class TestSpatialMamba(ParityTester):
    family = FAMILY
    files = ("spatialmamba",)
    output, gradient = 1e-4, 1e-3
    # One or two of 400 000 inputs of a ReLU are so near to zero that their sign, in float32, depends on the processor's
    # order of summation, and each changes all gradients before it by 1e-3.
    relu_sides = True

    def test_merged_kernels(self, key):
        """Fused for deployment, the model gives the official numbers too."""
        for i in range(len(self.records()[key][1]["damped"]["cases"])):
            where = ("damped", "cases", i)
            model = timm.utils.reparameterize_model(self.build(key, where))
            parity.check_forward(model, self.case(key, where), self.output)
