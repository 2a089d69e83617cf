"""What do the scripts need that their repositories do not hold? Packages from the registry, data from this machine."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

#: Installed without what they depend on, so that numpy and torch stay those that the probe is tested with.
PACKAGES = (
    "py-spy==0.4.1",
    "tensorboard==2.20.0",  # makemore writes its losses for it
    *("absl-py", "grpcio", "markdown", "packaging", "protobuf", "setuptools", "werkzeug"),  # imported by tensorboard
    "torchvision==0.28.0",  # of torch 2.13
    "pillow",
    "six",
)

#: Sizes of the Berkeley images that super_resolution would download.
IMAGE_WIDTH, IMAGE_HEIGHT = 481, 321
TRAIN_IMAGES, TEST_IMAGES = 200, 100


def install_packages(folder: Path) -> None:
    """Put the profiler and what the scripts import into `folder`, once."""
    done = folder / "installed"
    wanted = "\n".join(PACKAGES)
    if done.is_file() and done.read_text() == wanted:
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
    subprocess.run([*pip, *PACKAGES], check=True)
    done.write_text(wanted)


def write_characters(work: Path) -> None:
    """The data of nanoGPT's `shakespeare_char`, in its form, from the documentation that every Python holds."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    characters = sorted(set(text))
    numbers = {character: number for number, character in enumerate(characters)}
    encoded = np.array([numbers[character] for character in text], dtype=np.uint16)
    split = len(encoded) * 9 // 10
    folder = work / "data" / "shakespeare_char"
    folder.mkdir(parents=True, exist_ok=True)
    encoded[:split].tofile(folder / "train.bin")
    encoded[split:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": numbers}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def write_images(work: Path) -> None:
    """Photographs' stand-ins, where super_resolution looks for the Berkeley images: smooth noise, as JPEG."""
    images = importlib.import_module("PIL.Image")  # of PACKAGES, which are installed by now
    generator = np.random.default_rng(11)
    for kind, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        folder = work / "super_resolution" / "dataset" / "BSDS300" / "images" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = generator.integers(0, 256, (IMAGE_HEIGHT // 8, IMAGE_WIDTH // 8, 3), dtype=np.uint8)
            image = images.fromarray(coarse).resize((IMAGE_WIDTH, IMAGE_HEIGHT), images.Resampling.BICUBIC)
            image.save(folder / f"{number:03}.jpg", quality=90)
