"""What each method gains over the student alone, as many updates each, by the number of labels.

    python docs/results/labels_figure.py runs/labels-250 runs/labels-1000 runs/labels-4000 --out labels.png

Reads the ``paired.csv`` that ``flowstill reproduce cifar10-labels`` left in each folder, whose name ends in the number.
"""

import argparse
import csv
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from flowstill.reports.charts import COLOURS, GREY

matplotlib.use("Agg")
NAMES = {  # a first stage has the colour of its method
    "kd": ("soft logits", 0),
    "fsp_joint": ("FSP", 1),
    "hints_joint": ("hints", 2),
    "nst": ("NST", 3),
    "attention": ("attention", 4),
    "svd_joint": ("SVD", 5),
    "hints": ("hints, first stage", 2),
    "svd": ("SVD, first stage", 5),
    "fsp": ("FSP, first stage", 1),
}


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    asked = parser.parse_args()
    labels = [int(folder.name.rpartition("-")[2]) for folder in asked.folders]
    gains = {}
    for folder in asked.folders:
        with (folder / "paired.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["baseline"] == "alone_total":
                    gains.setdefault(row["row"], []).append([float(row[key]) for key in ("mean", "low", "high")])
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (row, (name, colour)) in enumerate(NAMES.items()):
        moved = 1.05 ** (number - 4)  # a little apart, so that no interval hides another
        mean, low, high = zip(*gains[row], strict=True)
        style = {
            "color": COLOURS[colour],
            "linestyle": "--" if "first" in name else "-",
            "marker": "o",
            "markersize": 4,
        }
        off = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
        axes.errorbar([n * moved for n in labels], mean, yerr=off, label=name, elinewidth=0.8, capsize=2, **style)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(labels, [f"{n:,}".replace(",", " ") for n in labels])
    axes.minorticks_off()
    axes.set_xlabel("labels of CIFAR-10")
    axes.set_ylabel("points above the student alone")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(asked.out, dpi=130)


if __name__ == "__main__":
    main()
