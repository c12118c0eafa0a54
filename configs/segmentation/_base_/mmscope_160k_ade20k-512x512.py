# SegMAN's recipe on ADE20K: 160 000 steps of 16 images, in single precision. In testing both sides are rounded up to
# multiples of 32.
_base_ = ["default_runtime.py", "ade20k_512_multiple32.py", "mmscope.py", "schedule_160k_mmscope.py"]

train_dataloader = dict(batch_size=2)
