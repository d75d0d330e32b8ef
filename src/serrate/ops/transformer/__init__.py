"""What a pre-norm transformer block does but attend: norm and projection, and all that follows attention."""

from .. import select
from . import reference, triton
from .api import Call, Layer, feed_forward, norm_linear

select.register("norm_linear", [
    select.Implementation("triton", triton.norm_linear, triton.unusable),
    select.Implementation("reference", reference.norm_linear, reference.unusable),
])
select.register("feed_forward", [
    select.Implementation("triton", triton.feed_forward, triton.unusable),
    select.Implementation("reference", reference.feed_forward, reference.unusable),
])

__all__ = ["Call", "Layer", "feed_forward", "norm_linear"]
