"""Which similarity a model of the next item has, as its configuration says it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ..config import Config
from ..nn import DotProduct, MixtureOfLogits, MixtureOptions, Similarity


class MixtureOfLogitsConfig(Config):
    """A mixture of logits, see `nn.MixtureOptions`."""

    kind: Literal["mol"] = "mol"
    query_components: int = Field(default=8, ge=1, description="vectors of a query, that of its user counted")
    item_components: int = Field(default=4, ge=1, description="vectors of an item; every pair of the two is a logit")
    component_width: int = Field(default=64, ge=1, description="of each vector")
    gate_hidden: int = Field(default=128, ge=1, description="width of the hidden layers of the gate")
    query_hidden: int = Field(default=512, ge=1, description="width of the layer that makes a query's vectors")
    temperature: float = Field(default=0.05, gt=0, description="divides the logits, which are cosines")
    gate_dropout: float = Field(default=0.2, ge=0, lt=1, description="share of the gate's weights dropped in training")
    item_dropout: float = Field(default=0.1, ge=0, lt=1, description="share of an item's vector dropped in training")
    user_buckets: int = Field(default=0, ge=0, description="rows of the table of users; 0: no vector of the user")
    user_dropout: float = Field(
        default=0.5, ge=0, lt=1, description="how often training takes the unknown user in place of a query's own")
    load_balancing: float = Field(default=0.001, ge=0, description="weight of the penalty on logits that go unused")
    user_penalty: float = Field(default=0.1, ge=0, description="weight of the squared length of the users' vectors")
    stage_one_width: int = Field(
        default=0, ge=0, description="of one more vector of each side, learnt to find candidates, for an h-indexer or "
                                     "FAISS; 0: none, and these read the mean of the components")

    @model_validator(mode="after")
    def _users_have_one_component(self) -> Self:
        if self.user_buckets and self.query_components < 2:
            raise ValueError("query_components must be 2 or more with user_buckets: one is the user's")
        return self

    @property
    def options(self) -> MixtureOptions:
        """The same as `nn.MixtureOfLogits` takes it."""
        return MixtureOptions(**self.model_dump(exclude={"kind"}))


def _form(value: Any) -> str:
    """Which of the two a value means to be, so that an error tells what is wrong with that one."""
    return "mol" if isinstance(value, dict | Config) else "name"


SimilarityConfig = Annotated[
    Annotated[Literal["dot", "cosine"], Tag("name")] | Annotated[MixtureOfLogitsConfig, Tag("mol")],
    Discriminator(_form)]


def build_similarity(config: SimilarityConfig, width: int) -> Similarity:
    """Build what `config` says for encoders and items of `width` channels."""
    if isinstance(config, MixtureOfLogitsConfig):
        return MixtureOfLogits(width, config.options)
    return DotProduct(normalise=config == "cosine")
