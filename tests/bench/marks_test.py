"""The marks that are judged by are those that README.md states, every row has one, and judging can fail."""

import ast
import pathlib
import re
import sys
import unittest

BENCH = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))
import marks  # noqa: E402
import pairs  # noqa: E402

LEVELS = BENCH.parents[1] / "backends/cpu_isa.cc"
NUMBER = r"(\d+(?:\.\d+)?)"


def stated():
    """{row: (mark, aim, lower is better, share, its aim)} of the table in README.md."""
    rows = {}
    for line in (BENCH / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not re.fullmatch(r"[A-Z]\d+[a-z-]*", cells[0]):
            continue
        mark = re.fullmatch(rf"(at most )?{NUMBER}(?:, or {NUMBER} of the roofline)?", cells[2])
        aim = re.fullmatch(rf"{NUMBER}(?:, or {NUMBER})?", cells[3])
        share, share_aim = (float(x) if x else None for x in (mark[3], aim[2]))
        rows[cells[0]] = (float(mark[2]), float(aim[1]), bool(mark[1]), share, share_aim)
    return rows


def emitted():
    """Row ids in the programs' sources and in the tables of *_rows.py and bench.py."""
    names = set()
    for file in BENCH.glob("*.cc"):
        names |= set(re.findall(r'"([A-EGH]\d+[a-z]?)"', file.read_text(encoding="utf-8")))
    for file in [*BENCH.glob("*_rows.py"), BENCH / "bench.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"[A-EGH]\d+[a-z]?", str(node.value)):
                names.add(node.value)
    return names


class Table(unittest.TestCase):
    def test_is_the_one_that_the_readme_states(self):
        ours = {row: (m.mark, m.aim, m.lower, m.share, m.share_aim)
                for row, m in marks.MARKS.items() if m.mark is not None}
        self.assertEqual(stated(), ours)

    def test_an_aim_is_never_easier_than_its_mark(self):
        for row, mark in marks.MARKS.items():
            if mark.mark is not None:
                self.assertTrue(mark.reached(mark.aim, mark.mark), row)

    def test_has_every_row_that_is_measured(self):
        self.assertLessEqual(emitted(), set(marks.MARKS))

    def test_nothing_else_states_a_mark(self):
        for file in [*BENCH.glob("*.cc"), *BENCH.glob("*_rows.py"), BENCH / "bench.py"]:
            found = re.search(r"pass_mark|\"aim\"", file.read_text(encoding="utf-8"))
            self.assertIsNone(found, file.name)


class Levels(unittest.TestCase):
    def test_a_peer_is_held_to_the_same_limits_as_we(self):
        table = re.findall(r'{CpuIsa::k\w+, +"(\w+)", +"(\w+)", +"(\w+)", +"(\w+)"}',
                           LEVELS.read_text(encoding="utf-8"))
        self.assertEqual(table, [(name, *limits) for name, (_, *limits) in pairs.LEVELS.items()])

    def test_the_environment_limits_no_peer(self):
        pin = LEVELS.read_text(encoding="utf-8").split("void PinCpuIsa")[1]
        known = set(re.findall(r'"([A-Z]+_[A-Z_]+)"', pin))
        self.assertEqual(known, {*pairs.LIMITS, *pairs.UNLIMITED})


class Judging(unittest.TestCase):
    def judged(self, **row):
        return marks.judge(row)

    def compared(self, **row):
        """A row whose outputs agree."""
        return self.judged(**{"error": 0, "error_limit": 0, **row})

    def test_a_ratio_reaches_its_mark_or_does_not(self):
        self.assertTrue(self.compared(row="A3", ratio=3.0)["ok"])
        self.assertFalse(self.compared(row="A3", ratio=2.99)["ok"])
        self.assertFalse(self.compared(row="A3", ratio=7.9)["reached_aim"])
        self.assertTrue(self.compared(row="A3", ratio=8.0)["reached_aim"])

    def test_where_less_is_better(self):
        self.assertTrue(self.compared(row="E2", value=1.15)["ok"])
        self.assertFalse(self.compared(row="E2", value=1.16)["ok"])

    def test_outputs_that_differ_are_never_ok(self):
        row = self.compared(row="A3", ratio=9.0, error=2e-4, error_limit=1e-4)
        self.assertFalse(row["agreed"] or row["ok"] or row["reached_aim"])

    def test_a_roofline_is_compared_with_the_pair_that_it_followed(self):
        row = pairs.summary([(2.0, 4.0), (4.0, 4.0), (2.0, 6.0)], [1.0, 3.0, 1.0])
        self.assertEqual((row["roofline_ratio"], row["roofline_share"], row["roofline"]), (4.0, 0.5, 1.0))
        self.assertNotIn("roofline_share", pairs.summary([(2.0, 4.0)]))

    def test_a_roofline_below_the_mark_judges_by_its_share(self):
        self.assertTrue(self.compared(row="A1", ratio=1.5, roofline_ratio=1.7, roofline_share=0.88)["ok"])
        self.assertFalse(self.compared(row="A1", ratio=1.4, roofline_ratio=1.7, roofline_share=0.87)["ok"])

    def test_a_roofline_above_the_mark_changes_nothing(self):
        self.assertFalse(self.compared(row="A1", ratio=1.7, roofline_ratio=1.9, roofline_share=0.89)["ok"])
        self.assertTrue(self.compared(row="A1", ratio=1.8, roofline_ratio=3.0, roofline_share=0.6)["ok"])

    def test_mark_and_aim_are_each_judged_by_what_forbids_them(self):
        row = self.compared(row="A1", ratio=1.8, roofline_ratio=1.9, roofline_share=0.947)
        self.assertTrue(row["ok"])
        self.assertFalse(row["reached_aim"])

    def test_what_was_not_measured_is_not_ok(self):
        self.assertFalse(self.judged(row="A1i", skipped="no int8 here")["ok"])

    def test_a_row_without_a_mark_is_ok_where_its_outputs_are(self):
        self.assertTrue(self.compared(row="A0", seconds={})["ok"])

    def test_attention_is_judged_by_its_share_whatever_the_ratio(self):
        for ratio, roofline_ratio in ((0.5, 0.58), (1.5, 1.7), (9.0, 10.6)):
            row = {"row": "A4", "ratio": ratio, "roofline_ratio": roofline_ratio, "error": 0}
            self.assertTrue(self.judged(**row, roofline_share=0.85)["ok"])
            self.assertFalse(self.judged(**row, roofline_share=0.849)["ok"])
        line = marks.sentence(self.judged(**row, roofline_share=0.86))
        self.assertIn("0.86 (mark 0.85, aim 0.95, ratio 9): ok", line)

    def test_outputs_that_nobody_checked_are_never_ok(self):
        for row, measured in (("A0", {"seconds": {}}), ("A6", {"ratio": 9}), ("A6c", {"ratio": 9}),
                              ("A6s", {"value": 0}), ("E1", {"value": 1}), ("E2", {"value": 1}),
                              ("E3", {"value": 0}), ("E17", {"value": 1})):
            self.assertFalse(self.judged(row=row, **measured)["agreed"], row)
            self.assertTrue(self.judged(row=row, **measured, error=0)["ok"], row)
            self.assertFalse(self.judged(row=row, **measured, error=float("nan"), error_limit=1)["ok"], row)

    def test_a_program_without_outputs_needs_no_error(self):
        self.assertTrue(self.judged(row="B15", value=1.0)["ok"])

    def test_the_line_for_people_says_mark_aim_and_verdict(self):
        line = marks.sentence(self.compared(row="A3", name="n", ratio=2.5))
        self.assertIn("2.5 (mark 3, aim 8): NOT OK", line)


if __name__ == "__main__":
    unittest.main()
