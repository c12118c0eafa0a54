# MSVM-UNet-T on Synapse's eight organs and the background, with its own augmentation and normalisation.
_base_ = ["_base_/msvm-unet-tiny.py", "_base_/synapse_224.py"]

model = dict(network=dict(num_classes=9))
train_dataloader = dict(dataset=dict(transform=dict(augment="msvm_unet", mean=0.5, std=0.5)))
val_cfg = dict(mean=0.5, std=0.5)
test_cfg = dict(mean=0.5, std=0.5)
