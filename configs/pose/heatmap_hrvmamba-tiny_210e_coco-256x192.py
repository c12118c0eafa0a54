# HRVMamba-T on COCO's keypoints in crops of 256 x 192. Published: AP 69.5 on val2017.
# The published config names blocks without squeeze-and-excitation, ImageNet's have it. For a file without it say
# `--cfg-options model.model.se=False model.model.pos_conv=False`.
_base_ = ["_base_/default_runtime.py", "_base_/coco_256x192.py", "_base_/schedule_210e.py"]

model = dict(model=dict(name="hrvmamba_tiny", pretrained=True, drop_path_rate=0.0, drop_local=False))
train_dataloader = dict(batch_size=128)
