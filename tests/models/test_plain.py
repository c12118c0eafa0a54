"""The form of plain nets, with a small throw-away net: class token in the middle, any grid, features by block."""

import pytest
import torch
from timm.layers import Mlp, PatchEmbed
from timm.models import group_parameters
from timm.models._features import FeatureGetterNet
from torch import nn

from vssm.models import PlainBackbone, TokenEmbedding, token_index


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Net(PlainBackbone):
    def __init__(self, class_token="middle", num_classes=5, dim=8, depth=4):
        super().__init__(3, num_classes, 0.0)
        self.stem = PatchEmbed(None, 16, 3, dim, output_fmt="NHWC", strict_img_size=False)
        self.tokens = TokenEmbedding(dim, (4, 5), class_token)
        self.blocks = nn.Sequential(*[Block(dim) for _ in range(depth)])
        self.feature_info = self.block_info(dim, depth, 16)
        self.num_features = self.head_hidden_size = dim
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.init_weights()

    def get_classifier(self):
        return self.head

    def reset_classifier(self, num_classes, global_pool=None):
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x):
        return self.norm(self.forward_blocks(self.tokens(self.stem(x))))

    def forward_head(self, x, pre_logits: bool = False):
        patches, token = self.tokens.split(x)
        pooled = patches.mean((1, 2)) if token is None else token
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.fixture(params=["", "first", "middle", "last"])
def net(request):
    torch.manual_seed(0)
    return Net(request.param).eval()


@torch.no_grad()
def test_token_stands_in_its_place():
    assert [token_index(p, 7) for p in ("first", "middle", "last")] == [0, 3, 7]
    layer = TokenEmbedding(2, (2, 3), "middle")
    x = torch.randn(2, 2, 3, 2)
    tokens = layer(x)
    assert tokens.shape == (2, 7, 2)
    assert torch.equal(tokens[:, 3], (layer.cls_token[0] + layer.pos_embed[0, 3]).expand(2, -1))
    patches, token = layer.split(tokens - layer.pos_embed)
    assert torch.allclose(patches, x.flatten(1, 2)) and torch.allclose(token, layer.cls_token[0].expand(2, -1))
    with pytest.raises(ValueError, match="'end'"):
        TokenEmbedding(2, (2, 3), "end")


@torch.no_grad()
def test_positions_of_other_grids():
    """A ramp stays a ramp away from the borders, and the token keeps its entry wherever it moves to."""
    layer = TokenEmbedding(1, (8, 8), "middle")
    layer.cls_token.zero_()
    ramp = torch.arange(8.0).view(8, 1).expand(8, 8).reshape(1, 64, 1)
    layer.pos_embed.copy_(torch.cat([ramp[:, :32], torch.full((1, 1, 1), 99.0), ramp[:, 32:]], 1))
    patches, token = layer.split(layer(torch.zeros(1, 16, 12, 1)))
    rows = patches.view(16, 12)
    assert token.item() == 99
    assert torch.allclose(rows[4:12, 5], torch.arange(4, 12) / 2 - 0.25, atol=0.05)
    assert torch.allclose(rows, rows[:, :1].expand(-1, 12), atol=1e-5)


@torch.no_grad()
def test_sizes_and_intermediates(net):
    for size in ((64, 80), (80, 64), (48, 112)):
        x = torch.randn(2, 3, *size)
        tokens, maps = net.forward_intermediates(x)
        assert torch.equal(tokens, net.forward_features(x)) and len(maps) == 4
        assert all(m.shape == (2, 8, size[0] // 16, size[1] // 16) for m in maps)
        early = net.forward_intermediates(x, [0, 2], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[0]) and torch.equal(early[1], maps[2])
        normed = net.forward_intermediates(x, 1, norm=True, output_fmt="NHWC", intermediates_only=True)[0]
        assert torch.equal(normed.flatten(1, 2), net.tokens.split(tokens)[0].reshape(2, -1, 8))
    with pytest.raises(ValueError, match="NLC"):
        net.forward_intermediates(x, output_fmt="NLC")


@torch.no_grad()
def test_features_only(net):
    x = torch.randn(1, 3, 64, 80)
    want = net.forward_intermediates(x, [1, 2], intermediates_only=True)
    getter = FeatureGetterNet(net, out_indices=[1, 2])
    assert all(torch.equal(a, b) for a, b in zip(getter(x), want, strict=True))
    assert net.pruned_parts == ("blocks.3", "norm", "head") and len(net.blocks) == 3
    assert getter.feature_info.channels() == [8, 8] and getter.feature_info.reduction() == [16, 16]


def test_surface(net):
    x = torch.randn(1, 3, 64, 96, requires_grad=True)
    y = net(x)
    net.set_grad_checkpointing()
    assert torch.allclose(net(x), y)
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    groups = group_parameters(net, net.group_matcher(), reverse=True)
    assert set(groups) == {n for n, _ in net.named_parameters()}
    assert groups["tokens.pos_embed"] == 0 < groups["blocks.0.norm.weight"] < groups["blocks.3.norm.weight"]
    assert "tokens.pos_embed" in net.no_weight_decay()


@torch.no_grad()
def test_traced_scripted_and_compiled(net):
    x, other = torch.randn(2, 3, 64, 80), torch.randn(1, 3, 48, 112)
    graph, script = torch.fx.symbolic_trace(net), torch.jit.script(net)
    for image in (x, other):
        assert torch.equal(graph(image), net(image))
        assert torch.allclose(script(image), net(image), atol=1e-6)
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="eager")
    assert torch.allclose(compiled(other), net(other), atol=1e-6)
