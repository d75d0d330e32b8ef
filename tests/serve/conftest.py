"""What the tests of serving share: saved runs whose model has random weights, made without training."""

import json

import pytest
import torch
from safetensors.torch import save_file

from serrate import models
from serrate.data import DataConfig, Vocabulary
from serrate.run_folder import RunFolder
from serrate.serve import Predictor


@pytest.fixture
def run_of(tmp_path):
    """A function: raw ids, most frequent first → the folder of a saved run; keywords go to `DataConfig`.

    With `reads_time` the model is one that reads times, else a transformer; with `users` it knows these raw user ids.
    """

    def make(ids, titles=None, max_length=5, name="run", reads_time=False, users=None, **data):
        folder = RunFolder(tmp_path / name)
        size = {"width": 16, "blocks": 1, "heads": 2, "max_length": max_length}
        if users is not None:
            size["similarity"] = models.MixtureOfLogitsConfig(user_buckets=len(users), temperature=1.0)
        config = (models.HSTUConfig(**size, time=True) if reads_time else
                  models.TransformerConfig(**size, feedforward=16))
        torch.manual_seed(0)
        model = models.build(config, len(ids))
        with torch.no_grad():  # far from zero, so that scores differ
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
        folder.write_config({"model": config.plain(), "data": DataConfig.parse(data).plain()})
        Vocabulary(ids, titles=titles).save(folder.items_path)
        if users is not None:
            Vocabulary(users).save(folder.users_path)
        save_file(model.state_dict(), folder.model_path)
        return folder.path

    return make


@pytest.fixture
def predictor_of(run_of):
    """A function: as `run_of`, but the loaded `Predictor`."""
    return lambda *arguments, **options: Predictor.open(run_of(*arguments, **options), device="cpu")


@pytest.fixture
def predictor(predictor_of):
    """Items 100 … 129."""
    return predictor_of(list(range(100, 130)))


@pytest.fixture
def timed(predictor_of):
    """Items 100 … 129 and a model that reads times; the training log had the columns user, item, time."""
    return predictor_of(list(range(100, 130)), name="timed", reads_time=True, columns={"time": "time"})


@pytest.fixture
def acquainted(predictor_of):
    """Items 100 … 129 and a model that knows the users 0, 1, 2 and 7."""
    return predictor_of(list(range(100, 130)), name="acquainted", users=[0, 1, 2, 7])


@pytest.fixture
def rewrite_config():
    """A function: change keys of a run's config.json."""

    def rewrite(run, **changes):
        path = run / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return rewrite
