"""make bench: our programs against their peers, pairwise, one JSON line a row.

    bench.py [--pairs N] [--threads N] [--cpu_isa LEVEL|auto|all] [--earlier MODEL_BENCH] [--no-record] [ROW...]

Each row checks in the same run that both sides computed the same thing, and fails if they did not. A
row's `ratio` is the median over pairs of peer / ours: above 1 we are faster. Lines go to stdout and,
with date, machine and command, to results/DATE-MACHINE.jsonl; a line for people goes to stderr.
"""

import argparse
import datetime
import json
import pathlib
import re
import shlex
import subprocess
import sys

import batching_rows
import decoder_rows
import gpu_rows
import growth_rows
import model_rows
import server_rows
import serving_model_rows
import transformer_rows
from inputs import fastest_level
from marks import judge, sentence
from pairs import LEVELS, ROOT, cpu, levels, summary, surroundings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

BENCH = pathlib.Path(__file__).resolve().parent
# Rows whose marks hold at every level.
AT_EVERY_LEVEL = ("A1", "A1i", "A3", "A4", "A5", "A6", "A6b", "A6c", "A7", "A9", "A10", "E17", "G1", "G2")


def runs(options, rows):
    """(level, rows) of the runs that --cpu_isa asks for: "all" adds every other level, for the rows whose
    marks hold at each.
    """
    if options.cpu_isa in LEVELS:
        return [(options.cpu_isa, rows)]
    fastest = fastest_level()
    others = [level for level in levels() if level != fastest] if options.cpu_isa == "all" else []
    everywhere = [row for row in rows if row in AT_EVERY_LEVEL]
    return [(fastest, rows), *((level, everywhere) for level in others if everywhere)]


def in_one_process(program):
    """Rows of a program that measures both sides itself and prints the samples; it pins LibTorch, oneDNN and
    MKL to the same level as our own kernels.
    """
    def measure(options, rows):
        command = [str(ROOT / "build/bin" / program), f"--pairs={options.pairs}",
                   f"--threads={options.threads}", f"--cpu_isa={options.cpu_isa}", *rows]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            yield from (completed(json.loads(line)) for line in process.stdout)
        if process.returncode:
            raise RuntimeError(f"{program}: exit status {process.returncode}")
    return measure


def pinned(measure):
    """Rows of programs that were started at the run's level, ours and the peers."""
    return lambda options, rows: ({"level": options.cpu_isa, **row} for row in measure(options, rows))


def completed(row):
    samples, rooflines = row.pop("samples", None), row.pop("rooflines", ())
    if samples:
        row.update(summary([tuple(pair) for pair in samples], rooflines))
    return row


GROUPS = (
    (transformer_rows.ROWS, pinned(transformer_rows.measure)),
    (decoder_rows.ROWS, pinned(decoder_rows.measure)),
    (model_rows.ROWS, pinned(model_rows.measure)),
    (serving_model_rows.ROWS, pinned(serving_model_rows.measure)),
    (server_rows.ROWS, pinned(server_rows.measure)),
    (batching_rows.ROWS, pinned(batching_rows.measure)),
    (growth_rows.ROWS, pinned(growth_rows.measure)),
    (gpu_rows.ROWS, gpu_rows.measure),
    (("G1", "G2"), in_one_process("gemm_bench")),
    (("B1", "B1b", "B2", "B3", "B4", "B5", "B15", "B16"), in_one_process("queue_bench")),
    (("A0", "A4", "A5", "A6", "A6b", "A6c", "A6s", "E1", "E2", "E3", "E11", "E17", "H1"),
     in_one_process("attention_bench")),
    (("E10", "E10f", "E10m", "E10o", "E12", "E12m", "H2"), in_one_process("control_bench")),
    (("E8",), in_one_process("watch_bench")),
    (("B12", "B14", "B17", "E9", "E14", "E16"), in_one_process("engine_bench")),
)


def record(row):
    model, _ = cpu()
    name = re.sub(r"[^a-z0-9]+", "-", row.get("device", model).lower()).strip("-")
    day = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    (BENCH / "results").mkdir(exist_ok=True)
    with open(BENCH / "results" / f"{day}-{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu_isa", default="all", choices=[*LEVELS, "auto", "all"],
                        help="level of both sides (denoised --help); auto: what the server takes here; all: the "
                        "rows about kernels at every other one too")
    parser.add_argument("--earlier", help="another build's model_bench, for the row that compares with it")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("rows", nargs="*")
    options = parser.parse_args()
    known = [row for rows, _ in GROUPS for row in rows]
    unknown = sorted(set(options.rows) - set(known))
    if unknown:
        parser.error(f"unknown rows {unknown}; there are {known}")
    if options.cpu_isa in LEVELS and options.cpu_isa not in levels():
        parser.error(f"this machine has no {options.cpu_isa}; it has {levels()}")
    return options


def lines(options, rows, measure):
    """Of all runs; a run at a level has that as its --cpu_isa."""
    for level, wanted in runs(options, rows):
        at_level = argparse.Namespace(**{**vars(options), "cpu_isa": level})
        yield from measure(at_level, wanted)


def main():
    options = parse()
    # A program of another folder is recorded by its name: where it lay says nothing to others.
    command = shlex.join(["tests/bench/bench.py", *(re.sub("=/.*/", "=", word) for word in sys.argv[1:])])
    failed = []
    for rows, measure in GROUPS:
        wanted = [row for row in rows if not options.rows or row in options.rows]
        if not wanted:
            continue
        try:
            for row in lines(options, wanted, measure):
                line = judge({**row, **surroundings(options.threads, command)})
                failed += [] if line["agreed"] else [line["row"]]
                print(json.dumps(line), flush=True)
                print(sentence(line), file=sys.stderr, flush=True)
                if not options.no_record:
                    record(line)
        except RuntimeError as error:  # the other groups' rows are still worth having
            print(f"{' '.join(wanted)}: {error}", file=sys.stderr, flush=True)
            failed += wanted
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
