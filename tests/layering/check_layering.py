"""Holds the source to the house rules of the README: the arrow proto <- server -> runtime -> backends.

    check_layering.py ROOT         print every violation, exit 1 if there is one
    check_layering.py --self-test  prove on invented trees that each rule bites

Includes are followed through our own headers, so a header cannot smuggle in what its includer must
not see. Nothing but the standard library is used.
"""

import pathlib
import re
import sys
import tempfile

FOLDERS = ("proto", "server", "runtime", "backends")
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
MAX_LINES = {"server": 400, "runtime": 400, "backends": 400}  # a longer file is two ideas
MAX_LINES_ELSEWHERE = 700
GENERATED = "// Written by tools/"  # tables that a script makes have the length they have

TORCH = re.compile(r"^(ATen|c10|torch|caffe2)/")
WIRE = re.compile(r"^(google/|grpc|grpcpp/|absl/|prometheus/|denoised/v1/|inference/|.*\.pb\.h$)")
# Folder -> (what its files must not see, not even through our own headers; how to say it).
FORBIDDEN = {
    "server": (TORCH, "LibTorch"),
    "runtime": (WIRE, "protobuf, gRPC, absl or prometheus"),
    "backends": (WIRE, "protobuf, gRPC, absl or prometheus"),
}
# Folder -> our folders that it may include directly.
MAY_INCLUDE = {
    "server": {"server", "runtime", "backends"},
    "runtime": {"runtime", "backends"},
    "backends": {"backends"},
}
# Room of runtime/ -> its rooms that it may include; "" = the files at its root, which are values and faces.
# Faces lead into the house: no room but the engine includes them.
ROOMS = {
    "": {"", "loaders", "tokenizer"},
    "engine": {"", "engine", "store", "pipelines", "attention", "loaders", "media"},
    "pipelines": {"", "pipelines", "attention", "models", "schedulers", "loaders", "tokenizer", "media"},
    "attention": {"", "attention"},
    "store": {"", "store", "loaders"},
    "models": {"", "models", "attention", "loaders"},
    "schedulers": {"", "schedulers", "loaders"},
    "loaders": {"", "loaders", "tokenizer"},
    "tokenizer": {"", "tokenizer", "loaders"},
    "media": {"", "media", "loaders"},
}
FACES = {"runtime/engine.h", "runtime/job_store.h", "runtime/control_store.h"}
MAY_SEE_FACES = {"", "engine", "store"}
MAY_READ_ENVIRONMENT = re.compile(r"^(server/config[^/]*|server/cli/.*config[^/]*|backends/attn_backend\.cc)$")
MAY_SEE_PROMETHEUS = re.compile(r"^server/(metrics|prometheus)[^/]*$")

# What loads a model sees its files through ModelFolder alone, which enters them in the manifest.
LOADS_MODELS = re.compile(r"^runtime/(loaders|models|schedulers|tokenizer)/|^runtime/pipelines/wan_")
MAY_OPEN_FILES = re.compile(r"^runtime/loaders/(file|loose_file|model_folder|digest_cache)\.(h|cc)$")
OPENS_FILES = re.compile(
    r"\b(basic_)?[io]?fstream\b|\bfilebuf\b|\b(f|fd|fre)?open(at|dir)?(64|2)?\s*\(|\bmmap(64)?\s*\(|\bOpenLooseFile\b"
    r"|\b(from|load)_file\s*\(|\bdirectory_iterator\b|\bfilesystem::(exists|is_regular_file|file_size)\b"
    r"|\bfs::(exists|is_regular_file|file_size)\b")

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
GETENV = re.compile(r"\b(secure_)?getenv\s*\(")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
CODE_MACRO = re.compile(r"^\s*#\s*define\s+\w+\(", re.MULTILINE)


