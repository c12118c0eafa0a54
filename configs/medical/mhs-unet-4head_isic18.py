# MHS-UNet with four heads on ISIC18. Test with 0.4 for the published setting:
# --cfg-options model.network.threshold=0.4
_base_ = ["_base_/mhs-unet-4head_isic.py"]

model = dict(network=dict(threshold=0.5))
