"""make bench: our programs against their peers, pairwise, one JSON line a row.

    bench.py [--pairs N] [--threads N] [--cpu_isa LEVEL|all] [--earlier MODEL_BENCH] [--no-record] [ROW...]

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
import model_rows
import server_rows
import transformer_rows
from marks import judge, sentence
from pairs import ROOT, cpu, summary, surroundings, under_roofline

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

BENCH = pathlib.Path(__file__).resolve().parent
# A machine has the levels up to the flag that it lacks (backends/cpu_isa.h).
LEVELS = {"avx2": "avx2", "avx512": "avx512f", "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16",
          "amx": "amx_bf16"}
AT_EVERY_LEVEL = ("A4", "A5", "E17", "G1", "G2")


def levels(options, rows):
    """(level, rows) of the runs that --cpu_isa asks for: "all" adds every lower level, for the rows whose
    marks hold at each.
    """
    if options.cpu_isa != "all":
        return [(options.cpu_isa, rows)]
    has = [level for level, flag in LEVELS.items() if flag in cpu()[1]]
    lower = [(level, [row for row in rows if row in AT_EVERY_LEVEL]) for level in has[:-1]]
    return [("auto", rows), *[run for run in lower if run[1]]]


def in_one_process(program):
    """Rows of a program that measures both sides itself and prints the samples; it pins LibTorch, oneDNN and
    MKL to the same level as our own kernels.
    """
    def measure(options, rows):
        for level, wanted in levels(options, rows):
            command = [str(ROOT / "build/bin" / program), f"--pairs={options.pairs}",
                       f"--threads={options.threads}", f"--cpu_isa={level}", *wanted]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                yield from (completed(json.loads(line)) for line in process.stdout)
            if process.returncode:
                raise RuntimeError(f"{program}: exit status {process.returncode}")
    return measure


def completed(row):
    samples, roofline = row.pop("samples", None), row.pop("roofline", None)
    if samples:
        row.update(summary([tuple(pair) for pair in samples]))
    return under_roofline(row, roofline) if roofline else row


GROUPS = (
    (transformer_rows.ROWS, transformer_rows.measure),
    (decoder_rows.ROWS, decoder_rows.measure),
    (model_rows.ROWS, model_rows.measure),
    (server_rows.ROWS, server_rows.measure),
    (batching_rows.ROWS, batching_rows.measure),
    (gpu_rows.ROWS, gpu_rows.measure),
    (("G1", "G2"), in_one_process("gemm_bench")),
    (("B1", "B1b", "B2", "B4", "B5", "B15", "B16"), in_one_process("queue_bench")),
    (("A0", "A4", "A5", "A6", "A6b", "A6c", "E1", "E2", "E3", "E11", "E17", "H1"),
     in_one_process("attention_bench")),
    (("H2",), in_one_process("control_bench")),
    (("B12", "B14", "B17", "E14"), in_one_process("engine_bench")),
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
    parser.add_argument("--cpu_isa", default="all",
                        help="level of the rows about kernels (denoised --help), or all that the machine has")
    parser.add_argument("--earlier", help="another build's model_bench, for the row that compares with it")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("rows", nargs="*")
    options = parser.parse_args()
    known = [row for rows, _ in GROUPS for row in rows]
    unknown = sorted(set(options.rows) - set(known))
    if unknown:
        parser.error(f"unknown rows {unknown}; there are {known}")
    return options


def main():
    options = parse()
    command = shlex.join(["tests/bench/bench.py", *sys.argv[1:]])
    failed = []
    for rows, measure in GROUPS:
        wanted = [row for row in rows if not options.rows or row in options.rows]
        if not wanted:
            continue
        try:
            for row in measure(options, wanted):
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
