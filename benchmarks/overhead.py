"""Overhead of a search: the share of its wall time that is not spent on training, evaluating and timing.

Runs a shipped recipe in a temporary folder, and compares the wall time with the times that its trials recorded. Prints
too how long it takes until the device is ready and until the first epoch has ended.

    python benchmarks/overhead.py [RECIPE] [run_study's options]
"""

import subprocess
import sys
import tempfile
import time

import optuna

from smnas_optuna.study import load_study
from smnas_optuna.study.trial_outcome import evaluated_trials

# What run_study prints at moments that a user waits for.
_MOMENTS = {"device ready": " is ready on ", "first epoch": ": epoch 1/"}


def main() -> None:
    arguments = sys.argv[1:] or ["digits"]
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/smnas.db"
        command = [sys.executable, "-m", "smnas_optuna.run_study", *arguments]
        started = time.perf_counter()
        moments: dict[str, float] = {}
        command += ["--storage", storage, "--output", f"{folder}/output"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="")
                for moment, text in _MOMENTS.items():
                    if text in line:
                        moments.setdefault(moment, time.perf_counter() - started)
        wall = time.perf_counter() - started
        if process.returncode:
            sys.exit(process.returncode)
        (name,) = optuna.get_all_study_names(storage)
        trials = evaluated_trials(load_study(storage, name))
    parts = {
        part: sum(trial.user_attrs.get(f"{part}_seconds", 0.0) for trial in trials)
        for part in ("train", "evaluation", "timing")
    }
    trial_overheads = [
        trial.user_attrs["seconds"] - sum(trial.user_attrs[f"{part}_seconds"] for part in parts)
        for trial in trials
        if "seconds" in trial.user_attrs
    ]
    for part, seconds in parts.items():
        print(f"{part:12} {seconds:8.1f} s  {seconds / wall:6.1%}")
    overhead = wall - sum(parts.values())
    print(f"{'overhead':12} {overhead:8.1f} s  {overhead / wall:6.1%}  of {wall:.1f} s for {len(trials)} trials")
    for moment, seconds in moments.items():
        print(f"{moment:12} after {seconds:.1f} s")
    print(f"start, recording and end of a trial: median {sorted(trial_overheads)[len(trial_overheads) // 2]:.2f} s")


if __name__ == "__main__":
    main()
