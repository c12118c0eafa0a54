# As upernet_160k_ade20k-512x512.py; the averaged test takes three scales.
_base_ = ["default_runtime.py", "ade20k_512_tta3.py", "upernet.py", "schedule_160k.py"]

optim_wrapper = dict(constructor="FamilyDecayConstructor")
