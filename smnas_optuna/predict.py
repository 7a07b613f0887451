"""``python -m smnas_optuna.predict``: detect objects in photographs, and the function with which Python does so."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smnas_optuna.command_line import run_command, writable_folder
from smnas_optuna.errors import UserError
from smnas_optuna.training.picture import LabelledBox, draw_boxes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from smnas_optuna.training.trained import TrainedDetector

_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_QUALITY = 90
# Longer side of the pictures, in pixels: labels are too large for smaller ones, and too small for larger ones.
_SHORTEST_PICTURE, _LONGEST_PICTURE = 480, 1600


def load_detector(folder: str | Path, device: str | None = None) -> "TrainedDetector":
    """Return a trained detector; call it with an image to get the detections in it.

    Args:
        folder: Folder with the detector, such as the ``best/`` of a search.
        device: Where it runs, such as ``cuda:1``; None for the first GPU, or a CPU where there is none.

    Raises:
        UserError: The folder lacks the detector's config or weights, or they cannot be read.
    """
    from smnas_optuna.training.trained import TrainedDetector  # imports torch, which takes seconds

    return TrainedDetector(folder, device)


def predict(
    detector: Annotated[Path, typer.Argument(help="Folder with a detector, such as work_dirs/photos/best.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGE_OR_FOLDER", help="Photograph, or a folder of them.")],
    output: Annotated[Path, typer.Option(help="Folder for the pictures with boxes.")] = Path("predictions"),
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a detection.")] = 0.5,
    device: Annotated[
        str | None, typer.Option(help="Where it runs, such as cpu or cuda:1; by default the first GPU, else the CPU.")
    ] = None,
) -> None:
    """Detect objects in photographs: draw boxes around them, and print them as JSON.

    Boxes are left, top, right and bottom in pixels of the photograph as it is shown, rotated as its EXIF data says.
    """
    files = _files(images)
    folder = writable_folder(output)
    pictures = _picture_paths(files, images, folder)
    from smnas_optuna.training.trained import read_image  # imports torch, so only after the arguments are checked

    loaded = load_detector(detector, device)
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            image = read_image(file)
        except UserError as error:
            if len(files) == 1:
                raise
            print(f"not used: {error}", file=sys.stderr)
            continue
        boxes = loaded(image, threshold)
        _draw(image, boxes, pictures[file])
        found.append({"image": str(file), "detections": list(map(_record, boxes))})
    if not found:
        raise UserError(f"IMAGE_OR_FOLDER {images}: none of the {len(files)} images can be read")
    print("[\n" + ",\n".join(map(json.dumps, found)) + "\n]")
    print(f"{len(found)} of {len(files)} images are in {folder}, with boxes", file=sys.stderr)


def _files(images: Path) -> list[Path]:
    if images.is_file():
        return [images]
    if not images.is_dir():
        raise UserError(f"IMAGE_OR_FOLDER {images}: no such file or folder")
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"IMAGE_OR_FOLDER {images}: has no images; expected {', '.join(sorted(_SUFFIXES))}")
    return files


def _picture_paths(files: Sequence[Path], images: Path, output: Path) -> dict[Path, Path]:
    """Return the path of each image's picture, in the same subfolders; raises UserError if one is an image itself."""
    inside = {file: file.relative_to(images) if images.is_dir() else Path(file.name) for file in files}
    repeated = Counter(path.with_suffix("") for path in inside.values())
    paths = {
        # With its whole name an image in another format is another one.
        file: output / (path.with_suffix(".jpg") if repeated[path.with_suffix("")] == 1 else f"{path}.jpg")
        for file, path in inside.items()
    }
    originals = {file.resolve() for file in files}
    for path in paths.values():
        if path.resolve() in originals:
            raise UserError(f"--output {output}: {path} is one of the images; expected another folder")
    return paths


def _draw(image: "NDArray[np.uint8]", boxes: Sequence[LabelledBox], path: Path) -> None:
    longest = max(_SHORTEST_PICTURE, min(_LONGEST_PICTURE, max(image.shape)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_boxes(image, boxes, longest).save(path, quality=_QUALITY, subsampling=0)
    except OSError as error:
        raise UserError(f"--output {path.parent}: cannot be written: {error.strerror or error}") from None


def _record(box: LabelledBox) -> dict[str, Any]:
    corners = [round(corner, 1) for corner in box.corners]
    return {"class": box.name, "score": round(box.score or 0.0, 4), "box": corners}


if __name__ == "__main__":
    run_command(predict, "predict")
