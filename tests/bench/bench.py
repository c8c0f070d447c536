"""make bench: our programs against their peers, pairwise, one JSON line a row.

    bench.py [--pairs N] [--threads N] [--cpu_isa LEVEL] [--no-record] [ROW...]      default: every row

Each row checks in the same run that both sides computed the same thing, and fails if they did not. A
row's `ratio` is the median over pairs of peer / ours: above 1 we are faster. Lines go to stdout and,
with date, machine and command, to results/DATE-MACHINE.jsonl.
"""

import argparse
import datetime
import json
import pathlib
import re
import shlex
import subprocess
import sys

import gpu_rows
import model_rows
import server_rows
from pairs import ROOT, cpu, summary, surroundings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

BENCH = pathlib.Path(__file__).resolve().parent


def attention_rows(options, rows):
    """attention_bench measures both sides in one process and prints the samples."""
    command = [str(ROOT / "build/bin/attention_bench"), f"--pairs={options.pairs}",
               f"--threads={options.threads}", f"--cpu_isa={options.cpu_isa}", *rows]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            row = json.loads(line)
            samples = row.pop("samples", None)
            if samples:
                row.update(summary([tuple(pair) for pair in samples]))
            yield row
    if process.returncode:
        raise RuntimeError(f"attention_bench: exit status {process.returncode}")


GROUPS = {
    "model": (model_rows.ROWS, model_rows.measure),
    "server": (server_rows.ROWS, server_rows.measure),
    "gpu": (gpu_rows.ROWS, gpu_rows.measure),
    "attention": (("A0", "A4", "A5", "A6", "A6b", "E1", "E2", "E3", "E11", "E17"), attention_rows),
}


def judge(row):
    """ok: the outputs agree and the row's pass mark, where it has one, is met."""
    agreed = row.get("error", 0) <= row.get("error_limit", float("inf"))
    value, mark = row.get("value", row.get("ratio")), row.get("pass_mark")
    reached = mark is None or (value <= mark if row.get("lower_is_better") else value >= mark)
    row["agreed"], row["ok"] = bool(agreed), bool(agreed and reached)
    return row


def record(row):
    model, _ = cpu()
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    day = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    (BENCH / "results").mkdir(exist_ok=True)
    with open(BENCH / "results" / f"{day}-{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu_isa", default="auto", help="level of the attention rows (denoised --help)")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("rows", nargs="*")
    options = parser.parse_args()
    known = [row for rows, _ in GROUPS.values() for row in rows]
    unknown = sorted(set(options.rows) - set(known))
    if unknown:
        parser.error(f"unknown rows {unknown}; there are {known}")
    return options


def main():
    options = parse()
    command = shlex.join(["make", "bench", *([f"ROWS={' '.join(options.rows)}"] if options.rows else [])])
    all_agreed = True
    for rows, measure in GROUPS.values():
        wanted = [row for row in rows if not options.rows or row in options.rows]
        if not wanted:
            continue
        for row in measure(options, wanted):
            line = judge({**row, **surroundings(options.threads, command)})
            all_agreed = all_agreed and line["agreed"]
            print(json.dumps(line), flush=True)
            if not options.no_record:
                record(line)
    return 0 if all_agreed else 1


if __name__ == "__main__":
    sys.exit(main())
