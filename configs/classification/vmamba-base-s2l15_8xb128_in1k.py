# VMamba-B with inner ratio 2 and fifteen layers in the third stage.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="vmamba_base_s2l15", drop_path_rate=0.6))
