"""The rows' marks, in one place: what is printed and what is judged comes from here. README.md lists the
same marks with their sources, and marks_test.py holds the two equal.

A row is measured as a `ratio` (peer / ours, above 1 we are faster), a `value`, or what `measured_as` names. `mark`
is what it must reach, `aim` what we want. Where a machine's roofline forbids a mark (a row that has measured its
roofline in the same run says so) the row is judged by its share of the roofline instead, by `share` and `share_aim`.

A `checked` row has outputs, and is never ok without their `error`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mark:
    what: str
    mark: float | None = None
    aim: float | None = None
    lower: bool = False  # smaller is better
    share: float | None = None  # of the roofline
    share_aim: float | None = None
    checked: bool = False
    measured_as: str | None = None

    def reached(self, measured, wanted):
        return measured <= wanted if self.lower else measured >= wanted


MARKS = {
    "A0": Mark("every backend at its default parameters", checked=True),
    "A1": Mark("transformer forward, mid", 1.8, 3.0, share=0.88, share_aim=0.95, checked=True),
    "A1i": Mark("transformer forward, mid, int8 against own float32", 1.7, 2.5, checked=True),
    "A2": Mark("transformer forward, mid, against torch.compile", 1.1, 1.5, share=0.88, share_aim=0.95, checked=True),
    "A3": Mark("transformer forward, tiny", 3.0, 8.0, checked=True),
    "A3b": Mark("transformer forward of the shipped model against an earlier build", 1.8, 2.5, checked=True),
    "A4": Mark("dense attention's share of the best GEMM's rate here", 0.85, 0.95, checked=True,
               measured_as="roofline_share"),
    "A5": Mark("dense attention's share of our own packed GEMM's rate", 0.85, 0.95, checked=True),
    "A6": Mark("sparse attention at 12.5 % against own dense", 5.0, 7.0, checked=True),
    "A6b": Mark("SAGE_ATTN against own dense", 1.1, 1.5, checked=True),
    "A6c": Mark("VMOBA_ATTN's default chunks at 32,760 tokens against own dense", 1.0, 2.0, checked=True),
    "A6s": Mark("choosing blocks, share of a sparse call", 0.10, 0.05, lower=True, checked=True),
    "A7": Mark("video decoder, float32, against diffusers with channels-last weights", 1.5, 2.0, checked=True),
    "A7b": Mark("video decoder, float32, against diffusers as shipped", 1.5, 2.2, checked=True),
    "A8": Mark("decoder's memory over weights, share of diffusers'", 0.6, 0.35, lower=True),
    "A9": Mark("text encoder, 40 tokens, against 512 padded ones", 3.0, 6.0, checked=True),
    "A10": Mark("a whole text-to-video job", 3.0, 4.0, checked=True),
    "A10f": Mark("the same in float32", 3.0, 4.0, checked=True),
    "A11": Mark("share of a step of a job that is no kernel", 0.03, 0.01, lower=True),
    "A12": Mark("start to ready", 6.0, 12.0),
    "A13": Mark("loading into the final layout", 3.0, 6.0),
    "A14": Mark("how much slower a step is under 1,000 submits and a scrape a second", 0.05, 0.01, lower=True),
    "A15": Mark("what comparisons of backends add to a job's time, share", 0.02, 0.02, lower=True),
    "B1": Mark("deadlines met at load 0.8, points over first come, first served", 25.0, 40.0),
    "B1b": Mark("the same, share of what a schedule meets that knows everything", 0.90, 0.97),
    "B2": Mark("p99 of short jobs at load 0.8 against first come, first served", 4.0, 10.0),
    "B3": Mark("jobs a second in time at load 0.8 against first come, first served", 3.0, 6.0),
    "B4": Mark("the highest load at which 99 of 100 deadlines are met, against first come, first served", 1.3, 1.6),
    "B5": Mark("median error of a predicted step on unseen shapes", 0.08, 0.03, lower=True),
    "B6": Mark("a step let pass and gone on from, share of a step", 0.01, 0.01, lower=True),
    "B6u": Mark("the same without what its next step takes longer, us", 50.0, 50.0, lower=True),
    "B8": Mark("8 jobs at once, tiny, against one after the other", 2.0, 4.0, checked=True),
    "B8b": Mark("8 clients of Denoise calls at once, the same", 2.0, 4.0, checked=True),
    "B8f": Mark("rate of a row in a forward of many against alone, tiny"),
    "B9": Mark("the same above saturation, mid", 0.98, 1.0),
    "B10": Mark("rows of three sizes against all padded to the largest", 1.5, 1.9),
    "B11": Mark("share of the shorter of two stages that is hidden behind the other", 0.6, 0.9),
    "B12": Mark("units that begin between a cancel and the freed slot", 1, 1, lower=True),
    "B14": Mark("the device's idle share between units at a full queue", 0.005, 0.001, lower=True),
    "B15": Mark("queue decision at 100,000 queued jobs over one at 10", 4.0, 2.0, lower=True),
    "B16": Mark("jobs done a minute at ten times the load, of the uncontended rate", 0.95, 0.99),
    "B16s": Mark("the same by the server, tiny", 0.95, 0.99),
    "B17": Mark("cost of checkpoints of 1.3B-shaped runs, share of their steps", 0.01, 0.002, lower=True),
    "B18": Mark("p99 lag of an event at 1,000 watchers, s", 0.25, 0.1, lower=True),
    "C1": Mark("unary calls on an idle server against a bare echo", round(1 / 1.3, 3), round(1 / 1.1, 3)),
    "C1d": Mark("the same with jobs that are kept on disk"),
    "C10": Mark("GetJob on 8 connections with 16 calls at once, a second", 10000, 20000, checked=True),
    "D0": Mark("every backend on CUDA at its default parameters"),
    "D1": Mark("dense attention on CUDA", 0.98, 1.03, checked=True),
    "D2": Mark("fp8 attention on CUDA", 1.3, 1.45, checked=True),
    "D3": Mark("Sage attention on CUDA", 1.2, 1.4, checked=True),
    "D4": Mark("block-sparse kernel on CUDA, effective TFLOP/s", 480.0, 590.0, checked=True),
    "D5": Mark("a whole VIDEO_SPARSE_ATTN call on CUDA", 6.0, 8.0, checked=True),
    "D6": Mark("transformer forward on CUDA against diffusers", 1.6, 1.95, checked=True),
    "D7": Mark("8 jobs at once on CUDA, tiny, against one after the other", 2.0, 4.0, checked=True),
    "E1": Mark("dense attention's rate over tokens, worst over best", 0.85, 0.97, checked=True),
    "E2": Mark("sparse attention's time over tokens, exponent", 1.15, 1.05, lower=True, checked=True),
    "E3": Mark("sparse attention's time over density, distance from a line", 0.15, 0.05, lower=True, checked=True),
    "E4": Mark("decode time a frame, 81 frames over 5, less 1", 0.10, 0.02, lower=True),
    "E4m": Mark("decoder's memory, 81 frames over 5, less 1", 0.01, 0.0, lower=True),
    "E6": Mark("memory of a job that waits, over its prompt, KiB", 4.0, 1.5, lower=True),
    "E7": Mark("p99 of a submit beside 4,096 idle streams over that beside one", 2.0, 1.2, lower=True),
    "E7m": Mark("memory of an idle stream, KiB", 64.0, 32.0, lower=True),
    "E8": Mark("an event at the thread that makes it, 512 watchers less one, us", 3.0, 0.5, lower=True),
    "E9": Mark("p50 from arrival to end over that of a queue that costs nothing, less 1", 0.10, 0.03, lower=True),
    "E10": Mark("scrape, us a label set, 50,000 label sets", 4.0, 1.5, lower=True),
    "E10f": Mark("scrape of a label set, 50,000 label sets over 100", 1.1, 1.02, lower=True),
    "E10m": Mark("memory of a label set over prometheus-cpp's", 1, 1, lower=True),
    "E10o": Mark("an observation, 50,000 label sets over 100", 1.1, 1.02, lower=True),
    "E11": Mark("selection when nothing changed, 1,000 leases live, ns", 100.0, 30.0, lower=True),
    "E12": Mark("metadata of a shape that is known, 1,000 shapes seen, us", 1.0, 0.2, lower=True),
    "E12m": Mark("growth of the plan cache from shape 100 to 1,000, MiB", 1, 0, lower=True),
    "E13": Mark("a step of 100 against one of 4, difference, share", 0.01, 0.01, lower=True),
    "E13m": Mark("allocated at a forward's end, a job of 100 steps over one of 4, MiB", 1, 0, lower=True),
    "E14": Mark("growth from job 2,000 to job 10,000, MiB", 16, 0, lower=True),
    "E15": Mark("loading a GB of 4 over one of 0.1, less 1", 0.10, 0.10, lower=True),
    "E15m": Mark("peak memory of loading 4 GB over the file, MiB", 512.0, 128.0, lower=True),
    "E16": Mark("steps a second of the others where 90 of 100 jobs are cancelled, over none", 0.97, 0.99),
    "E17": Mark("attention's rate over the scores' deviation, worst over best", 0.90, 0.97, checked=True),
    "G1": Mark("packed GEMM against MKL or oneDNN, 320 rows and more", 0.90, 1.0, checked=True),
    "G2": Mark("packed GEMM against MKL or oneDNN, 40 to 320 rows", 1.0, 1.25, checked=True),
    "H1": Mark("selection of a layer when nothing changed, under 1,000 leases, ns", 100.0, 30.0, lower=True),
    "H2": Mark("receipt and metrics of a step, us", 2.0, 1.0, lower=True),
    "H3": Mark("a step of two backends over the mean of its two pure ones", 1.05, 1.0, lower=True),
}


def judge(row):
    """Completes a measured row: mark and aim, what was measured, `agreed` (the outputs), `ok` and `reached_aim`."""
    mark = MARKS[row["row"]]
    agreed = agrees(row, mark)
    measured = row.get(mark.measured_as) if mark.measured_as else row.get("value", row.get("ratio"))
    ok = aim = True
    row.update(what=mark.what, pass_mark=mark.mark, aim=mark.aim, measured=measured)
    if "roofline_ratio" in row and mark.share is not None:
        row.update(share_mark=mark.share, share_aim=mark.share_aim)
    if mark.mark is not None and measured is not None:
        ok = reaches(row, mark, measured, mark.mark, mark.share)
        aim = reaches(row, mark, measured, mark.aim, mark.share_aim)
    elif mark.mark is not None:
        ok = aim = False  # not measured, or skipped: nothing was shown
    row.update(agreed=bool(agreed), ok=bool(agreed and ok), reached_aim=bool(agreed and aim))
    return row


def agrees(row, mark):
    """An error that is not a number exceeds every limit."""
    if "error" not in row:
        return "skipped" in row or not mark.checked
    return row["error"] <= row.get("error_limit", float("inf"))


def reaches(row, mark, measured, wanted, share):
    if share is not None and row.get("roofline_ratio", float("inf")) < wanted:
        return row["roofline_share"] >= share
    return mark.reached(measured, wanted)


def sentence(row):
    """A line for people: id, name, measured, mark, aim, verdict."""
    def number(x):
        return "-" if x is None else f"{x:.3g}"

    if "skipped" in row:
        return f"{row['row']:7} skipped: {row['skipped']}"
    roof = ""
    if "bound_ratio" in row:
        roof = f", forwards alone would give {row['bound_ratio']:.3g}"
    if row["measured"] == row.get("roofline_share"):
        roof = f", ratio {row['ratio']:.3g}"
    elif "roofline_ratio" in row:
        roof = f", roofline {row['roofline_ratio']:.3g}, share {row['roofline_share']:.2f}"
        if row.get("share_mark"):
            roof += f" (mark {row['share_mark']}, aim {row['share_aim']})"
    verdict = "ok" if row["ok"] else "NOT OK" if row["agreed"] else "OUTPUTS DIFFER"
    level = f" [{row['level']}]" if "level" in row else ""
    return (f"{row['row']:7} {row.get('name', '')}{level}: {number(row['measured'])} "
            f"(mark {number(row['pass_mark'])}, aim {number(row['aim'])}{roof}): {verdict}")
