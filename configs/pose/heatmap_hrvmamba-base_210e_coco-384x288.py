# HRVMamba-B on COCO's keypoints in crops of 384 x 288. Published: AP 77.7 on val2017.
# The official net also drops a fifth of the scan's and the MLP's results, for which there is no option here.
_base_ = ["_base_/default_runtime.py", "_base_/coco_384x288.py", "_base_/schedule_210e.py"]

model = dict(model=dict(name="hrvmamba_base", pretrained=True, drop_path_rate=0.6, drop_local=False))
