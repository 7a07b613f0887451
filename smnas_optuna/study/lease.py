"""Lease: a worker's exclusive hold on a running trial, renewed in the database until the trial ends.

A trial has one owner at a time: the worker that signed it, while the trial runs. The owner renews its lease; another
worker that finds it expired takes the trial over in one transaction, which ends the trial for its owner as well (see
``retry.py``). The owner notices at its next renewal, or at whatever it writes to the trial, and stops.
"""

import logging
import threading
from functools import partial
from multiprocessing import Pipe
from types import TracebackType

import optuna
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from smnas_optuna.study.optuna_internals import id_of
from smnas_optuna.study.patient_storage import PatientStorage, wait_for_database
from smnas_optuna.study.process_identity import ProcessIdentity

_logger = logging.getLogger(__name__)

# How soon a renewal that the database did not answer is tried again, in seconds.
_RETRY_SECONDS = 2.0


class LeaseLost(Exception):
    """Another worker has taken over the trial; this one must not write to it or its folder any more."""


class Lease:
    """Holds a running trial for this process; use it as a context manager around the trial's evaluation.

    It has a ``fileno()`` that becomes readable when the lease is lost, for :func:`multiprocessing.connection.wait`.

    Args:
        storage: The database that the trial is in.
        trial: The trial, just started.
    """

    def __init__(self, storage: PatientStorage, trial: optuna.Trial) -> None:
        self._storage = storage
        self._trial = trial
        self._over = threading.Event()
        self._receiver, self._sender = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._renew, name=f"lease of trial {trial.number}", daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self._trial.set_user_attr("worker", str(ProcessIdentity.current()))
            renew = partial(self._storage.renew_lease, id_of(self._trial))
            if not wait_for_database(renew, self._storage.patience):
                raise LeaseLost(self._text)
        except UpdateFinishedTrialError:
            self._close()
            raise LeaseLost(self._text) from None
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._close()

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the lease is lost."""
        return self._receiver.fileno()

    def check(self) -> None:
        """Raise :class:`LeaseLost` where it is known that another worker has taken over the trial."""
        if self._receiver.poll():
            raise LeaseLost(self._text)

    @property
    def _text(self) -> str:
        return f"another worker has taken over trial {self._trial.number}"

    def _renew(self) -> None:
        wait = self._storage.lease_seconds
        while not self._over.wait(wait):
            try:
                is_held = self._storage.renew_lease(id_of(self._trial))
                wait = self._storage.lease_seconds
            except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
                _logger.debug("the lease of trial %d could not be renewed: %s", self._trial.number, error)
                self._storage.note_failure()
                wait = min(_RETRY_SECONDS, self._storage.lease_seconds)
                continue
            if not is_held:
                self._sender.send(None)
                break
        # This thread's own; the database would keep its connection open.
        self._storage.remove_session()

    def _close(self) -> None:
        self._receiver.close()
        self._sender.close()
