"""What an experiment adds to a run: `--plugin experiments.NAME` imports a module of this tree's experiments/.

Such a module may register a scheme in positions.SCHEMES, a task in harness.tasks.TASKS, and so on. The run's
config.yaml keeps its name, and whatever loads the run loads it too.

python train.py --plugin experiments.my_scheme --model.position my_scheme
"""

import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.messages import BadInput

TREE = Path(__file__).parents[1]
LOADED: list[str] = []  # names, in the order in which they were loaded


def load_plugins(names: Iterable[str] | None, asked_by: str = "--plugin") -> None:
    """Import modules of this tree's experiments/, each once.

    Args:
        names: experiments.NAME for each.
        asked_by: the flag or the file that names them, for messages.

    Raises:
        BadInput: for a name that is no such module.
    """
    for name in names or ():
        if name in LOADED:
            continue
        file = TREE / f"{str(name).replace('.', '/')}.py"
        if not re.fullmatch(r"experiments\.\w+", str(name)) or not file.is_file():
            raise BadInput(f"{asked_by} {name} is not here: give experiments.NAME, a file NAME.py in {file.parent}")
        spec = importlib.util.spec_from_file_location(name, file)  # this file, whatever sys.path says
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        LOADED.append(name)
