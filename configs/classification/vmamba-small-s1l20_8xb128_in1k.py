# VMamba-S with inner ratio 1 and twenty layers in the third stage.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="vmamba_small_s1l20", drop_path_rate=0.3))
