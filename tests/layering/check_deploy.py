"""Holds deploy/ to the program: what dashboards and alerts query is what the server exports, every
expression parses, and the files that containers copy exist.

    check_deploy.py ROOT [PROMTOOL]      without promtool, expressions are not parsed
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

METRIC = re.compile(r"\bdenoised_[a-z_]+[a-z]\b")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']}", target["expr"]


def known_metrics(root):
    return set(METRIC.findall((root / "server/metrics.cc").read_text()))


def unknown_metrics(root, dashboard):
    known = known_metrics(root)
    if not known:
        yield "server/metrics.cc: found no metric names"
    places = list(expressions(dashboard))
    places.append(("deploy/prometheus/alerts.yml", (root / "deploy/prometheus/alerts.yml").read_text()))
    places += [("a template variable", str(variable["query"]))
               for variable in dashboard["templating"]["list"]]
    for place, text in places:
        for name in METRIC.findall(text):
            if name not in known and SUFFIX.sub("", name) not in known:
                yield f"{place}: queries {name}, which the server does not export"


def misplaced_panels(dashboard):
    taken = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"{panel['title']}: wider than the dashboard"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if taken.setdefault((x, y), panel["title"]) != panel["title"]:
                    yield f"{panel['title']} lies over {taken[x, y]}"


def promtool(tool, *arguments):
    result = subprocess.run([tool, "check", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        yield f"promtool check {' '.join(arguments)}: {result.stdout}{result.stderr}"


def unparsable(root, dashboard, tool):
    yield from promtool(tool, "config", str(root / "deploy/prometheus/prometheus.yml"))
    rules = [{"record": "denoised:checked", "expr": re.sub(r"\$\w+", "5m", expression),
              "labels": {"place": str(index)}}
             for index, (_, expression) in enumerate(expressions(dashboard))]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)  # JSON is YAML
        file.flush()
        yield from promtool(tool, "rules", file.name)


def missing_copies(root):
    """What the Dockerfile copies is in the tree and let through by .dockerignore."""
    admitted = {line[1:].rstrip("/") for line in (root / ".dockerignore").read_text().split()
                if line.startswith("!")}
    for line in (root / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] != ["COPY"] or words[1].startswith("--from"):
            continue
        for source in words[1:-1]:
            if source not in admitted:
                yield f"Dockerfile copies {source}, which .dockerignore keeps out"
            if not (root / source).exists():
                yield f"Dockerfile copies {source}, which is not there"


def not_restarted(root):
    """A server that ends with 70 or 71 counts on being started anew."""
    compose = (root / "deploy/compose/compose.yaml").read_text()
    service = re.search(r"^  denoised:\n((?:    .*\n|\n)+)", compose, re.MULTILINE)
    if not service or not re.search(r"^    restart: (on-failure|always|unless-stopped)\b", service[1], re.MULTILINE):
        yield "deploy/compose/compose.yaml: denoised is not started anew when it fails"


def main():
    root = pathlib.Path(sys.argv[1])
    dashboard = json.loads((root / "deploy/compose/grafana/dashboards/denoised.json").read_text())
    problems = [*unknown_metrics(root, dashboard), *misplaced_panels(dashboard), *missing_copies(root),
                *not_restarted(root)]
    if len(sys.argv) > 2:
        problems += unparsable(root, dashboard, sys.argv[2])
    print("\n".join(problems) or "clean")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
