"""Converted backbones compute what torchvision's and timm's own modules compute, at both maps."""

import jax
import numpy as np
import pytest
import support

from m2det_jax.model.backbones import make_backbone
from m2det_jax.weights.imagenet import read_backbone

torch = support.import_or_skip("torch")
models = support.import_or_skip("torchvision").models

SIZE = (64, 96)


def with_drawn_statistics(net):
    """The network in inference mode, its BatchNorms unlike the identity."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def resnet_maps(net, x, official=False):
    for block, stride in (
        (net.layer3[0], 1 if official else 2),
        (net.layer4[0], 2 if official else 1),
    ):
        (block.conv2 if hasattr(block, "conv3") else block.conv1).stride = (stride, stride)
        block.downsample[0].stride = (stride, stride)
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    shallow = net.layer2(net.layer1(x))
    return shallow, net.layer4(net.layer3(shallow))


def vgg_maps(net, x):
    """SSD's form: pooling rounds up, pool5 keeps the resolution, fc6 and fc7 are thinned out."""
    pools = 0
    for layer in net.features:
        if isinstance(layer, torch.nn.MaxPool2d):
            pools += 1
            if pools == 4:
                shallow = x
            layer = torch.nn.MaxPool2d(2, 2, ceil_mode=True)
            if pools == 5:
                layer = torch.nn.MaxPool2d(3, 1, 1)
        x = layer(x)
    fc6, fc7 = net.classifier[0], net.classifier[3]
    kernel = fc6.weight.view(4096, 512, 7, 7)[::4, :, ::3, ::3]
    x = torch.conv2d(x, kernel, fc6.bias[::4], padding=6, dilation=6).relu()
    kernel = fc7.weight[::4, ::4, None, None]
    return shallow, torch.conv2d(x, kernel, fc7.bias[::4]).relu()


def mobilenet_v2_maps(net, x):
    net.features[14].conv[1][0].stride = (1, 1)
    shallow = net.features[:7](x)
    return shallow, net.features[7:](shallow)


def densenet_maps(net, x):
    features = net.features
    features.transition3.pool = torch.nn.Identity()
    x = features.pool0(features.relu0(features.norm0(features.conv0(x))))
    x = features.denseblock2(features.transition1(features.denseblock1(x)))
    shallow = features.transition2.norm(x).relu()
    x = features.denseblock3(features.transition2(x))
    return shallow, features.norm5(features.denseblock4(features.transition3(x))).relu()


CASES = {
    "vgg16": (models.vgg16, vgg_maps),
    "vgg19_bn": (models.vgg19_bn, vgg_maps),
    "resnet18": (models.resnet18, resnet_maps),
    "resnet50": (models.resnet50, resnet_maps),
    "mobilenet_v2": (models.mobilenet_v2, mobilenet_v2_maps),
    "densenet121": (models.densenet121, densenet_maps),
}


@pytest.mark.parametrize("name", CASES)
def test_both_maps_equal_torchvisions(tmp_path, name):
    build, maps = CASES[name]
    net = with_drawn_statistics(build())
    torch.save({f"module.{n}": t for n, t in net.state_dict().items()}, tmp_path / "x.pth")
    loaded = read_backbone(tmp_path / "x.pth")
    assert (loaded.backbone, loaded.width) == (name.removesuffix("_bn"), 1.0)
    image = np.random.default_rng(0).standard_normal((1, *SIZE, 3), np.float32)
    with torch.no_grad():
        theirs = maps(net, torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    model = make_backbone(loaded.backbone, norm=loaded.norm)
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(loaded.variables, image)
    for our_map, their_map in zip(ours, theirs, strict=True):
        expected = their_map.numpy().transpose(0, 2, 3, 1)
        assert our_map.shape == expected.shape
        error = np.abs(our_map - expected).max() / expected.std()
        print(name, our_map.shape, f"{error:.2e}")
        assert error < 1e-4
