# UPerNet on the neck's maps of hrvmamba_base, 160 000 steps.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="hrvmamba_base", maps="neck", drop_path_rate=0.15))
param_scheduler = [
    # From 1e-5 of the rate.
    {**_base_.param_scheduler[0], "start_factor": 1e-5},
    _base_.param_scheduler[1],
]
