#!/usr/bin/env python3
"""Prints, from the JSON of fit_bench with its peers, a table of how many times as fast as each peer fit is.

    fit_bench --benchmark_out=bench.json --benchmark_out_format=json --benchmark_repetitions=5 \\
              --benchmark_enable_random_interleaving
    ratios.py bench.json
    ratios.py --best bench.json  # only the fastest peer of each

Times are medians of the repetitions. Above 1, fit is faster.
"""
import collections
import json
import re
import statistics
import sys


def entries(path):
    """Median seconds by (work and shape, library), and shares of the peak, from the repetitions of one run."""
    try:
        with open(path, encoding="utf-8") as file:
            runs = json.load(file)["benchmarks"]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{path} is not the JSON of a run of fit_bench: {error}")
    unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}
    seconds, shares, moved = (collections.defaultdict(list) for _ in range(3))
    for run in runs:
        if run.get("run_type") != "iteration" or "of_peak" not in run:
            continue
        # Work/library/argument:value/..., or without the library for fit itself.
        parts = [part for part in run["name"].split("/") if part != "real_time"]
        library = parts.pop(1) if len(parts) > 1 and ":" not in parts[1] else "fit"
        key = ("/".join(parts), library)
        seconds[key].append(run["real_time"] * unit[run["time_unit"]])
        shares[key].append(run["of_peak"])
        moved[key].append("label" in run)
    if not any(library != "fit" for _, library in seconds):
        sys.exit(f"{path} has no runs of peers: fit_bench needs -DFIT_BENCH_PEERS=ON, and reports more than aggregates")
    median = {key: statistics.median(values) for key, values in seconds.items()}
    return median, {key: statistics.median(values) for key, values in shares.items()}, moved


def table(threads, seconds, shares, moved):
    """The rows of works on so many threads; returns whether a figure is unsteady."""
    suffix = f"/threads:{threads}"
    works = sorted({work for work, library in seconds if library == "fit" and work.endswith(suffix)}, key=order)
    libraries = sorted({library for work, library in seconds if library != "fit" and work.endswith(suffix)})
    works = [work for work in works if any((work, library) in seconds for library in libraries)]
    print(f"| {threads} thread{'s' if threads > 1 else ''} | fit, ms | of the peak |", " | ".join(libraries), "|")
    print("| --- " * (3 + len(libraries)) + "|")
    unsteady = False
    for work in works:
        cells = []
        for library in ["fit", *libraries]:
            key = (work, library)
            if key not in seconds:
                cells.append("-")
                continue
            mark = "*" if 2 * sum(moved[key]) > len(moved[key]) else ""
            unsteady = unsteady or bool(mark)
            if library == "fit":
                cells += [f"{1e3 * seconds[key]:.3g}{mark}", f"{100 * shares[key]:.0f} %"]
            else:
                cells.append(f"{seconds[key] / seconds[(work, 'fit')]:.2f}{mark}")
        print("|", work.removesuffix(suffix).replace("/", " "), "|", " | ".join(cells), "|")
    print()
    return unsteady


def best(threads, seconds, shares):
    """One table: the share of the peak and the fastest peer, for each number of threads."""
    heads = [f"{count} thread{'s' if count > 1 else ''} | beside the fastest peer" for count in threads]
    print("| of the peak |", " | ".join(heads), "|")
    print("| --- " * (1 + 2 * len(threads)) + "|")
    works = sorted({work.rsplit("/threads:", 1)[0] for work, library in seconds if library == "fit"}, key=order)
    for work in works:
        cells = []
        for count in threads:
            name = f"{work}/threads:{count}"
            peers = {library: time for (of, library), time in seconds.items() if of == name and library != "fit"}
            if not peers or (name, "fit") not in seconds:
                cells += ["-", "-"]
                continue
            fastest = min(peers, key=peers.get)
            ratio = peers[fastest] / seconds[(name, "fit")]
            cells += [f"{100 * shares[(name, 'fit')]:.0f} %", f"{ratio:.2f} ({fastest})"]
        if any(cell != "-" for cell in cells):
            print("|", work.replace("/", " "), "|", " | ".join(cells), "|")


def order(work):
    """Sorts by name, and by the numbers in it as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", work)]


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--best"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    seconds, shares, moved = entries(arguments[0])
    threads = sorted({int(work.rsplit(":", 1)[1]) for work, _ in seconds if "/threads:" in work})
    if "--best" in sys.argv:
        best(threads, seconds, shares)
    elif any([table(count, seconds, shares, moved) for count in threads]):
        print("\\* The peak moved by more than 5 % while most of these were measured.")


if __name__ == "__main__":
    main()
