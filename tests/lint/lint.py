#!/usr/bin/env python3
"""Rules of the source tree that no compiler checks. Prints FILE:LINE: what is wrong: what to do instead.

  lint.py ROOT              check the tree
  lint.py --self-test       check that the rules find what they are for

A place that must break a rule says so on its line: // lint: allow RULE: why
"""
import pathlib
import re
import sys

# Folder -> folders it may include, besides itself.
BASE = {"shared/base"}
SEAMS = BASE | {"shared/io", "shared/kv", "shared/net"}
PURE = SEAMS | {"shared/wire", "shared/image", "shared/fence"}
DAEMONS = PURE | {"journal", "shared/daemon", "shared/state"}
LAYERS = {
    "shared/base": set(),
    "shared/io": SEAMS,          # the seams name one another: an Env hands out stores and the network
    "shared/kv": SEAMS,
    "shared/net": SEAMS,
    "shared/daemon": SEAMS,
    "shared/wire": SEAMS,
    "shared/image": SEAMS,
    "shared/fence": BASE | {"shared/wire"},
    "shared/state": SEAMS | {"shared/image"},
    "journal": PURE,
    "fs": DAEMONS,
    "replica": DAEMONS,
    "shared/node": DAEMONS,
    "shared/witness": PURE | {"shared/daemon", "shared/state"},
    "shared/cli": PURE | {"journal", "shared/daemon", "shared/state"},
}

# Third-party header prefix -> where it may be named (folders or files).
THIRD_PARTY = {
    "spdlog/": ["shared/base/log.cc"],
    "toml++/": ["shared/base/config.cc"],
    "prometheus/": ["shared/base/metrics.cc"],
    "xxhash.h": ["shared/base/digest.cc"],
    "liburing": ["shared/io/"],
    "lmdb.h": ["shared/kv/"],
    "boost/": ["shared/net/"],
    "curl/": ["shared/net/"],
    "openssl/": ["shared/net/", "journal/sha256.cc"],
    "zstd.h": ["journal/"],
    "systemd/": ["shared/daemon/process.cc"],
    "CLI/": ["shared/cli/app.cc", "shared/daemon/arguments.cc"],
    "fuse": ["fs/"],
    "nlohmann/": ["shared/cli/", "shared/daemon/", "shared/node/", "replica/", "fs/", "journal/"],
}
# A header that names one of these must stay within its own folder.
PRIVATE_HEADERS = re.compile(r"^(spdlog|toml\+\+|prometheus|boost|curl|openssl|CLI|nlohmann)/|^(lmdb|zstd|xxhash|liburing|fuse.*)\.h$")