def sources(root):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def chains(name, includes, seen=None):
    """Every (chain of our files, included name) that is reachable from file `name`."""
    seen = {name} if seen is None else seen
    for target in includes.get(name, ()):
        yield (name,), target
        if target in includes and target not in seen:
            seen.add(target)
            for chain, deeper in chains(target, includes, seen):
                yield (name, *chain), deeper


def check_includes(files):
    includes = {name: INCLUDE.findall(without_comments(text)) for name, text in files.items()}
    for name in files:
        folder = name.split("/")[0]
        if folder not in FORBIDDEN:
            yield f"{name}: {folder}/ holds .proto files only"
            continue
        pattern, what = FORBIDDEN[folder]
        for chain, target in chains(name, includes):
            if pattern.match(target):
                yield f"{' -> '.join(chain)} includes {target}: {folder}/ must not see {what}"
        for target in includes[name]:
            top = target.split("/")[0]
            if top in FOLDERS and "/" in target and top not in MAY_INCLUDE[folder]:
                yield f"{name} includes {target}: the arrow does not go from {folder}/ to {top}/"
            if target == "torch/torch.h":
                yield f"{name} includes torch/torch.h: include ATen/ATen.h"
            if target.startswith("prometheus/") and not MAY_SEE_PROMETHEUS.match(name):
                yield f"{name} includes {target}: only server/metrics knows Prometheus"


def room_of(name):
    """The room of a file below runtime/; empty for those at its root, None elsewhere."""
    parts = name.split("/")
    return None if parts[0] != "runtime" or len(parts) < 2 else "" if len(parts) == 2 else parts[1]


def check_rooms(files):
    for name, text in files.items():
        room = room_of(name)
        if room is None:
            continue
        if room not in ROOMS:
            yield f"{name}: runtime/ has no room {room}/"
            continue
        for target in INCLUDE.findall(without_comments(text)):
            other = room_of(target)
            if other is not None and other not in ROOMS[room]:
                yield f"{name} includes {target}: the arrow does not go from {room or 'the face'} to {other}/"
            if target in FACES and room not in MAY_SEE_FACES:
                yield f"{name} includes {target}: {room}/ knows nothing of it"


def max_lines(name):
    return MAX_LINES.get(name.split("/")[0], MAX_LINES_ELSEWHERE)


def check_text(files):
    for name, text in files.items():
        code = without_comments(text)
        if GETENV.search(code) and not MAY_READ_ENVIRONMENT.match(name):
            yield f"{name}: reads the environment; only server/config and the selector's parser may"
        if LOADS_MODELS.match(name) and not MAY_OPEN_FILES.match(name) and OPENS_FILES.search(code):
            yield (f"{name}: {OPENS_FILES.search(code).group().strip()} reads past the manifest; "
                   "files of a model are read through ModelFolder")
        if CODE_MACRO.search(code):
            yield f"{name}: defines a macro that writes code"
        if UNFINISHED.search(text):
            yield f"{name}: has an unfinished mark ({UNFINISHED.search(text).group()})"
        lines, most = text.count("\n"), max_lines(name)
        if lines > most and not text.startswith(GENERATED):
            yield f"{name}: {lines} lines, at most {most}"


def check_folders(root):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.is_dir() and path.name in ("common", "util", "utils"):
                yield f"{path.relative_to(root).as_posix()}/: no such folder; name it after what it does"


def violations(root):
    files = dict(sources(root))
    if not files:
        yield f"{root}: no sources found"
    yield from check_includes(files)
    yield from check_rooms(files)
    yield from check_text(files)
    yield from check_folders(root)


