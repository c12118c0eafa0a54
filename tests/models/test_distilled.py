"""Models with a second head that learns from a teacher."""

import pytest
import timm
import torch

from vssm.models import family_of

from .tester import assert_refused

MODELS = {
    "groupmamba_pico": {},
    "vssm_efficientvim_m1_dist": dict(dims=(16, 24, 32), depths=(1, 2, 1), d_state=(9, 4, 2)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=5, **MODELS[request.param])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.train = lambda mode=True: None  # so that both modes see the same statistics
            module.training = False
    return model


@pytest.fixture
def x():
    return torch.randn(2, 3, 48, 64)


def test_both_heads_answer_only_in_distilled_training(model, x):
    assert model(x).shape == (2, 5)  # as timm's models, until distillation is asked for
    model.set_distilled_training(True)
    y, y_dist = model(x)
    assert y.shape == y_dist.shape == (2, 5) and not torch.allclose(y, y_dist)
    mean = (y + y_dist) / 2
    assert torch.allclose(model.eval()(x), mean, atol=1e-6)
    model.set_distilled_training(False)
    assert torch.allclose(model.train()(x), mean, atol=1e-6)
    assert torch.allclose(model.eval()(x), mean, atol=1e-6)


def test_both_heads_change_together(model, x):
    assert len(model.get_classifier()) == 2
    model.set_distilled_training(True)
    model.reset_classifier(4)
    assert [y.shape for y in model(x)] == [(2, 4)] * 2
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)  # nothing for a teacher to teach
    features = model.eval().forward_features(x)
    assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)
    assert not any(head.training for head in model.get_classifier())


def test_a_plain_model_drops_the_second_head(model, x):
    name, options = model.pretrained_cfg["architecture"], MODELS[model.pretrained_cfg["architecture"]]
    kwargs = dict(distillation=False) if name == "groupmamba_pico" else {}
    plain = timm.create_model(name.replace("_dist", ""), num_classes=5, **kwargs, **options)
    fit = family_of(plain).module.checkpoint_filter_fn
    plain.load_state_dict(fit(model.state_dict(), plain))
    second = [n for n, _ in model.named_parameters() if n.startswith(("dist_head.", "head_dist."))]
    assert model.state_dict().keys() - plain.state_dict().keys() >= set(second) != set()
    assert all(torch.equal(value, model.state_dict()[n]) for n, value in plain.state_dict().items())
    needed = [n for n in second if not n.startswith(model.pretrained_cfg["classifier"])]
    if needed:  # more than a classifier, which may be new
        assert_refused(ValueError, needed[:1], fit, plain.state_dict(), model)
    assert not isinstance(plain.get_classifier(), tuple) and plain(x).shape == (2, 5)
    plain.reset_classifier(7)
    assert plain(x).shape == (2, 7) and fit(plain.state_dict(), plain).keys() == plain.state_dict().keys()
