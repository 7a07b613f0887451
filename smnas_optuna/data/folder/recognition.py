"""Recognises the format of a data folder."""

from collections.abc import Callable
from pathlib import Path

from smnas_optuna.data.folder.bdd import find_bdd
from smnas_optuna.data.folder.coco import find_coco
from smnas_optuna.data.folder.files import FolderFiles
from smnas_optuna.data.folder.layout import FormatName, Layout
from smnas_optuna.data.folder.voc import find_voc
from smnas_optuna.data.folder.yolo import find_yolo, is_data_yaml, read_data_yaml
from smnas_optuna.errors import UserError

_FINDERS: dict[FormatName, Callable[[FolderFiles], Layout | None]] = {
    "yolo": find_yolo,
    "coco": find_coco,
    "voc": find_voc,
    "bdd": find_bdd,
}
_EXPECTED = (
    "YOLO's data.yaml or classes.txt with a text file per image, COCO's json, Pascal VOC's XML files, or BDD100K's json"
)


def is_data_folder(path: Path) -> bool:
    """Return whether a path is a folder, or a ``data.yaml`` that describes one, and no recipe."""
    return path.is_dir() or (path.suffix.lower() in (".yaml", ".yml") and is_data_yaml(path))


def recognise(path: Path, format_name: FormatName | None = None) -> Layout:
    """Return the layout of a data folder.

    Args:
        path: The folder, or a ``data.yaml`` that describes it.
        format_name: Its format; None to find it out.

    Raises:
        UserError: The folder is missing or empty, is in no known format or in several, or cannot be read.
    """
    if path.is_file():
        return read_data_yaml(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected one with images and boxes")
    files = FolderFiles.below(path)
    if not files.names:
        raise UserError(f"{path}: the folder is empty; expected images and boxes as {_EXPECTED}")
    finders = _FINDERS if format_name is None else {format_name: _FINDERS[format_name]}
    found = [layout for find in finders.values() if (layout := find(files)) is not None]
    if not found:
        as_what = f"labels in the format {format_name}" if format_name else _EXPECTED
        raise UserError(f"{path}: {len(files.images):,} images, and no labels were found; expected {as_what}")
    if len(found) > 1:
        what = " and ".join(f"{layout.format} ({layout.reason})" for layout in found)
        raise UserError(
            f"{path}: labels in {len(found)} formats: {what}; choose one with --set dataset.format={found[0].format}"
        )
    return found[0]
