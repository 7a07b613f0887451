"""What optuna-dashboard shows of a search besides its own views: notes, the trials' files and the Pareto figure.

A note or a figure lies among the study's attributes, which every worker reads again with each trial: so a trial's note
is short, and the study's note and figure are small and renewed rarely. Files lie in an artifact store, ``artifacts``
in the run's folder; the database keeps their names only.
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
    """Give a trial that is about to end its note and its files.

    Args:
        trial: Evaluated, but not told yet.
        losses: Mean loss of each epoch.
        folder: The trial's, with what its training process has left: config, log, a picture of detections.
        artifacts: Folder of the artifact store; made when missing.
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
        # A trial is worth more than copies of its files.
        note += f"\n\nIts files could not be copied to the artifact store: {error.strerror}."
    save_note(trial, note)


def trial_note(attributes: Mapping[str, Any], losses: Sequence[float]) -> str:
    """Return a trial's note in Markdown: what was trained, how well, at what cost, and how the loss went."""

    def told(name: str, title: str = "") -> str:
        quantity = quantity_of(name)
        return f"{title or quantity.title} {measured_text(name, attributes)} {quantity.unit}".rstrip()

    lines = [f"**{attributes.get('architecture', 'no architecture')}**"]
    if any(name in attributes for name in _PRECISIONS):
        sizes = ", ".join(told(name, title) for name, title in _SIZES.items() if name in attributes)
        precisions = ", ".join(told(name) for name in _PRECISIONS if name in attributes)
        lines.append(f"{precisions} ({sizes})" if sizes else precisions)
    if costs := [told(name) for name in _COSTS if name in attributes]:
        lines.append(", ".join(costs))
    if losses:
        seconds = attributes.get("train_seconds")
        trained = f", trained for {seconds / 60:.1f} min" if seconds else ""
        course = f"{losses[0]:.3g} to {losses[-1]:.3g}"
        lines.append(f"loss by epoch `{sparkline(losses)}` {course}{trained}")
    if "reason" in attributes:
        lines.append(f"failed: {attributes['reason']}")
    return "\n\n".join(lines)


class DashboardUpdater:
    """Updates what optuna-dashboard shows of some studies: the note and the Pareto figure of each.

    Args:
        storage: Where the studies are; those that are not there yet are passed over.
        searches: What they search.
    """

    def __init__(self, storage: RDBStorage, searches: Sequence[Search]) -> None:
        self._storage = storage
        self._searches = {search.path: search for search in searches}
        self._due = dict.fromkeys(self._searches, 0.0)

    def refresh(self, path: str) -> None:
        """Update a study's note and figure, at most once a minute; ``path`` is that of its search."""
        if time.monotonic() >= self._due[path]:
            self._describe(self._searches[path])
            self._due[path] = time.monotonic() + _REFRESH_SECONDS

    def refresh_all(self) -> None:
        """Update every study's note and figure, at the end of a run."""
        for search in self._searches.values():
            self._describe(search)

    def _describe(self, search: Search) -> None:
        try:
            describe_study(self._storage, search)
        except Exception:
            # No search is to end for what is said of it.
            _logger.exception("%s could not be described", search.study_name)


def describe_study(storage: RDBStorage, search: Search) -> None:
    """Give a search's study its note and its Pareto figure; nothing where there is no such study or no result."""
    if search.study_name not in optuna.get_all_study_names(storage):
        return
    study = optuna.load_study(study_name=search.study_name, storage=storage)
    results = results_of(study)
    note = study_note(results, search)
    # The look of the page around it will do; a template would be most of what every worker has to read.
    figure = front_figure(results, most_dominated=_MOST_DOMINATED).update_layout(template="none")
    # Both are written in pieces, which must not mix with those of another machine's run.
    with ClaimLock(storage, f"{search.study_name} in the dashboard"):
        save_note(study, note)
        save_plotly_graph_object(study, figure, graph_object_id=PARETO_FIGURE)


def study_note(results: StudyResults, search: Search) -> str:
    """Return a study's note in Markdown: what is searched for what, how far it is, and its front so far."""
    directions = ", ".join(
        f"{objective.quantity.title} {'up' if objective.maximize else 'down'}" for objective in results.objectives
    )
    states = results.frame["state"].value_counts()
    lines = [
        f"Search of object detectors, stage {search.stage}: {directions}. "
        f"{search.space.size:,} architectures; {search.trials} trials wanted, "
        f"{states.get('complete', 0)} finished so far.",
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
