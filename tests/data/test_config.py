import pytest

from serrate.data import ColumnMapping, DataConfig, SplitConfig
from serrate.errors import InvalidConfig


def test_a_config_comes_back_from_its_plain_values():
    config = DataConfig(columns=ColumnMapping(time="ts", features=("price",)), filter="rating >= 4", min_user_events=5)
    assert DataConfig.parse(config.plain()) == config
    split = SplitConfig(kind="temporal", validation_from="2020-01-01", test_from=1_600_000_000)
    assert SplitConfig.parse(split.plain()) == split
    assert isinstance(SplitConfig.parse({"test_from": 5}).test_from, int)


@pytest.mark.parametrize(("values", "line"), [
    ({"columns": {"user": "u", "itm": "i"}}, "unknown key 'columns.itm' (did you mean 'item'?)"),
    ({"columns": {"time": "t", "position": "p"}}, "time and position are both given"),
    ({"columns": {"user": "x", "item": "x"}}, "user and item are the same column 'x'"),
    ({"columns": {"features": ["a", "a"]}}, "features names a column twice"),
    ({"columns": {"features": ["target"]}}, "'target' is the name of a field of its own"),
    ({"columns": {"user": ""}}, "columns.user"),
    ({"format": "excel"}, "format"),
    ({"repeats": "twice"}, "repeats"),
    ({"min_user_events": 0}, "min_user_events"),
    ({"memory_limit": "much"}, "memory_limit"),
    ({"threads": 0}, "threads"),
    ({"items": {"path": "a"}}, "missing key 'items.key'"),
])
def test_what_makes_no_sense_is_refused(values, line):
    with pytest.raises(InvalidConfig) as raised:
        DataConfig.parse(values)
    assert line in str(raised.value)


def test_a_cut_that_is_no_date_is_refused():
    with pytest.raises(InvalidConfig, match="validation_from"):
        SplitConfig.parse({"validation_from": "soon"})
