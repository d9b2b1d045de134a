import torch
from torch.nn.functional import layer_norm, linear

from bifusion_hf.layers.superpoint_pooling import SuperpointPooling


def slow_pooling(module, points, features, superpoints, num_superpoints):
    """The same formula, one superpoint at a time."""

    def norm(layer, value):
        return layer_norm(value, layer.normalized_shape, layer.weight, layer.bias)

    def shape_of(relative):
        hidden = torch.relu(norm(module.shape_in_norm, linear(relative, module.shape_in.weight, module.shape_in.bias)))
        return norm(module.shape_out_norm, linear(hidden, module.shape_out.weight, module.shape_out.bias))

    pooled, weights = [], torch.zeros(len(points), 1, dtype=points.dtype)
    for index in range(num_superpoints):
        own = (superpoints == index).nonzero().flatten()
        xyz = points[own]
        side = max((xyz[:, axis].max() - xyz[:, axis].min()).item() for axis in range(3))
        shape = shape_of((xyz - xyz.mean(0)) / (side + 0.01))
        whole = shape.max(0).values
        both = torch.cat([shape, whole.expand_as(shape)], 1)
        hidden = torch.relu(norm(module.weight_in_norm, linear(both, module.weight_in.weight, module.weight_in.bias)))
        weights[own] = 2 * torch.sigmoid(linear(hidden, module.weight_out.weight))
        pooled.append((weights[own] * features[own]).sum(0) / len(own) + whole)
    return torch.stack(pooled), weights


def test_pooling_equals_the_slow_form():
    torch.manual_seed(0)
    module = SuperpointPooling(12).double()
    points, features = torch.randn(150, 3).double(), torch.randn(150, 12).double()
    # The last one has a single point.
    superpoints = torch.cat([torch.arange(9), torch.randint(8, (141,))])
    pooled, weights = module(points, features, superpoints, 9)
    expected, expected_weights = slow_pooling(module, points, features, superpoints, 9)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_order_of_points_does_not_matter_and_shifts_neither():
    torch.manual_seed(0)
    module = SuperpointPooling(8).double()
    points, features, superpoints = torch.randn(60, 3).double(), torch.randn(60, 8).double(), torch.arange(60) % 7
    order = torch.randperm(60)
    pooled = module(points, features, superpoints, 7)[0]
    for shift in (5, -5):
        moved = module(points[order] + shift, features[order], superpoints[order], 7)[0]
        torch.testing.assert_close(moved, pooled)


def test_a_superpoint_of_one_point():
    module = SuperpointPooling(8)
    pooled, weights = module(torch.ones(1, 3), torch.ones(1, 8), torch.zeros(1, dtype=torch.int64), 1)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all() and 0 < weights.item() < 2
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())
