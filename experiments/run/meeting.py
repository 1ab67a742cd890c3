"""Waits until all processes of a run are there.

JAX aborts a process if another one does not come. So the processes meet before they start JAX.
"""

import contextlib
import socket
import time

from experiments.run.errors import RunError

_HELLO, _START = b"jbn hello", b"jbn start"


def meet(coordinator: str, processes: int, process: int, seconds: float) -> None:
    """Returns when all processes have met.

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      processes: number of processes.
      process: number of this process, from 0.
      seconds: number of seconds to wait at most.

    Raises:
      RunError: not all processes came in time.
    """
    host, port = coordinator.rsplit(":", 1)
    end = time.monotonic() + seconds
    if process == 0:
        others = processes - 1
        print(
            f"waiting for {others} more process{'es' * (others > 1)} at {coordinator}", flush=True
        )
        _gather(int(port), others, end, coordinator)
    else:
        print(f"waiting for {coordinator}", flush=True)
        _call(host, int(port), end, coordinator)


def _gather(port: int, others: int, end: float, coordinator: str) -> None:
    """Waits for a hello from each of the other processes, and then tells all to start."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise RunError(
                f"--coordinator {coordinator}: process 0 cannot listen there ({error.strerror}). "
                "Choose another port."
            ) from error
        met: list[socket.socket] = []
        while len(met) < others:
            server.settimeout(max(end - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError as error:
                raise RunError(
                    f"--coordinator {coordinator}: only {len(met)} of {others} other processes "
                    "came in time. Start them with the same flags but --process, or raise --wait."
                ) from error
            stack.enter_context(connection)
            if _received(connection, 5.0) == _HELLO:
                met.append(connection)
        for connection in met:
            connection.sendall(_START)
            _received(connection, 5.0)  # The other side closes first, so that the port is free.


def _call(host: str, port: int, end: float, coordinator: str) -> None:
    """Says hello to process 0, and waits until it tells to start."""
    reason: object = "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(5.0, left)) as connection:
                connection.sendall(_HELLO)
                if _received(connection, left) == _START:
                    return
        except OSError as error:
            reason = error.strerror or error
        except UnicodeError as error:  # A part of the name is too long.
            reason = error
            break
        time.sleep(0.2)
    raise RunError(
        f"--coordinator {coordinator}: process 0 could not be reached in time ({reason}). Start "
        "it, or check the address."
    )


def _received(connection: socket.socket, seconds: float) -> bytes:
    """Returns a word from the other side, or nothing if it closes or does not answer in time."""
    connection.settimeout(seconds)
    word = b""
    with contextlib.suppress(OSError):
        while len(word) < len(_HELLO) and (part := connection.recv(len(_HELLO) - len(word))):
            word += part
    return word
