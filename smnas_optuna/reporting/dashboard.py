"""What this package adds to optuna-dashboard: notes, the trials' files and the Pareto front.

Notes and figures are attributes of the study, which every worker reads again with each trial. Therefore notes are
short, and the study's note and figure are small and rarely updated. Files are in an artifact store, the folder
``artifacts`` in the run's folder; the database has their names only.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import RDBStorage
from optuna_dashboard import save_note, save_plotly_graph_object

from smnas_optuna.reporting.figures import front_figure
from smnas_optuna.reporting.quantity import measured_text, quantity_of
from smnas_optuna.reporting.sparkline import sparkline
from smnas_optuna.reporting.study_results import StudyResults, results_of
from smnas_optuna.reporting.trial_table import Column, detector_columns
from smnas_optuna.search.search import Search
from smnas_optuna.study.claim import ClaimLock

_logger = logging.getLogger(__name__)

PARETO_FIGURE = "pareto-front"

_MEDIA_TYPES = {"config.py": "text/x-python", "output.log": "text/plain", "detections.jpg": "image/jpeg"}
_PRECISIONS = ("map", "map_50", "map_75")
_SIZES = {"map_small": "small", "map_medium": "medium", "map_large": "large"}
_COSTS = ("latency_ms", "flops", "params", "backbone_flops", "backbone_params")
_MOST_ROWS = 20
_MOST_DOMINATED = 100
_REFRESH_SECONDS = 60.0


def describe_trial(trial: optuna.Trial, losses: Sequence[float], folder: Path, artifacts: Path) -> None:
    """Save a note on a trial, and upload its files to the artifact store.

    Args:
        trial: A trial that has been evaluated and is about to end.
        losses: Mean loss of each epoch.
        folder: Folder of the trial, with the config, the log and the picture of detections, as far as they exist.
        artifacts: Folder of the artifact store; created if absent.
    """
    note = trial_note(trial.user_attrs, losses)
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(artifacts)
        for name, media_type in _MEDIA_TYPES.items():
            if (folder / name).is_file():
                upload_artifact(
                    artifact_store=store, file_path=str(folder / name), study_or_trial=trial, mimetype=media_type
                )
    except OSError as error:
        # A trial does not fail because its files cannot be copied.
        note += f"\n\nIts files could not be copied to the artifact store: {error.strerror}."
    save_note(trial, note)


def trial_note(attributes: Mapping[str, Any], losses: Sequence[float]) -> str:
    """Return a trial's note in Markdown: the architecture, its accuracy, its costs and the loss over the epochs."""

    def measured(name: str, title: str = "") -> str:
        quantity = quantity_of(name)
        return f"{title or quantity.title} {measured_text(name, attributes)} {quantity.unit}".rstrip()

    lines = [f"**{attributes.get('architecture', 'no architecture')}**"]
    if any(name in attributes for name in _PRECISIONS):
        sizes = ", ".join(measured(name, title) for name, title in _SIZES.items() if name in attributes)
        precisions = ", ".join(measured(name) for name in _PRECISIONS if name in attributes)
        lines.append(f"{precisions} ({sizes})" if sizes else precisions)
    if costs := [measured(name) for name in _COSTS if name in attributes]:
        lines.append(", ".join(costs))
    if losses:
        seconds = attributes.get("train_seconds")
        trained = f", trained for {seconds / 60:.1f} min" if seconds else ""
        lines.append(f"loss by epoch `{sparkline(losses)}` {losses[0]:.3g} to {losses[-1]:.3g}{trained}")
    if "reason" in attributes:
        lines.append(f"failed: {attributes['reason']}")
    return "\n\n".join(lines)


class DashboardUpdater:
    """Updates the notes and Pareto figures of studies while they are searched.

    Args:
        storage: Storage that holds the studies. A study that does not exist yet is skipped.
        searches: The searches of the studies.
    """

    def __init__(self, storage: RDBStorage, searches: Sequence[Search]) -> None:
        self._storage = storage
        self._searches = {search.path: search for search in searches}
        self._due = dict.fromkeys(self._searches, 0.0)

    def refresh(self, path: str) -> None:
        """Update the note and figure of a study, at most once a minute.

        Args:
            path: The ``path`` of the study's Search.
        """
        if time.monotonic() >= self._due[path]:
            self._describe(self._searches[path])
            self._due[path] = time.monotonic() + _REFRESH_SECONDS

    def refresh_all(self) -> None:
        """Update the notes and figures of all studies; call it at the end of a run."""
        for search in self._searches.values():
            self._describe(search)

    def _describe(self, search: Search) -> None:
        try:
            describe_study(self._storage, search)
        except Exception:
            # A search does not end because the dashboard cannot be updated.
            _logger.exception("%s: the dashboard's note and figure could not be updated", search.study_name)


def describe_study(storage: RDBStorage, search: Search) -> None:
    """Save the note and the Pareto figure of a search's study; does nothing if the study does not exist."""
    if search.study_name not in optuna.get_all_study_names(storage):
        return
    study = optuna.load_study(study_name=search.study_name, storage=storage)
    results = results_of(study)
    note = study_note(results, search)
    # A template would be the largest part of the figure, which every worker reads; the dashboard has its own style.
    figure = front_figure(results, most_dominated=_MOST_DOMINATED).update_layout(template="none")
    # Both are written in several pieces, which must not mix with those of a run on another machine.
    with ClaimLock(storage, f"{search.study_name} in the dashboard"):
        save_note(study, note)
        save_plotly_graph_object(study, figure, graph_object_id=PARETO_FIGURE)


def study_note(results: StudyResults, search: Search) -> str:
    """Return a study's note in Markdown: stage, objectives, number of trials and the current Pareto front."""
    directions = ", ".join(
        f"{objective.quantity.title} {'up' if objective.maximize else 'down'}" for objective in results.objectives
    )
    states = results.frame["state"].value_counts()
    lines = [
        f"Search of object detectors, stage {search.stage}: {directions}. "
        f"{search.space.size:,} architectures; {states.get('complete', 0)} of {search.trials} trials finished so far.",
    ]
    if results.lineage:
        lines.append(f"{results.lineage}.")
    if not results.front.empty:
        lines.append(_front_table(results))
    return "\n\n".join(lines)


def _front_table(results: StudyResults) -> str:
    front = results.front
    metrics = dict.fromkeys(["map", *results.metrics])
    columns = [*map(Column, ["number", *metrics]), *detector_columns(front)]
    rows = [[column.text(trial) for column in columns] for trial in front.head(_MOST_ROWS).to_dict("records")]
    heads = [column.heading for column in columns]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))
    more = f"\n\nand {len(front) - _MOST_ROWS} more" if len(front) > _MOST_ROWS else ""
    return f"The Pareto front, the cheapest first:\n\n{table}{more}"
