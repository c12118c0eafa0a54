# HRVMamba-B on COCO's keypoints in crops of 256 x 192. Published: AP 76.5 on val2017.
_base_ = ["_base_/default_runtime.py", "_base_/coco_256x192.py", "_base_/schedule_210e.py"]

model = dict(model=dict(name="hrvmamba_base", pretrained=True, drop_path_rate=0.2, drop_local=False))
