# ImageNet-21k in tar shards at 224 pixels, with the augmentation of imagenet_224.py.
# The data: <root>/_info.json and the shards that it names, with the splits train and val, where <root> is the
# environment variable VSSM_IMAGENET21K, or else data/imagenet21k-shards. `vssm prepare shards` makes them from
# <images>/train/<class>/* and <images>/val/<class>/*. There is no official split: keep some of each class for val.
_base_ = ["imagenet_224.py"]

data = dict(
    type="TimmDataset",
    name="wds/imagenet21k",
    env="VSSM_IMAGENET21K",
    default_root="data/imagenet21k-shards",
)
train_dataloader = dict(sampler=dict(_delete_=True, type="ShardSampler", shuffle_size=16384), dataset=data)
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
