"""Is the comparison fair? Every scheme at several learning rates, and sinusoidal waves at several amplitudes.

    python -m experiments.sweeps      or make sweep: about an hour on two cores without bf16; finished runs stay

`make compare` trains all schemes at one learning rate. Here each scheme is also trained at half and at twice that rate.
Writes results/learning_rate.json, results/sinusoidal_amplitude.json and results/SWEEPS.md.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import json
import os
import sys
from pathlib import Path
from typing import Any

import compare
from harness import report
from harness.files import write_whole
from harness.messages import run_main
from harness.pages import ROOT, replace_section
from harness.tables import markdown
from positions import SinusoidalOptions
from train import RunConfig

RESULTS, RATE = ROOT / "results", RunConfig.learning_rate
SCHEMES = ["sinusoidal", "learned", "alibi", "rope"]
AMPLITUDE = SinusoidalOptions.amplitude


def sweep(out: Path, argv: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sweeps, with runs in `out` and further options of compare.py: what goes into the two files."""

    made: dict[str, Any] = {"command": "make sweep"}

    def train(folder: str, schemes: list[str], *options: str, **varied: float) -> list[dict[str, Any]]:
        only_trained = ["--multiples", "1"] if folder != "compare" else []
        summary = compare.main(["--schemes", *schemes, *options, "--out", str(out / folder), *argv, *only_trained])
        made.update({name: summary[name] for name in ("commit", "versions")})
        made["settings"] = report.select_settings(summary["config"])
        names = ("scheme", "seed", "steps", "val_loss", "bits_per_byte", "test_loss", "seconds")
        return [{name: one[name] for name in names} | varied for one in summary["runs"]]

    rates, amplitudes = [], []
    for amplitude in (0.02, AMPLITUDE, 1.0):
        options = ["--model.sinusoidal.amplitude", str(amplitude), "--run.threads", "1"]  # as when runs go side by side
        other = (f"amplitude-{amplitude:g}", SCHEMES[:1], *options)
        found = train(*(("compare", SCHEMES) if amplitude == AMPLITUDE else other), amplitude=amplitude)
        amplitudes += [one for one in found if one["scheme"] == SCHEMES[0]]
    for rate in (RATE, RATE * 2, RATE / 2):
        folder = "compare" if rate == RATE else f"rate-{rate:g}"
        rates += train(folder, SCHEMES, "--run.learning_rate", str(rate), learning_rate=rate)
    best = {scheme: min((r for r in rates if r["scheme"] == scheme), key=lambda r: r["val_loss"]) for scheme in SCHEMES}
    return {**made, "best": best, "runs": rates}, {**made, "runs": amplitudes}


def section(rates: dict[str, Any], amplitudes: dict[str, Any]) -> str:
    """What results/SWEEPS.md shows of both sweeps."""
    best, runs = rates["best"], rates["runs"]
    values = sorted({one["learning_rate"] for one in runs})
    rows = [["learning rate", *best]]
    for rate in values:
        found = {one["scheme"]: one["bits_per_byte"] for one in runs if one["learning_rate"] == rate}
        cells = [f"{found[s]:.4f}" + " (best)" * (best[s]["learning_rate"] == rate) for s in best]
        rows.append([f"{rate:g}" + " (make compare)" * (rate == RATE), *cells])
    waves = [["amplitude of the waves", "bits per byte"]]
    waves += [[f"{one['amplitude']:g}", f"{one['bits_per_byte']:.4f}"] for one in amplitudes["runs"]]
    edge = ", ".join(s for s in best if best[s]["learning_rate"] in (values[0], values[-1]))
    seeds = ", ".join(map(str, sorted({one["seed"] for one in runs})))
    made_with = ", ".join(f"{name} {value}" for name, value in rates["versions"].items())
    made = f"Bits per byte on the whole validation split after {runs[0]['steps']} steps, seed {seeds}. Made by "
    made += f"`{rates['command']}` at commit {rates['commit'] or 'unknown'} with {made_with}."
    at_edge = [f"The best rate of {edge} lies at the edge of the range that was tried.", ""] if edge else []
    return "\n".join([made, "", *markdown(rows), "", *at_edge, *markdown(waves)])


def main(argv: list[str] | None = None) -> None:
    """Run both sweeps with further options of compare.py, and write what came out."""
    rates, amplitudes = sweep(Path(os.path.relpath(ROOT / "runs")), sys.argv[1:] if argv is None else argv)
    text = section(rates, amplitudes)
    write_whole(RESULTS / "learning_rate.json", json.dumps(rates, indent=2) + "\n")
    write_whole(RESULTS / "sinusoidal_amplitude.json", json.dumps(amplitudes, indent=2) + "\n")
    replace_section("experiments/sweeps.py", text)
    print(text)


if __name__ == "__main__":
    run_main(main)
