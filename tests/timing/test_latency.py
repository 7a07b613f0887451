import gc
import time

import pytest
import torch
from torch import nn

from smnas_optuna.recipe.settings import Timing
from smnas_optuna.timing.latency import measure_latency


class Sleeper(nn.Module):
    """Takes as many seconds for an image as the image says."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def test_step(self, sample: float) -> None:
        assert torch.is_inference_mode_enabled()
        assert not self.training
        self.seen.append(sample)
        time.sleep(sample)


def test_the_median_is_over_images_and_differences_between_images_do_not_widen_the_spread() -> None:
    model = Sleeper()
    samples = [0.002, 0.02, 0.04]
    latency, spread = measure_latency(model, samples, Timing(images=3, warmup=4, rounds=3), torch.device("cpu"))
    assert 20 <= latency < 40
    assert spread < 15
    assert model.seen == [*samples, samples[0], *samples * 3]


def test_garbage_collection_is_enabled_again_even_after_an_error() -> None:
    class Broken(Sleeper):
        def test_step(self, sample: float) -> None:
            if self.seen:
                raise RuntimeError("broken")
            super().test_step(sample)

    with pytest.raises(RuntimeError, match="broken"):
        measure_latency(Broken(), [0.0], Timing(images=1, warmup=1, rounds=2), torch.device("cpu"))
    assert gc.isenabled()
