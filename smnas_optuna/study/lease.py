"""Lease: a worker's exclusive right to a running trial, renewed in the database until the trial ends.

A running trial has one owner: the worker that recorded its identity in the user attribute ``worker``. The owner renews
its lease at regular intervals. Another worker that finds the lease expired takes the trial over: it fails the trial in
one transaction (see ``retry.py``). The former owner notices at its next renewal or its next write to the trial, and
stops.
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

# Seconds after which a failed renewal is retried.
_RETRY_SECONDS = 2.0


class LeaseLost(Exception):
    """Another worker has taken over the trial; this worker must no longer write to the trial or its folder."""


class Lease:
    """A context manager for the evaluation of a trial: records this process as the owner and renews the lease.

    To react to a lost lease at once, pass the lease to :func:`multiprocessing.connection.wait`: its ``fileno()``
    becomes readable when the lease is lost.

    Args:
        storage: The storage that holds the trial.
        trial: The trial, just started by this process.

    Raises:
        LeaseLost: On entering the context, if another worker has already taken over the trial.
    """

    def __init__(self, storage: PatientStorage, trial: optuna.Trial) -> None:
        self._storage = storage
        self._trial = trial
        self._released = threading.Event()
        self._receiver, self._sender = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._renew, name=f"lease of trial {trial.number}", daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self._trial.set_user_attr("worker", str(ProcessIdentity.current()))
            renew = partial(self._storage.renew_lease, id_of(self._trial))
            if not wait_for_database(renew, self._storage.patience):
                raise LeaseLost(self._message)
        except UpdateFinishedTrialError:
            self._close()
            raise LeaseLost(self._message) from None
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()
        self._close()

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the lease is lost."""
        return self._receiver.fileno()

    def check(self) -> None:
        """Raise :class:`LeaseLost` if a renewal has found that another worker has taken over the trial."""
        if self._receiver.poll():
            raise LeaseLost(self._message)

    @property
    def _message(self) -> str:
        return f"another worker has taken over trial {self._trial.number}"

    def _renew(self) -> None:
        wait = self._storage.lease_seconds
        while not self._released.wait(wait):
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
        # Sessions are per thread; otherwise the connection of this thread would stay open.
        self._storage.remove_session()

    def _close(self) -> None:
        self._receiver.close()
        self._sender.close()