# What must be reported (a piece of the message) for files that break one rule each.
BROKEN = [
    ("must not see LibTorch", {"server/a.cc": "#include <ATen/ATen.h>\n"}),
    ("must not see LibTorch", {"server/a.cc": '#include "runtime/b.h"\n',
                               "runtime/b.h": '#include "runtime/c.h"\n',
                               "runtime/c.h": "#include <c10/core/Device.h>\n"}),
    ("must not see protobuf", {"runtime/a.cc": "#include <grpcpp/grpcpp.h>\n"}),
    ("must not see protobuf", {"backends/a.cc": '#include "denoised/v1/admin.pb.h"\n'}),
    ("must not see protobuf", {"backends/a.cc": '#include "absl/status/status.h"\n'}),
    ("from backends/ to runtime/", {"backends/a.cc": '#include "runtime/b.h"\n'}),
    ("from runtime/ to server/", {"runtime/a.cc": '#include "server/b.h"\n'}),
    ("from store to engine/", {"runtime/store/a.cc": '#include "runtime/engine/b.h"\n'}),
    ("from attention to pipelines/", {"runtime/attention/a.cc": '#include "runtime/pipelines/b.h"\n'}),
    ("knows nothing of it", {"runtime/pipelines/a.cc": '#include "runtime/engine.h"\n'}),
    ("has no room", {"runtime/attic/a.cc": "int a;\n"}),
    ("include ATen/ATen.h", {"runtime/a.cc": "#include <torch/torch.h>\n"}),
    ("only server/metrics", {"server/a.cc": "#include <prometheus/counter.h>\n"}),
    ("reads the environment", {"runtime/a.cc": 'auto* p = std::getenv("X");\n'}),
    ("past the manifest", {"runtime/models/a.cc": "std::ifstream file(path);\n"}),
    ("past the manifest", {"runtime/tokenizer/a.cc": "const int fd = open(path, O_RDONLY);\n"}),
    ("past the manifest", {"runtime/loaders/a.cc": "auto file = OpenLooseFile(path);\n"}),
    ("past the manifest", {"runtime/pipelines/wan_pipeline.cc": "if (std::filesystem::exists(path)) {}\n"}),
    ("past the manifest", {"runtime/schedulers/a.cc": "std::FILE* f = std::fopen(path, \"r\");\n"}),
    ("macro that writes code", {"backends/a.cc": "#define TWICE(x) (2 * (x))\n"}),
    ("unfinished mark", {"runtime/a.cc": "// TO" + "DO: later\n"}),
    ("at most 400", {"server/a.cc": "\n" * 401}),
    ("at most 400", {"runtime/store/a.cc": "\n" * 401}),
    ("at most 400", {"backends/kernels/a.h": "\n" * 401}),
    ("at most 700", {"proto/a.h": "\n" * 701}),
    ("no such folder", {"runtime/util/a.cc": "int a;\n"}),
    (".proto files only", {"proto/a.h": "int a;\n"}),
    ("no sources found", {}),
]
CLEAN = {
    "server/a.cc": '#include <grpcpp/grpcpp.h>\n#include "runtime/engine.h"\n// getenv( in a comment\n',
    "server/config.cc": 'auto* p = getenv("X");\n',
    "server/metrics.cc": "#include <prometheus/counter.h>\n",
    "runtime/engine.h": '#include "backends/error.h"\n#define GUARD_H_\n',
    "runtime/b.cc": '#include <ATen/ATen.h>\n#include "runtime/engine.h"\n',
    "runtime/loaders/file.cc": "fd_ = open(path, O_RDONLY);\n",
    "runtime/loaders/a.cc": "auto file = folder.Open(name); Weights::Open(folder, stem);\n",
    "backends/error.h": "#include <string>\n",
    "backends/long.cc": "\n" * 400,
    "runtime/tokenizer/table.cc": GENERATED + "make_table.py\n" + "\n" * 1000,
}


def found_in(tree):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in tree.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return list(violations(root))


def self_test():
    failures = [f"not reported: {piece!r} for {tree}" for piece, tree in BROKEN
                if not any(piece in line for line in found_in(tree))]
    failures += [f"reported in a clean tree: {line}" for line in found_in(CLEAN)]
    return failures


def main():
    lines = self_test() if sys.argv[1] == "--self-test" else list(violations(pathlib.Path(sys.argv[1])))
    print("\n".join(lines) or "clean")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
