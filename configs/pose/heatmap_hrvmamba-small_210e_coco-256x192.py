# HRVMamba-S on COCO's keypoints in crops of 256 x 192. Published: AP 74.6 on val2017.
_base_ = ["_base_/default_runtime.py", "_base_/coco_256x192.py", "_base_/schedule_210e.py"]

model = dict(model=dict(name="hrvmamba_small", pretrained=True, drop_path_rate=0.1, drop_local=False))
