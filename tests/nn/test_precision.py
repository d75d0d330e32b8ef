"""The dtype of products is that of torch's own linear layer."""

import pytest
import torch

from serrate.nn.precision import product_dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("enabled", [True, False])
def test_products_are_of_the_dtype_that_autocast_has(enabled, dtype):
    x = torch.ones(2, 2, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        assert product_dtype(x) == (torch.bfloat16 if enabled else dtype)
