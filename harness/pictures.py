"""What pictures share."""

import os
from typing import Any


def plotting() -> Any:
    """matplotlib's pyplot, for pictures that go to files: no screen is needed, nor what a notebook's MPLBACKEND names.

    Here and not above: it takes a second, and most scripts draw nothing.
    """
    os.environ["MPLBACKEND"] = "Agg"  # before the import, which refuses a name that is not installed
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
