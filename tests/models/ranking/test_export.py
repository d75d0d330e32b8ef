"""The exported model says what the model says, of batches of any size, also after it was a file."""

import pytest
import torch

from serrate.jagged import RankingBatch
from serrate.models.ranking import export

from .made import HISTORIES, batch, model

READS = [{**HISTORIES[0], "reads": HISTORIES[0]["reads"][:2]}, *HISTORIES[1:]]  # without pma


def unlabelled(whole: RankingBatch) -> RankingBatch:
    return RankingBatch(whole.owner, whole.histories, whole.context, whole.candidates)


BATCHES = [batch(seed=3), batch((1, 1, 0, 1), ((2, 6), (3, 3), (0, 1), (4, 2)), seed=4),
           batch((3,), ((1, 2, 0, 3), (3, 3, 1, 1), (0, 1, 2, 2), (4, 2, 0, 1)), seed=5)]
ONE_STATE = [batch((0,) * 7, ((2,), (3,), (1,), (4,)), seed=6), batch((0,), ((1,),) * 4, seed=7),
             batch((0, 0), ((0,),) * 4, seed=8)]


@pytest.mark.parametrize(("histories", "batches"), [(HISTORIES, BATCHES), (READS, [*BATCHES, *ONE_STATE])],
                         ids=["everything", "one state"])
def test_any_number_of_candidates_states_and_events(histories, batches):
    made = model(histories=histories)
    exported = export(made, batch()).module()
    for other in batches:
        torch.testing.assert_close(exported(unlabelled(other)), made(other))


def test_as_a_file(tmp_path):
    made = model(histories=HISTORIES[3:])
    torch.export.save(export(made, batch()), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(unlabelled(BATCHES[0])), made(BATCHES[0]))
