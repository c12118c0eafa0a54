# MHS-UNet with four heads on ISIC; a leaf says the threshold of the gate between the routes, which no checkpoint holds.
_base_ = ["default_runtime.py", "isic_256.py", "schedule_vm_unet.py"]

model = dict(
    type="UNetSegmentor",
    network=dict(name="mhs_unet_4head", num_classes=1, drop_path_rate=0.2),
    loss=dict(type="BCEDiceLoss"),
)
# The official training validates after epoch 100 only.
train_cfg = dict(val_begin=101)
default_hooks = dict(checkpoint=dict(save_best="dice"))
