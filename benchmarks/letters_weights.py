r"""Make the package's weights: timm's ``test_resnet`` trained from scratch on printed letters.

Run as ``python -m benchmarks.letters_weights [--out PATH] [--seed N] [--epochs N]``; with these
options it makes the weights for ``inheritance.py letters``::

    python -m benchmarks.letters_weights --architecture test_vit2 --size 64 --lr 0.001 \
        --epochs 20 --out FILE

The source task is to tell apart the letters A-Z and a-z in the fonts that come with matplotlib,
white on black, moved and turned a little. No digit is ever drawn: a study on handwritten digits
transfers from a task that never saw its classes.

The letters are clean print on purpose. When they are bent, drawn with other pens and reduced to
8x8 pixels until they look like the digits of scikit-learn, a linear head on the frozen backbone
comes so near to the best fine-tuned one that a study of the layers has little to find.
"""

from __future__ import annotations

import argparse
import json
import string
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

import autotune
from autotune.atomic import write_bytes

ARCHITECTURE = "test_resnet"
CLASSES = string.ascii_uppercase + string.ascii_lowercase
#: Fonts with latin letters, but for those in whose files symbols stand in the letters' places.
FONTS = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf", "cm*10.ttf")
SYMBOLS = ("DejaVuSansDisplay", "DejaVuSerifDisplay", "cmex10", "cmsy10")
#: Fonts that are never trained on: the accuracy in the metadata is measured on them.
HELD_OUT = ("DejaVuSerif-Italic", "STIXGeneralBol", "cmss10")
#: Sides of a rendered glyph, of the longer side of the letter in it, and of the input of
#: ``test_resnet``.
GLYPH, LETTER, SIZE = 64, 48, 32
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 100, 128, 4e-3, 0.05
DEFAULT_OUT = (
    Path(autotune.__file__).parent / "models" / "weights" / f"{ARCHITECTURE}.letters.safetensors"
)


def find_fonts() -> tuple[list[Path], list[Path]]:
    """Return the font files to train on and the held-out ones, each sorted by name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = sorted(path for pattern in FONTS for path in folder.glob(pattern))
    letters = [path for path in found if path.stem not in SYMBOLS]
    held_out = [path for path in letters if path.stem in HELD_OUT]
    return [path for path in letters if path not in held_out], held_out


def render(fonts: list[Path]) -> tuple[Tensor, Tensor]:
    """Draw all letters of some fonts, all of one size as the digits of scikit-learn are.

    Args:
        fonts: TrueType files.

    Returns:
        Gray values in 0..1 of shape (fonts * letters, 1, GLYPH, GLYPH), and their classes.
    """
    glyphs = []
    for font in fonts:
        face = ImageFont.truetype(str(font), 2 * GLYPH)
        for letter in CLASSES:
            left, top, right, bottom = face.getbbox(letter)
            sheet = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
            ImageDraw.Draw(sheet).text((2 - left, 2 - top), letter, font=face, fill=255)
            scale = LETTER / max(sheet.size)
            # an l or i of few pixels would vanish between the pixels of the model's input
            width, height = (max(6, round(edge * scale)) for edge in sheet.size)
            glyph = Image.new("L", (GLYPH, GLYPH))
            glyph.paste(
                sheet.resize((width, height)), ((GLYPH - width) // 2, (GLYPH - height) // 2)
            )
            glyphs.append(torch.from_numpy(np.array(glyph)))
    labels = torch.arange(len(CLASSES)).repeat(len(fonts))
    return torch.stack(glyphs).unsqueeze(1).float() / 255, labels


@dataclass(frozen=True)
class Target:
    """What is trained: an architecture of timm, and the side of its input in pixels."""

    architecture: str
    size: int

    def create(self) -> nn.Module:
        """Return the architecture with random weights."""
        config = timm.get_pretrained_cfg(self.architecture)
        fixed = config is not None and config.fixed_input_size
        options = {"img_size": self.size} if fixed else {}
        return timm.create_model(self.architecture, num_classes=len(CLASSES), **options)

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation of timm's own weights, so that users need no others."""
        config = timm.get_pretrained_cfg(self.architecture)
        if config is None:
            raise LookupError(
                f"timm {timm.__version__} has no configuration of {self.architecture}"
            )
        return config.mean, config.std


