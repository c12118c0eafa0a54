# Of A2Mamba's large models: 20 epochs of warm-up.
_base_ = ["in1k_300e_a2mamba.py"]

param_scheduler = [
    {**_base_.param_scheduler[0], "end": 20},
    {**_base_.param_scheduler[1], "begin": 20, "T_max": 280},
]
