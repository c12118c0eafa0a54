# UPerNet on ADE20K for 160 000 steps, on four maps of stride 16: the ends of a plain net's quarters, without a pyramid.
# In testing both sides are rounded up to multiples of 32.
_base_ = ["default_runtime.py", "ade20k_512_multiple32.py", "upernet.py", "schedule_160k.py"]

model = dict(backbone=dict(out_indices=None), auxiliary_head=dict(in_index=3))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(constructor="FamilyDecayConstructor")
