"""Is the comparison fair? Every scheme at several learning rates, and the sinusoidal waves at several amplitudes.

    make sweep

The headline comparison trains all schemes at one rate. This gives each scheme its chance at others, with everything
else as in the headline, and writes down what came out: learning_rate.json, sinusoidal_amplitude.json and SWEEPS.md,
beside this file. Runs that are finished are not repeated. About an hour on two cores without bf16.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import compare
from harness import report
from harness.files import write_whole
from harness.messages import run
from harness.tables import markdown
from model import ModelConfig
from train import RunConfig

HERE = Path(__file__).parents[1] / "results"
SCHEMES = ["sinusoidal", "learned", "alibi", "rope"]
RATES = [RunConfig.learning_rate, RunConfig.learning_rate * 2, RunConfig.learning_rate / 2]
AMPLITUDES = [0.02, 0.14, 1.0]


def sweep(out: Path, argv: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sweeps.

    Args:
        out: folder of the runs.
        argv: further options of compare.py, the same for all.

    Returns:
        What becomes of learning_rate.json and sinusoidal_amplitude.json.
    """
    default = str(out / "compare")
    rates, amplitudes = [], []
    for rate in RATES:
        folder = default if rate == RunConfig.learning_rate else str(out / f"rate-{rate:g}")
        options = ["--schemes", *SCHEMES, "--run.learning_rate", str(rate), "--out", folder, *argv]
        options += ["--multiples", "1"] * (folder != default)
        summary = compare.main(options)
        rates += [figures(one, learning_rate=rate) for one in summary["runs"]]
        settings = report.settings(summary["config"])
    for amplitude in AMPLITUDES:
        folder = default if amplitude == ModelConfig.sinusoidal_amplitude else str(out / f"amplitude-{amplitude:g}")
        schemes = SCHEMES if folder == default else ["sinusoidal"]
        options = ["--schemes", *schemes, "--model.sinusoidal_amplitude", str(amplitude), "--out", folder, *argv]
        options += ["--multiples", "1", "--run.threads", "1"] * (folder != default)  # one thread, as side by side
        summary = compare.main(options)
        amplitudes += [figures(r, amplitude=amplitude) for r in summary["runs"] if r["scheme"] == "sinusoidal"]
    made = {"command": "make sweep", "commit": summary["commit"], "versions": summary["versions"]}
    best = {scheme: min((r for r in rates if r["scheme"] == scheme), key=lambda r: r["val_loss"]) for scheme in SCHEMES}
    return (
        {**made, "settings": settings, "best": best, "runs": rates},
        {**made, "settings": settings, "runs": amplitudes},
    )


def figures(one: dict[str, Any], **varied: float) -> dict[str, Any]:
    """What is written down of a run: what was varied and what came out."""
    names = ("scheme", "seed", "steps", "val_loss", "bits_per_byte", "test_loss", "seconds")
    return {**{name: one[name] for name in names}, **varied}


def page(rates: dict[str, Any], amplitudes: dict[str, Any]) -> str:
    """Both sweeps as a page."""
    schemes = list(rates["best"])
    values = sorted({r["learning_rate"] for r in rates["runs"]})
    rows = [["learning rate", *schemes]]
    for rate in values:
        found = {r["scheme"]: r["bits_per_byte"] for r in rates["runs"] if r["learning_rate"] == rate}
        rows.append(
            [
                f"{rate:g}" + (" (headline)" if rate == RunConfig.learning_rate else ""),
                *(
                    f"{found[s]:.4f}" + (" (best)" if rates["best"][s]["learning_rate"] == rate else "")
                    for s in schemes
                ),
            ]
        )
    waves = [["amplitude of the waves", "bits per byte"]]
    waves += [[f"{r['amplitude']:g}", f"{r['bits_per_byte']:.4f}"] for r in amplitudes["runs"]]
    steps, seeds = rates["runs"][0]["steps"], sorted({r["seed"] for r in rates["runs"]})
    machine = ", ".join(f"{name} {value}" for name, value in rates["versions"].items())
    edge = [s for s in schemes if rates["best"][s]["learning_rate"] in (values[0], values[-1])]
    return "\n".join(
        [
            "# Sweeps: is the comparison fair?",
            "",
            f"Bits per byte on the whole validation split after {steps} steps, seed {', '.join(map(str, seeds))}, "
            "all else as",
            "in `make compare`. Rates and the amplitude are chosen on validation only.",
            "",
            "## Learning rate",
            "",
            *markdown(rows),
            "",
            "One seed a cell, which cannot tell luck: SURPRISES.md has more seeds of sinusoidal, at two of the rates."
            + (f" The best rate of {', '.join(edge)} is at the edge of what was tried." if edge else ""),
            "",
            "## Amplitude of the sinusoidal waves",
            "",
            "Embeddings start with a standard deviation of 0.02; the paper's waves have amplitude 1 beside "
            "embeddings of",
            "about 1.",
            "",
            *markdown(waves),
            "",
            f"Made by `{rates['command']}` at commit {rates['commit'] or 'unknown'} with {machine}.",
            "",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Run both sweeps with further options of compare.py, and write down what came out."""
    rates, amplitudes = sweep(Path(os.path.relpath(HERE.parent / "runs")), sys.argv[1:] if argv is None else argv)
    write_whole(HERE / "learning_rate.json", json.dumps(rates, indent=2) + "\n")
    write_whole(HERE / "sinusoidal_amplitude.json", json.dumps(amplitudes, indent=2) + "\n")
    write_whole(HERE / "SWEEPS.md", page(rates, amplitudes))
    print(page(rates, amplitudes))


if __name__ == "__main__":
    run(main)
