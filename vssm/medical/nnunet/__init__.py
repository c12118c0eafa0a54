"""Networks of this package as trainers of nnU-Net v2, and data sets in its raw layout; with the extra [nnunet]."""

from pathlib import Path

from ..._optional import require

__all__ = ["trainers_folder"]


def trainers_folder() -> Path:
    """Return the folder that the environment variable ``nnUNet_extTrainer`` has to name.

    Raises:
        MissingExtraError: nnU-Net is not installed.
    """
    require("nnunetv2", "nnunet")
    return Path(__file__).parent / "trainers"
