import json
import math

import pytest

from training.history import SURFACE_POINTS, Epoch, History, Surface


def epoch(**changed: float) -> Epoch:
    values = {
        "learning_rate": 0.1,
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "validation_loss": 0.25,
        "validation_accuracy": 1.0,
        "seconds": 2.5,
    }
    return Epoch(
        number=3,
        gradient_norms={"0": 1.5, "2": 0.5},
        dead_units={"1": 0.125},
        **(values | changed),
    )


def history(*epochs: Epoch) -> History:
    row = tuple(i / SURFACE_POINTS for i in range(SURFACE_POINTS))
    return History(
        model="xor",
        architecture="mlp",
        settings={"hidden": [2], "optimizer": "sgd"},
        seed=4,
        epochs=epochs,
        surfaces=(Surface(epoch=0, probabilities=(row,) * SURFACE_POINTS),),
    )


def test_a_history_is_read_as_it_was_written() -> None:
    before = history(epoch(), epoch(train_loss=0.4))
    assert History.from_json(before.to_json()) == before


def test_numbers_that_are_not_finite_are_null_in_between() -> None:
    text = history(epoch(train_loss=math.nan, validation_loss=math.inf)).to_json()
    assert json.loads(text)["epochs"][0]["train_loss"] is None
    read = History.from_json(text).epochs[0]
    assert math.isnan(read.train_loss)
    assert math.isnan(read.validation_loss)
    assert read.validation_accuracy == 1.0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"epochs": 1}', '{"epochs": [], "surfaces": []}']
)
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a history|Expecting value"):
        History.from_json(text)
