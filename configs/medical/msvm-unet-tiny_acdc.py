# MSVM-UNet-T on ACDC's three structures of the heart and the background.
_base_ = ["_base_/msvm-unet-tiny.py", "_base_/acdc_224.py"]

model = dict(network=dict(num_classes=4))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
