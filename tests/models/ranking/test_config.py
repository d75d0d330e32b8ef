"""Configurations of ranking: what is refused in one line, what follows from the rest."""

import pytest

from serrate.errors import InvalidConfig
from serrate.models import RankingConfig

from .made import EVERYTHING, FEATURES, HISTORIES


def history(**changes) -> list[dict]:
    return [{**HISTORIES[0], **changes}]


@pytest.mark.parametrize(("changes", "message"), [
    ({"features": [*FEATURES, FEATURES[2]]}, "features: 'item of candidates' is given twice"),
    ({"histories": HISTORIES[:1] * 2}, "histories: 'clicked' is given twice"),
    ({"features": FEATURES[:1], "histories": [], "widths": {}}, "features: at least one of ids, or a history"),
    ({"histories": history(layers={"heads": 3, "kind": "hstu"})},
     "history 'clicked': heads must divide width 8, got 3"),
    ({"histories": history(reads=[{"kind": "pma", "heads": 5}])},
     "history 'clicked': heads must divide width 8, got 5"),
    ({"histories": history(target=["itme"])},
     "history 'clicked': target 'itme' is no categorical feature of candidates (did you mean 'item'?)"),
    ({"histories": history(target=["user"])},
     "history 'clicked': target 'user' is no categorical feature of candidates"),
    ({"histories": history(fields=[{"name": "tag"}])},
     "history 'clicked': no categorical feature of candidates reads a table of its fields; say which ask in target"),
    ({"widths": {"category": 3}}, "widths: no table 'category' (did you mean 'categories'?)"),
    ({"histories": history(reads=[])}, "histories.0.reads: Tuple should have at least 1 item"),
    ({"histories": history(reads=[{"kind": "tarket"}])}, "histories.0.reads.0.kind: expected one of"),
    ({"features": [{**FEATURES[0], "spread": 0}]}, "features.0.spread: expected greater than 0, got 0"),
    ({"features": [{**FEATURES[0], "table": "x"}]}, "unknown key 'features.0.table'"),
    ({"tasks": []}, "tasks: Tuple should have at least 1 item"),
])
def test_a_wrong_configuration_is_one_line(changes, message):
    with pytest.raises(InvalidConfig) as caught:
        RankingConfig.parse({**EVERYTHING, **changes})
    assert str(caught.value).startswith(f"config: {message}")


def test_a_configuration_survives_being_written():
    config = RankingConfig.parse(EVERYTHING)
    assert RankingConfig.parse(config.plain()) == config


def test_what_asks_is_what_shares_a_table_unless_it_is_said():
    config = RankingConfig.parse(EVERYTHING)
    assert [config.target(history) for history in config.histories] == [
        ("item", "category"), ("item",), ("category",), ("category",)]


def test_the_same_name_may_stand_on_both_sides():
    both = [{"kind": "categorical", "name": "city", "of": side} for side in ("context", "candidates")]
    config = RankingConfig.parse({"features": both, "tasks": EVERYTHING["tasks"]})
    assert [column.table for column in config.columns()] == ["city", "city"]
