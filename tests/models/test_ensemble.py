"""An ensemble: probabilities of networks that expect different images, averaged."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from autotune.models.ensemble import Ensemble, InputAdapter


@dataclass(frozen=True)
class Format:
    size: int
    mean: tuple[float, ...] = (0.5, 0.4, 0.3)
    std: tuple[float, ...] = (0.2, 0.3, 0.25)


GIVEN = Format(32)
OTHERS = (Format(32, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)), Format(16), Format(48))


class Pixels(nn.Module):
    """Logits from the mean colors, for images of one size."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (self.size, self.size)
        return self.scale * images.mean(dim=(2, 3))


@pytest.mark.parametrize("wanted", OTHERS)
def test_images_are_those_that_the_other_network_expects(wanted: Format) -> None:
    plain = torch.rand(2, 3, 32, 32)

    def normalized(form: Format) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (form.mean, form.std))
        sized = interpolate(plain, (form.size,) * 2, mode="bilinear", antialias=form.size < 32)
        return (sized - mean) / std

    adapter = InputAdapter(GIVEN, wanted)
    torch.testing.assert_close(adapter(normalized(GIVEN)), normalized(wanted))
    assert not adapter.state_dict()


def test_probabilities_are_averaged_by_weight() -> None:
    members = [Pixels(32, 1.0), Pixels(16, 1000.0)]  # sure of its class: the other one underflows
    ensemble = Ensemble(members, [3, 1], [GIVEN, OTHERS[1]], GIVEN)
    images = torch.randn(5, 3, 32, 32)
    logs = ensemble(images)
    small = interpolate(images, (16, 16), mode="bilinear", antialias=True)
    expected = 0.75 * members[0](images).softmax(1) + 0.25 * members[1](small).softmax(1)
    torch.testing.assert_close(logs.softmax(dim=1), expected)
    torch.testing.assert_close(logs.exp().sum(dim=1), torch.ones(5))
    assert logs.isfinite().all()
