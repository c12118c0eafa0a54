# Vim's training on ImageNet-1k.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e_vim.py", "classifier.py"]

# DeiT's data: every image three times in an epoch of as many images, each time augmented anew.
train_dataloader = dict(
    sampler=dict(type="RepeatSampler", repeats=3, _delete_=True),
    dataset=dict(transform=dict(color_jitter=0.3)),
)
