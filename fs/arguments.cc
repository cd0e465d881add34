#include "fs/arguments.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "shared/base/version.h"

namespace tidemark::fs {
namespace {

constexpr std::string_view kUsage =
    "tidemark-fs --config FILE [MOUNTPOINT] [-f] [-b] [-o OPTIONS]\n"
    "mount.tidemark SOURCE MOUNTPOINT [-o config=FILE,OPTIONS]\n\n"
    "Mounts a host's images.\n"
    "  -c, --config FILE   configuration (TOML); also TIDEMARK_CONFIG\n"
    "  -f                  stay in the foreground (the default of tidemark-fs)\n"
    "  -b, --background    return once the mount is ready\n"
    "  -o OPTIONS          config=FILE, ro, rw, allow_other, noallow_other, live, nolive, and what mount(8) knows\n"
    "                      (nolive: should the daemon die its mount dies, as on kernels before 6.9)\n"
    "      --check         check the configuration and exit\n"
    "  -V, --version\n"
    "Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage or configuration.\n";

// For mount(8), fstab and systemd alone: no meaning for the kernel.
bool is_for_others(std::string_view o) {
  static constexpr std::string_view kNames[] = {"auto",
                                                "noauto",
                                                "_netdev",
                                                "nofail",
                                                "user",
                                                "nouser",
                                                "users",
                                                "owner",
                                                "group",
                                                "defaults",
                                                "dev",   // never: fuse_session.cc
                                                "rw",
                                                "comment",
                                                "default_permissions",
                                                "sloppy"};
  return std::find(std::begin(kNames), std::end(kNames), o) != std::end(kNames) || o.rfind("x-", 0) == 0 ||
         o.rfind("X-", 0) == 0 || o.rfind("comment=", 0) == 0;
}
bool is_for_kernel(std::string_view o) {
  static constexpr std::string_view kNames[] = {"nodev", "suid", "nosuid", "exec", "noexec", "atime", "noatime",
                                                "sync", "async", "dirsync", "nodiratime", "relatime", "norelatime"};
  return std::find(std::begin(kNames), std::end(kNames), o) != std::end(kNames);
}

bool take_options(std::string_view text, Arguments& out, std::string& error) {
  while (!text.empty()) {
    size_t comma = text.find(',');
    std::string_view o = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    if (o.empty() || is_for_others(o)) continue;
    if (o.rfind("config=", 0) == 0) out.config = o.substr(7);
    else if (o == "ro") out.read_only = true;
    else if (o == "allow_other") out.allow_other = true;
    else if (o == "noallow_other") out.allow_other = false;
    else if (o == "live") out.live_restart = true;
    else if (o == "nolive") out.live_restart = false;
    else if (o.rfind("fsname=", 0) == 0) out.source = o.substr(7);
    else if (is_for_kernel(o)) out.mount_options.emplace_back(o);
    else {
      error = "unknown mount option " + std::string(o) + ": remove it";
      return false;
    }
  }
  return true;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

Next finish_helper(const std::vector<std::string>& words, Arguments& out, std::string& error) {
  if (words.size() != 2) {
    error = "SOURCE and MOUNTPOINT are needed: see mount.tidemark --help";
    return Next::kWrong;
  }
  out.source = words[0];
  out.mountpoint = words[1];
  out.background = true;
  if (out.config.empty())
    out.config = words[0].find('/') != std::string::npos ? words[0] : "/etc/tidemark/" + words[0] + ".toml";
  return Next::kRun;
}

}  // namespace

Next parse_arguments(int argc, char** argv, Arguments& out, std::string& error) {
  bool helper = ends_with(argv[0], "mount.tidemark");
  std::vector<std::string> words;
  if (const char* env = std::getenv("TIDEMARK_CONFIG"); env != nullptr && !helper) out.config = env;
  for (int i = 1; i < argc; ++i) {
    std::string a = argv[i];
    auto value = [&](std::string& into) {
      if (i + 1 >= argc) {
        error = a + " needs a value";
        return false;
      }
      into = argv[++i];
      return true;
    };
    std::string options;
    if (a == "-h" || a == "--help") { std::fputs(kUsage.data(), stdout); return Next::kDone; }
    if (a == "-V" || a == "--version") {
      std::printf("tidemark-fs %s\n", std::string(version()).c_str());
      return Next::kDone;
    }
    if (a == "-c" || a == "--config") { if (!value(out.config)) return Next::kWrong; }
    else if (a.rfind("--config=", 0) == 0) out.config = a.substr(9);
    else if (a == "-o") { if (!value(options) || !take_options(options, out, error)) return Next::kWrong; }
    else if (a == "-b" || a == "--background") out.background = true;
    else if (a == "--check") out.check_only = true;
    else if (a == "-f") { if (helper) out.fake = true; else out.background = false; }
    else if (helper && (a == "-s" || a == "-n" || a == "-v")) continue;
    else if (a == "-r") out.read_only = true;
    else if (helper && (a == "-t" || a == "-N")) { if (!value(options)) return Next::kWrong; }
    else if (a.size() > 1 && a[0] == '-') { error = "unknown option " + a + ": see --help"; return Next::kWrong; }
    else words.push_back(a);
  }
  if (helper) return finish_helper(words, out, error);
  if (words.size() > 1) {
    error = "one mount point at most, not also " + words[1];
    return Next::kWrong;
  }
  if (!words.empty()) out.mountpoint = words[0];
  if (out.config.empty()) {
    error = "--config FILE is needed (or TIDEMARK_CONFIG)";
    return Next::kWrong;
  }
  return Next::kRun;
}

}  // namespace tidemark::fs
