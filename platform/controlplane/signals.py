"""How a looping process is told to end."""

import signal
import threading


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set; loops end after the step that they are in."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
