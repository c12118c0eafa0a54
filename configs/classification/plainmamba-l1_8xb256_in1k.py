# PlainMamba-L1. Its weights are not averaged.
_base_ = ["_base_/in1k_300e_plainmamba.py"]

model = dict(model=dict(name="plainmamba_l1", drop_path_rate=0.2))
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
param_scheduler = [
    {**_base_.param_scheduler[0], "end": 15},
    {**_base_.param_scheduler[1], "begin": 15, "T_max": 285},
]
custom_hooks = []
