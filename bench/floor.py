"""What this machine needs at least for one replicated commit: a sync on a quorum and a message there and back."""

import multiprocessing
import os
import socket
import statistics
import time

SECONDS = 3
WRITERS = 3
# About what one small entry takes in a Raft log.
RECORD = b"x" * 300


def _sync_loop(path, seconds, took):
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    end, times = time.monotonic() + seconds, []
    while time.monotonic() < end:
        started = time.monotonic()
        os.write(file, RECORD)
        os.fdatasync(file)
        times.append(time.monotonic() - started)
    os.close(file)
    took.put(statistics.median(times))


def fdatasync_ms(folder):
    """Median of append + fdatasync while three processes do it at once."""
    took = multiprocessing.Queue()
    writers = [
        multiprocessing.Process(target=_sync_loop, args=(folder / f"sync{n}", SECONDS, took)) for n in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    medians = [took.get() for _ in writers]
    for writer in writers:
        writer.join()
    return statistics.median(medians) * 1000


def _echo(listener):
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(len(RECORD)):
        connection.sendall(data)


def round_trip_ms():
    """Median of a small message to another process on loopback and back."""
    listener = socket.create_server(("127.0.0.1", 0))
    echo = multiprocessing.Process(target=_echo, args=(listener,))
    echo.start()
    with socket.create_connection(listener.getsockname()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end, times = time.monotonic() + SECONDS, []
        while time.monotonic() < end:
            started = time.monotonic()
            connection.sendall(RECORD)
            connection.recv(len(RECORD))
            times.append(time.monotonic() - started)
    echo.join()
    listener.close()
    return statistics.median(times) * 1000
