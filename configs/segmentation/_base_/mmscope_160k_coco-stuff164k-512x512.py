# SegMAN's recipe on COCO-Stuff 164k: 160 000 steps of 16 images, in single precision.
_base_ = ["default_runtime.py", "coco-stuff164k_512.py", "mmscope.py", "schedule_160k_mmscope.py"]

model = dict(decode_head=dict(num_classes=171))
