"""A trainer for each encoder, made when nnU-Net asks for its name. nnU-Net imports this file by itself."""

from vssm.medical.nnunet.trainer import trainer_named


def __getattr__(name: str) -> type:
    return trainer_named(name)