def draw(glyphs: Tensor, rng: torch.Generator, target: Target) -> Tensor:
    """Turn rendered glyphs into normalized input: turn, shear, scale and move each, add noise.

    torchvision's transforms draw one set of parameters for a whole batch; one sampling grid per
    glyph gives each its own at no more cost.

    Args:
        glyphs: What ``render`` gives, or a part of it.
        rng: Source of the distortions.
        target: What the images are for.

    Returns:
        Images of shape (glyphs, 3, size, size), normalized as the backbone asks for.
    """
    count = len(glyphs)

    def around(center: float, reach: float) -> Tensor:
        return center + reach * (2 * torch.rand(count, generator=rng) - 1)

    angle, shear = around(0.0, 0.045), around(0.0, 0.075)
    width, height = around(1.0, 0.04), around(0.78, 0.01)
    horizontal = (width * angle.cos(), width * (shear - angle.sin()), around(0.0, 0.015))
    vertical = (height * angle.sin(), height * angle.cos(), around(0.0, 0.015))
    theta = torch.stack([torch.stack(horizontal, 1), torch.stack(vertical, 1)], 1)
    grid = functional.affine_grid(theta, [count, 1, target.size, target.size], align_corners=False)
    images = functional.grid_sample(glyphs, grid, align_corners=False)
    images = (images + 0.1 * torch.randn(images.shape, generator=rng)).clamp(0, 1)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in target.normalization())
    return (images - mean) / std


def train(
    glyphs: Tensor, labels: Tensor, target: Target, epochs: int, seed: int, lr: float
) -> nn.Module:
    """Train the architecture from scratch.

    Args:
        glyphs: Rendered letters.
        labels: The class of each.
        target: The architecture.
        epochs: Rounds of STEPS batches, each of freshly distorted letters.
        seed: Of the first weights, the order and the distortions.
        lr: The peak of the learning rate.

    Returns:
        The trained model, in evaluation mode.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = target.create()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, epochs=epochs, steps_per_epoch=STEPS
    )
    for _ in range(epochs * STEPS):
        chosen = torch.randint(len(glyphs), (BATCH,), generator=rng)
        images = draw(glyphs[chosen], rng, target)
        loss = functional.cross_entropy(model(images), labels[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(
    model: nn.Module, glyphs: Tensor, labels: Tensor, target: Target, rounds: int = 20
) -> float:
    """Return the share of letters that a model tells, each drawn a number of times."""
    rng = torch.Generator().manual_seed(2**31)
    right = [
        (model(draw(glyphs, rng, target)).argmax(1) == labels).float().mean()
        for _ in range(rounds)
    ]
    return float(torch.stack(right).mean())


def write(state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file with sorted metadata: the same weights are the same file."""
    data = save(state, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    write_bytes(path, data[:8] + header.ljust(end - 8) + data[end:])


def main() -> None:
    """Train, measure and write the weights."""
    parser = argparse.ArgumentParser(description="Make the packaged weights of autotune.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--epochs", type=int, default=12, help=f"rounds of {STEPS} batches")
    parser.add_argument("--architecture", default=ARCHITECTURE, help="model of timm")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the images in pixels")
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, help="peak learning rate")
    arguments = parser.parse_args()
    target = Target(arguments.architecture, arguments.size)
    # the order of a sum depends on the number of threads: a fixed one gives the same weights, and
    # one is not slowed down by threads that wait for each other on a busy machine
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    fonts, held_out = find_fonts()
    model = train(*render(fonts), target, arguments.epochs, arguments.seed, arguments.lr)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)  # what is measured is what is written: the rounded weights
    score = accuracy(model, *render(held_out), target)
    mean, std = target.normalization()
    facts = {
        "architecture": target.architecture,
        "source_task": "printed letters A-Z a-z in fonts of matplotlib, white on black, no digits",
        "classes": CLASSES,
        "classifier": f"{model.default_cfg['classifier']}, included, {len(CLASSES)} classes",
        "input": {"size": [3, target.size, target.size], "mean": mean, "std": std},
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "accuracy": round(score, 4),
        "accuracy_measured_on": f"fonts never trained on: {', '.join(HELD_OUT)}",
        "licence": "Apache-2.0",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "matplotlib": matplotlib.__version__,
    }
    metadata = {
        name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()
    }
    write(state, metadata, arguments.out)
    print(
        f"{arguments.out}: {score:.1%} of the held-out letters told "
        f"after {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