# Rule -> (pattern, replacement, folders where it is at home).
BANNED = {
    "std::thread": (r"\bstd::j?thread\b(?!::)", "Env::offload or a coroutine on the loop",
                    ["shared/io/", "shared/net/", "shared/kv/", "shared/daemon/",
                     "fs/fuse_shell.cc"]),   # the kernel's invalidations may block: they need a thread
    "pthread_create": (r"\bpthread_create\s*\(", "Env::offload", ["shared/io/"]),
    "std::async": (r"\bstd::async\b", "Env::offload", []),
    "sleep_for": (r"\b(sleep_for|sleep_until|usleep|nanosleep)\s*\(|^(?!.*(?:co_await|Task<)).*(?<![\w.>:])sleep\s*\(", "a condition with a bound, or Env::after", []),
    "system": (r"(?<![\w.>:])(?:std::|::)?system\s*\(|\bpopen\s*\(", "the library that does it", []),
    "strcpy": (r"\b(strcpy|strcat|strncpy|strncat|stpcpy|gets)\s*\(", "std::string", []),
    "sprintf": (r"\bv?sprintf\s*\(", "std::snprintf or std::to_string", []),
    "atoi": (r"\b(atoi|atol|atoll|atof|strtol|strtoul|strtoull)\s*\(", "std::from_chars, which tells errors", []),
    "rand": (r"(?<![\w.>:])(?:std::)?s?rand\s*\(|\bstd::(mt19937(_64)?|random_device|default_random_engine)\b", "Env::random", []),
    "time": (r"(?<![\w.>:])(?:std::|::)?time\s*\(\s*(nullptr|NULL|0)\s*\)|\b(localtime|gmtime|ctime|asctime)\s*\(|\bgettimeofday\s*\(",
             "Env::wall, WallTime", ["shared/image/convert"]),   # blocking tools: a VHD's time stamp
    "clock": (r"\bstd::chrono::(system|steady|high_resolution)_clock::now\b|\bclock_gettime\s*\(", "Env::now or Env::wall",
              ["shared/io/", "shared/net/", "shared/cli/"]),
    "assert": (r"(?<![\w.])assert\s*\(", "TM_CHECK, which stays on in release builds", ["shared/base/status.h"]),
    "cout": (r"\bstd::(cout|cerr|endl)\b", "the Logger, or the command line's Context::print", []),
    "using namespace": (r"^\s*using namespace std\b", "qualified names", []),
    "strerror": (r"(?<!std::)\bstrerror\s*\(", "Status::from_errno", ["shared/base/status.cc"]),
}
CORE = ("shared/", "fs/", "journal/", "replica/")
FILE_LINES_NOTED = 500
FILE_LINES_MAX = 750
LINE_COLUMNS_RULE = 120
LINE_COLUMNS_MAX = 200   # where older lines are still over the rule (counted in a note); past this no screen shows it
# Folders where every line keeps the rule, and is to go on doing so. Others join as they are mended.
KEPT_SHORT = ("fs/", "replica/") + tuple(f"shared/{f}/" for f in (
    "daemon", "fence", "image", "io", "kv", "net", "node", "wire")) + tuple(f"tests/unit/{f}/" for f in (
    "daemon", "fence", "image", "io", "kv", "net", "node", "replica", "wire"))


