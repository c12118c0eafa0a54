# The demo with vim_pico: digits as 8 x 8 patches.
_base_ = ["vmamba-pico_digits.py"]

model = dict(model=dict(name="vim_pico", img_size=32, patch_size=4))
