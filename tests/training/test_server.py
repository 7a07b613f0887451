"""The server that processes are forked from, and that they share."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, signal
from smnas_optuna.training.server import context, sharing

def tell(sender):
    sender.send(os.getppid())

def fork(sender, receiver):
    while receiver.recv():
        process = sharing(tell, sender)
        process.start()
        process.join()

if __name__ == "__main__":
    answers, sender = context.Pipe(duplex=False)
    receiver, orders = context.Pipe(duplex=False)
    process = sharing(fork, sender, receiver)
    process.start()
    orders.send(True)
    server = answers.recv()
    print(process.is_alive(), server == int(open(f"/proc/{process.pid}/stat").read().split()[3]))
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    for _ in range(2):
        orders.send(True)
        print(answers.recv() != server)
    orders.send(False)
"""


def test_a_process_shares_its_parents_server_and_starts_another_one_when_that_has_died(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "program.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.split() == ["True"] * 4, ended.stderr
