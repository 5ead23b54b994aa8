"""Heat maps of images that a fitted model has predicted, a file each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from autotune.config.loading import slug
from autotune.data.drawing import draw_heat, draw_tile
from autotune.data.image_files import read_image
from autotune.errors import UserError, place_as_user_error
from autotune.models.heat_maps import NoHeatMapError, can_draw, heat_maps
from autotune.models.network import Network
from autotune.results.model.model import Model
from autotune.results.model.prediction import Prediction
from autotune.study.state.predictions import INSTALL_HEAT_MAPS
from autotune.text import plural

#: Smallest side of a drawn image, in pixels.
_SIDE = 224
#: Longest part of a file name that is taken from an image, or from a class.
_LONGEST = 60


class HeatMapFolder:
    """Draws images beside what speaks for their predicted class.

    Args:
        folder: Gets ``1-name-class.jpg`` for the image in the first row of the table, and so on.
        model: The model.

    Raises:
        UserError: When captum is not installed, or the folder cannot be made.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        if not can_draw():
            raise UserError(f"heat maps need captum; {INSTALL_HEAT_MAPS}")
        with place_as_user_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._model = model
        self._row = self._drawn = 0
        self._reasons: Counter[str] = Counter()

    def draw(self, prediction: Prediction) -> None:
        """Draw a readable image, the next one of the table."""
        assert prediction.probabilities is not None
        self._row += 1
        best = int(prediction.probabilities.argmax())
        model = self._model
        image = read_image(prediction.path, model.shrink)
        view = model.crop(image)
        device = next(model.parameters()).device
        try:
            if not isinstance(model.network, Network):
                raise NoHeatMapError("the model is an ensemble")
            heat = heat_maps(model.network, model.transform(image)[None].to(device), [best])[0]
        except (NoHeatMapError, torch.OutOfMemoryError) as error:
            self._reasons[str(error).splitlines()[0]] += 1
            return
        tile = draw_tile(view, max(_SIDE, view.shape[-1]))
        drawn = Image.new("RGB", (2 * tile.width, tile.height))
        drawn.paste(tile)
        drawn.paste(draw_heat(tile, heat), (tile.width, 0))
        # A number of its own, because images of several folders may have one name.
        names = Path(prediction.path).stem, model.classes[best]
        words = (slug(name)[:_LONGEST] for name in names)
        path = self._folder / f"{'-'.join([str(self._row), *filter(None, words)])}.jpg"
        with place_as_user_error(path):
            drawn.save(path, quality=90)
        self._drawn += 1

    def describe(self) -> list[str]:
        """Say in lines how many were drawn, and why others have none."""
        lines = [
            f"{plural(count, 'image')} without a heat map: {reason}"
            for reason, count in self._reasons.items()
        ]
        return [*lines, f"{plural(self._drawn, 'heat map')}: {self._folder}"]
