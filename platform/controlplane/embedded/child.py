"""Command lines of children that must not outlive the supervisor, even when it is killed."""

import shutil
import signal


def tied(argv: list[str], death_signal: signal.Signals) -> list[str]:
    """`argv`, to be sent `death_signal` by the kernel when its parent is gone."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise FileNotFoundError("setpriv is not on PATH: install util-linux")
    return [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG"), "--", *argv]