def strip(text):
    """Comments and literals blanked, line structure kept."""
    pattern = re.compile(r'R"(\w*)\((?:.|\n)*?\)\1"|//[^\n]*|/\*(?:.|\n)*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'')

    def blank(match):
        found = match.group(0)
        if found[0] == "'" and match.start() > 0 and text[match.start() - 1].isalnum():
            return found   # a digit separator
        return re.sub(r"[^\n]", " ", found) if found[0] == "/" else '""' + "\n" * found.count("\n")
    return pattern.sub(blank, text)


def folder_of(path):
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "shared" else parts[0]


def allowed(raw_line, rule):
    return f"lint: allow {rule}" in raw_line


def check_includes(path, raw, out):
    folder = folder_of(path)
    if folder not in LAYERS:
        return
    for number, line in enumerate(raw.split("\n"), 1):
        found = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
        if not found or allowed(line, "include"):
            continue
        target = found.group(2)
        if found.group(1) == '"':
            other = folder_of(target)
            if other not in LAYERS:
                out.append(f"{path}:{number}: includes {target}: name project files from the root")
            elif other != folder and other not in LAYERS[folder]:
                out.append(f"{path}:{number}: {folder} must not include {other}: layers go downward only")
        for prefix, homes in THIRD_PARTY.items():
            if target.startswith(prefix) and not any(path.startswith(h) for h in homes):
                out.append(f"{path}:{number}: {target} is at home in {', '.join(homes)}: use what is offered there")


def check_private_headers(sources, out):
    private = {}
    for path, raw in sources.items():
        if path.endswith(".h") and path.startswith(CORE):
            for target in re.findall(r"#\s*include\s*<([^>]+)>", raw):
                if PRIVATE_HEADERS.search(target):
                    private[path] = target
    for path, raw in sources.items():
        if not path.startswith(CORE):
            continue
        for number, line in enumerate(raw.split("\n"), 1):
            found = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
            if found and found.group(1) in private and folder_of(found.group(1)) != folder_of(path):
                out.append(f"{path}:{number}: {found.group(1)} drags in <{private[found.group(1)]}>: keep it in its folder")


def check_banned(path, raw, out):
    if not path.startswith(CORE):
        return
    raw_lines = raw.split("\n")
    for number, line in enumerate(strip(raw).split("\n"), 1):
        for rule, (pattern, instead, homes) in BANNED.items():
            if re.search(pattern, line) and not any(path.startswith(h) for h in homes):
                if not allowed(raw_lines[number - 1], rule) and not (number > 1 and allowed(raw_lines[number - 2], rule)):
                    out.append(f"{path}:{number}: {rule} is banned here: use {instead}")


def check_text(path, raw, out, notes):
    lines = raw.split("\n")
    if path.startswith(CORE) and path.endswith((".h", ".cc")):
        if len(lines) > FILE_LINES_MAX:
            out.append(f"{path}:1: {len(lines)} lines: break it up (about {FILE_LINES_NOTED})")
        elif len(lines) > FILE_LINES_NOTED:
            notes.append(f"{path}: {len(lines)} lines")
        if path.endswith(".h"):
            if not lines[0].startswith("//"):
                out.append(f"{path}:1: a header opens with its purpose: write it")
            if "#pragma once" not in raw:
                out.append(f"{path}:1: no #pragma once: add it")
    for number, line in enumerate(lines, 1):
        bound = LINE_COLUMNS_RULE if path.startswith(KEPT_SHORT) else LINE_COLUMNS_MAX
        if path.endswith((".h", ".cc")) and len(line) > bound:
            out.append(f"{path}:{number}: {len(line)} columns: break it at {LINE_COLUMNS_RULE}")
        if re.search(r"(?<![\w./-])/(?:work|builds?|workspaces?)/|\.\./shared/(DESIGN|STYLE|FACTS)", line) and not path.startswith("tests/lint/"):
            out.append(f"{path}:{number}: names a place outside the tree: write what is needed into shared/docs")


def check_readmes(files, out):
    folders = {str(pathlib.PurePosixPath(f).parent) for f in files if f.endswith((".cc", ".h")) and f.startswith(CORE)}
    folders |= {f for f in ("tests", "tests/bench", "tests/crash", "tests/e2e", "tests/sim", "tests/lint", "examples", "shared/docs", "tests/fuzz")
                if any(x.startswith(f + "/") for x in files)}
    for folder in sorted(folders):
        if f"{folder}/README.md" not in files:
            out.append(f"{folder}: no README.md: say what lives here, what it may include, what to read first")


def check_config_keys(sources, documents, out):
    """Every [section] key that config.cc reads stands in operations.md or the examples."""
    text = sources.get("shared/base/config.cc", "")
    described = {"host.toml": set(), "shared.toml": set(), "replica.toml": set()}
    for name, keys in described.items():
        section = ""
        for line in documents.get(f"examples/{name}", "").split("\n"):
            if found := re.match(r"\[(\w+)\]", line):
                section = found.group(1)
            elif found := re.match(r"#?(\w+) = ", line):
                keys.add(f"[{section}] {found.group(1)}")
    everywhere = set().union(*described.values())
    operations = documents.get("shared/docs/operations.md", "")
    section = ""
    for line in text.split("\n"):
        if found := re.search(r'Section s\(d, "(\w+)"', line):
            section = found.group(1)
        for key in re.findall(r's\.(?:text|path|paths|size|duration|number|flag|address)\("(\w+)"', line):
            if f"[{section}] {key}" not in everywhere:
                out.append(f"examples/*.toml: [{section}] {key} is not shown: add it, behind a # if it has a default")
            if not re.search(rf"`{key}`", operations):
                out.append(f"shared/docs/operations.md: [{section}] {key} is not described: add it")


def check_verbs(sources, documents, out):
    """Every verb and option of app.cc stands in the man page."""
    text = sources.get("shared/cli/app.cc", "")
    page = documents.get("shared/docs/man/tidemark.1", "").replace("\\-", "-")
    page = re.sub(r"\\f[BIR]", "", page)
    for noun, verb in re.findall(r'verb\((\w+), w, "([\w-]+)"', text):
        words = verb if noun == "app" else f"{noun} {verb}"
        if not re.search(rf"^(\.B )?tidemark {re.escape(words)}\b", page, re.M):
            out.append(f"shared/docs/man/tidemark.1: the verb 'tidemark {words}' is missing: describe it")
    for option in re.findall(r'add_(?:option|flag)\("(?:-\w,)?(--[\w-]+)', text):
        if option not in page:
            out.append(f"shared/docs/man/tidemark.1: the option {option} is missing: describe it")


def tree(root):
    sources, documents, files = {}, {}, set()
    for top in ("shared", "fs", "journal", "replica", "tests", "examples"):
        for path in sorted((root / top).rglob("*")):
            if not path.is_file():
                continue
            name = path.relative_to(root).as_posix()
            files.add(name)
            if path.suffix in (".cc", ".h"):
                sources[name] = path.read_text(errors="replace")
            elif path.suffix in (".md", ".toml", ".1", ".8", ".txt", ".sh", ".xml", ""):
                documents[name] = path.read_text(errors="replace")
    for name in ("README.md", "CMakeLists.txt"):
        if (root / name).is_file():
            documents[name] = (root / name).read_text()
    return sources, documents, files


def lint(sources, documents, files):
    out, notes = [], []
    over = sum(len(line) > LINE_COLUMNS_RULE for path, raw in sources.items() for line in raw.split("\n"))
    notes.append(f"{over} lines are longer than 120 columns")
    for path, raw in sources.items():
        check_includes(path, raw, out)
        check_banned(path, raw, out)
        check_text(path, raw, out, notes)
    for path, raw in documents.items():
        check_text(path, raw, out, notes)
    check_private_headers(sources, out)
    check_readmes(files, out)
    check_config_keys(sources, documents, out)
    check_verbs(sources, documents, out)
    return out, notes


def self_test():
    def found(path, text):
        sources = {path: "// x\n#pragma once\n" + text}
        return [x for x in lint(sources, {}, {path, str(pathlib.PurePosixPath(path).parent) + "/README.md"})[0]]
    bad = {
        "layer upward": ("shared/base/x.h", '#include "shared/io/env.h"'),
        "layer sideways": ("fs/x.h", '#include "replica/replica.h"'),
        "cli below": ("shared/cli/x.h", '#include "fs/engine.h"'),
        "third party": ("fs/x.h", "#include <lmdb.h>"),
        "thread": ("fs/x.h", "std::thread t;"),
        "sleep": ("journal/x.h", "  std::this_thread::sleep_for(1s);"),
        "bare sleep": ("journal/x.h", "  sleep(1);"),
        "rand": ("fs/x.h", "int i = rand();"),
        "time": ("fs/x.h", "auto t = time(nullptr);"),
        "system": ("fs/x.h", 'system("rm");'),
        "sprintf": ("fs/x.h", 'sprintf(b, "x");'),
        "assert": ("fs/x.h", "assert(x);"),
        "relative include": ("fs/x.h", '#include "engine.h"'),
        "long line": ("journal/x.h", "x" * 201),
        "line over the rule": ("fs/x.h", "x" * 121),
    }
    good = {
        "line within the rule": ("fs/x.h", "x" * 120),
        "older line": ("journal/x.h", "x" * 200),
        "snprintf": ("fs/x.h", 'std::snprintf(b, 1, "x");'),
        "comment": ("fs/x.h", "// rand() and sleep() are banned"),
        "string": ("fs/x.h", 'auto s = "time(nullptr)";'),
        "static_assert": ("fs/x.h", "static_assert(sizeof(int) == 4);"),
        "allowed": ("fs/x.h", "std::thread t;  // lint: allow std::thread: tested here"),
        "thread at home": ("shared/io/x.h", "std::thread t;"),
        "sleep of a coroutine": ("fs/x.h", "  co_await sleep(limit);"),
        "member sleep": ("fs/x.h", "x.sleep(1); y->time(nullptr);"),
        "downward": ("fs/x.h", '#include "journal/journal.h"'),
    }
    wrong = [f"not found: {k}" for k, v in bad.items() if not found(*v)] + \
            [f"found by mistake: {k}: {found(*v)}" for k, v in good.items() if found(*v)]
    if not lint({"fs/a.cc": ""}, {}, {"fs/a.cc"})[0]:
        wrong.append("not found: missing README")
    for w in wrong:
        print(w)
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    out, notes = lint(*tree(pathlib.Path(sys.argv[1]).resolve()))
    for line in notes:
        print("note:", line)
    for line in out:
        print(line)
    print(f"{len(out)} findings")
    return 1 if out else 0


if __name__ == "__main__":
    sys.exit(main())
