"""How fast does each pair of features turn, and how far inside a length?

python -m experiments.pairs --d_head 32 --length 256 --rope.scaling yarn --rope.factor 4 --rope.original_length 256
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import math
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from harness.messages import BadInput, run_main
from harness.options import Parser
from harness.ranges import AtLeast1, explain
from harness.scalings import yarn_warning
from rope import SCALING_FIELDS, RopeConfig, frequencies


def pairs(config: RopeConfig, d_head: int, length: int) -> list[str]:
    """A line per pair: its frequency, wavelength and turns inside `length` tokens, before and after scaling."""
    theta, attention_factor = frequencies(config, d_head, length)
    unscaled = replace(config, **dict.fromkeys(SCALING_FIELDS), scaling="none", fraction=2 * len(theta) / d_head)
    plain, _ = frequencies(unscaled, d_head, length)
    lines = [f"{'pair':>4} {'theta':>12} {'wavelength':>12} {'turns':>9}    scaled: theta, as a share, turns"]
    for i, (before, after) in enumerate(zip(plain.tolist(), theta.tolist(), strict=True)):
        wave = 2 * math.pi / before
        line = f"{i:>4} {before:>12.6g} {wave:>12.6g} {length / wave:>9.4g}    "
        lines.append(line + f"{after:>12.6g} {after / before:>7.3f} {length * after / (2 * math.pi):>9.4g}")
    lines.append(f"cos and sin are multiplied by {attention_factor:.6g}")
    return lines + [f"warning: {warning}" for warning in [yarn_warning(config, d_head)] if warning]


def main(argv: list[str] | None = None) -> None:
    """Print the table of pairs for the options of the command line."""
    parser = Parser(prog="experiments.pairs", description=__doc__)
    parser.add_class_arguments(RopeConfig, "rope")
    parser.add_argument("--d_head", type=Annotated[int, Field(ge=2, le=65536)], default=32, help="width of a head")
    parser.add_argument("--length", type=AtLeast1, default=256, help="length in use, tokens")
    asked = parser.parse_args(argv)
    try:
        config = parser.instantiate(asked).rope
        if config.scaling == "longrope" and config.original_length and not (config.factor or config.attention_factor):
            config = replace(config, factor=max(1.0, asked.length / config.original_length))
        print("\n".join(pairs(config, asked.d_head, asked.length)))
    except ValueError as error:
        raise BadInput(f"--{explain(error)}") from error


if __name__ == "__main__":
    run_main(main, prints=True)
