# VM-UNet on ISIC.
_base_ = ["vm-unet.py", "isic_256.py"]

model = dict(network=dict(num_classes=1), loss=dict(type="BCEDiceLoss"))
default_hooks = dict(checkpoint=dict(save_best="dice"))
