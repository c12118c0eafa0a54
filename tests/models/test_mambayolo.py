"""Mamba YOLO's backbone beyond its parity vectors."""

import torch

from vssm.models.mambayolo import FAMILY

from .tester import FamilyTester, Official


def with_detector(weights):
    """A file of a whole detector: neck and head are left out."""
    return {**weights, "model.11.in_proj.0.weight": torch.zeros(4, 4, 1, 1), "model.21.dfl.conv.weight": torch.ones(1)}


class TestMambaYOLO(FamilyTester):
    family = FAMILY
    checkpoints = {"tiny": Official("mambayolo", "mambayolo_tiny", options=dict(depths=(1, 1, 3, 1)))}
    layouts = [("tiny", with_detector)]
    foreign = [("tiny", "model.9.no_such_part", "unexpected", "no_such_part")]
