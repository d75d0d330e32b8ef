from pathlib import Path

from serrate.train.track import TensorBoard


class Writer:
    def __init__(self):
        self.scalars: list[tuple[str, float, int]] = []
        self.flushed = 0

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed += 1


def test_steps_and_validations_become_scalars(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(TensorBoard, "installed", staticmethod(lambda: True))
    listener, writer = TensorBoard(tmp_path), Writer()
    listener._writer = writer

    listener({"event": "start", "epochs": 3})
    listener({"event": "step", "step": 7, "epoch": 1, "batch": 7, "loss": 2.5, "learning_rate": 0.1,
              "events_per_second": 900.0})
    listener({"event": "validation", "step": 9, "epoch": 1, "metrics": {"hr@10": 0.25}, "best": True})

    assert writer.scalars == [("train/loss", 2.5, 7), ("train/learning_rate", 0.1, 7),
                              ("train/events_per_second", 900.0, 7), ("validation/hr@10", 0.25, 9)]
    assert writer.flushed == 2


def test_without_tensorboard_nothing_happens(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(TensorBoard, "installed", staticmethod(lambda: False))

    TensorBoard(tmp_path / "new")({"event": "step", "step": 1})

    assert not (tmp_path / "new").exists()
