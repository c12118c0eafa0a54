"""Mamba YOLO's backbone against the numbers of the official one; tests/mm/test_yolo.py has the detector's."""

from vssm.models.mambayolo import FAMILY

from .parity_tester import ParityTester


class TestMambaYOLO(ParityTester):
    family = FAMILY
    files = ("mambayolo",)
    models = {"_unit": ("mambayolo_pico", dict(depths=(2, 2, 4, 2)))}
    elsewhere = ("_unit_detector", "mambayolo_tiny_detector")
    # The nets magnify rounding: float32 is 1e-3 away from float64 in the official code, too.
    output, unit, gradient = 1e-3, 1e-2, None
    float64 = 1e-7
