import pytest

from serrate.errors import InvalidConfig
from serrate.evaluate import EvaluateConfig


def test_cutoffs_are_kept_ascending_and_once():
    assert EvaluateConfig.parse({"cutoffs": [50, 10, 50]}).cutoffs == (10, 50)


@pytest.mark.parametrize("values", [{"cutoffs": []}, {"cutoffs": [0]}, {"confidence": 1.0}, {"resamples": 0},
                                    {"score_budget": 0}, {"tokens_per_batch": 0}, {"cutof": [10]}])
def test_what_makes_no_sense_is_refused_in_one_line(values):
    with pytest.raises(InvalidConfig, match=f"^config: .*{next(iter(values))}") as error:
        EvaluateConfig.parse(values)
    assert "\n" not in str(error.value)


def test_survives_being_written():
    config = EvaluateConfig(cutoffs=(5,), exclude_seen=False)
    assert EvaluateConfig.parse(config.plain()) == config
