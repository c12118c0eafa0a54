# SegMAN-T, officially in float32.
_base_ = ["_base_/in1k_300e_segman.py"]

model = dict(model=dict(name="segman_tiny"))
train_dataloader = dict(batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = [
    # From 1e-6.
    {**_base_.param_scheduler[0], "start_factor": 2.5e-4},
    _base_.param_scheduler[1],
]
auto_scale_lr = dict(base_batch_size=4096)
