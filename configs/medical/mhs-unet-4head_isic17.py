# MHS-UNet with four heads on ISIC17.
_base_ = ["_base_/mhs-unet-4head_isic.py"]

model = dict(network=dict(threshold=0.0))
