from types import SimpleNamespace

import pytest
import torch

from bifusion_hf.layers.attention import MultiHeadAttention


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("per_query", [False, True, None])
def test_attention_equals_the_slow_form_head_by_head(backend, per_query):
    layer = MultiHeadAttention(6, 2, SimpleNamespace(_attn_implementation=backend)).double()
    queries, keys = torch.randn(2, 4, 6).double(), torch.randn(2, 5, 6).double()
    mask = torch.rand(2, 4 if per_query else 1, 5) < 0.5
    mask[..., 2] = True
    if per_query is None:
        mask[:] = True
    found, weights = layer(queries, keys, None if per_query is None else mask)
    for sample in range(2):
        attended = []
        for query in range(4):
            may = mask[sample, query if per_query else 0]
            for head in (slice(0, 3), slice(3, 6)):
                q, k, v = layer.q_proj(queries[sample, query]), layer.k_proj(keys[sample]), layer.v_proj(keys[sample])
                share = (k[may, head] @ q[head] / 3**0.5).softmax(0)
                attended.append(share @ v[may, head])
                if backend == "eager":
                    assert torch.equal(weights[sample, head.start // 3, query] > 0, may)
        expected = layer.out_proj(torch.cat(attended).view(4, 6))
        torch.testing.assert_close(found[sample], expected)
