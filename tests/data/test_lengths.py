"""Lengths of histories, counted without preparing the log."""

import pytest

from serrate.data import ColumnMapping, DataConfig, prepare
from serrate.data.lengths import history_lengths
from serrate.errors import InvalidData

LOG = "who,what,stars\n1,a,5\n1,b,1\n2,a,4\n1,c,4\n3,a,1\n"
COLUMNS = ColumnMapping(user="who", item="what")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return str(path)


@pytest.mark.parametrize(("condition", "expected"), [(None, [1, 1, 3]), ("stars >= 4", [1, 2])])
def test_events_are_counted_by_user_as_preparing_counts_them(log, condition, expected):
    config = DataConfig(columns=COLUMNS, filter=condition)
    assert sorted(history_lengths(log, config)) == expected
    assert sorted(prepare(log, config).lengths.tolist()) == expected


def test_a_prepared_data_set_has_its_own(log, tmp_path):
    prepare(log, DataConfig(columns=COLUMNS), tmp_path / "prepared")
    assert sorted(history_lengths(str(tmp_path / "prepared"), DataConfig())) == [1, 1, 3]


def test_a_column_that_is_not_there_is_named(log):
    with pytest.raises(InvalidData, match="no column 'user'"):
        history_lengths(log, DataConfig())
