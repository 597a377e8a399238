"""`python -m inference.gateway`: settings from the environment, then serve."""

import gc
import logging
import sys

import uvloop

from inference.gateway.app import App, raise_file_limit
from inference.gateway.config import Config, Misconfigured, from_environment
from inference.gateway.recovery import InUse

# Requests leave few cycles behind: look for them rarely and a few at a time, and never again at what a start made.
GC_THRESHOLD = 5_000
# A thread reads the journal for the meter: the loop waits no longer than this until it has the interpreter again.
SWITCH_S = 0.0005


async def _serve(config: Config) -> None:
    app = App(config)
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    await app.run()


def main() -> int:
    """Exit status: 0 after a drain, 2 for settings that cannot work."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    raise_file_limit()
    sys.setswitchinterval(SWITCH_S)
    try:
        uvloop.run(_serve(from_environment()))
    except (Misconfigured, InUse) as refusal:
        logging.critical("%s", refusal)  # noqa: LOG015  # the process's own last word
        return 2
    except OSError as failure:
        logging.critical("cannot start: %s", failure)  # noqa: LOG015
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
