"""What the tests of learning from few share."""

import pytest
import torch

from tests import parity
from vssm.fewshot import DualProjector, convert_projector

MIXERS = {"ssm": "sequence", "ss2d": "map"}


@pytest.fixture
def official():
    """Build the projector of a record, with its weights."""

    def build(key: str) -> DualProjector:
        record = parity.load("mamba_fscil")["variants"][key]
        config = record["config"]
        projector = DualProjector(
            config["in_channels"],
            config["out_channels"],
            config["feat_size"],
            mixer=MIXERS[config["version"]],
            d_state=config["d_state"],
            dt_rank=4,
            detach=config.get("detach_residual", True),
        )
        if config.get("use_new_branch"):
            projector.add_branch(config.get("num_layers_new", 2))
        assert sum(p.numel() for p in projector.parameters()) == record["params"]
        projector.load_state_dict(convert_projector(parity.state_dict(record)))
        return projector

    return build


def official_gate(gate: torch.Tensor, record: dict) -> torch.Tensor:
    """The official sequence mixer turns the gates of the reversed passes along the channels, not along the tokens."""
    if record["config"]["version"] == "ss2d":
        return gate
    gate = gate.transpose(1, 2)
    return (gate + gate.flip(1, 2)) / 2
