# UPerNet on vssd_micro, 160 000 steps.
# The drop path is that of the detectors.
_base_ = ["_base_/upernet_160k_ade20k-512x512_tta3.py"]

model = dict(backbone=dict(model_name="vssd_micro", drop_path_rate=0.1))
