# The demo with plainmamba_pico: its patches are of 16 x 16 pixels, so the digits are enlarged to 4 x 4 of them.
_base_ = ["vmamba-pico_digits.py"]

model = dict(model=dict(name="plainmamba_pico", img_size=64))
train_dataloader = dict(dataset=dict(transform=dict(input_size=64)))
val_dataloader = dict(dataset=dict(transform=dict(input_size=64)))
test_dataloader = val_dataloader
