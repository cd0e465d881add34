#include "shared/kv/lmdb_fault.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <charconv>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <mutex>

namespace tidemark::kv::lmdb {

// Read by the handler: it takes no lock, and nothing here moves.
struct Watched {
  std::atomic<uintptr_t> begin{0}, end{0};   // of the map; 0: free. `begin` is set last
  std::atomic<size_t> page_bytes{0};
  std::array<char, PATH_MAX + 256> line{};   // but for the page's number
  size_t line_size = 0;
};

namespace {

constexpr size_t kWatchedMax = 16;           // more than any daemon has open
std::array<Watched, kWatchedMax> all_watched;
std::mutex watched_mutex;                    // one takes a place at a time

void say(const char* text, size_t size) {
  while (size > 0) {
    const ssize_t n = ::write(STDERR_FILENO, text, size);
    if (n <= 0) return;   // the process ends all the same
    text += n;
    size -= static_cast<size_t>(n);
  }
}

// Only what may be called in a signal's handler.
void on_fault(int number, siginfo_t* info, void*) {
  const bool sent = info->si_code <= 0;
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Watched& one : all_watched) {
    const uintptr_t begin = one.begin.load();
    if (sent || begin == 0 || at < begin || at >= one.end.load()) continue;
    std::array<char, 24> page;
    char* end = std::to_chars(page.begin(), page.end() - 1, (at - begin) / one.page_bytes.load()).ptr;
    *end++ = '\n';
    say(one.line.data(), one.line_size);
    say(page.data(), static_cast<size_t>(end - page.data()));
  }
  // The same instruction meets it again, and ends the process as it would have without this.
  std::signal(number, SIG_DFL);
  if (sent) ::raise(number);
}

bool find_map(const std::string& file, uintptr_t& begin, uintptr_t& end) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (!line.ends_with(" " + file)) continue;
    const char* last = line.data() + line.size();
    const auto from = std::from_chars(line.data(), last, begin, 16);
    if (from.ec == std::errc() && from.ptr != last && std::from_chars(from.ptr + 1, last, end, 16).ec == std::errc())
      return true;
  }
  return false;
}

}  // namespace

FaultWatch::FaultWatch(const std::string& directory, size_t page_bytes) {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, nullptr);
  });
  char resolved[PATH_MAX];
  const std::string file = std::string(::realpath(directory.c_str(), resolved) ? resolved : directory) + "/data.mdb";
  const std::string line = "store page_unreadable file=" + file + " effect=\"this process ends\" remedy=\"see what is "
                           "wrong with its disk, and run tidemark fsck\" page=";
  uintptr_t begin = 0, end = 0;
  std::lock_guard lock(watched_mutex);
  if (page_bytes == 0 || !find_map(file, begin, end)) return;
  for (Watched& one : all_watched) {
    if (one.begin.load() != 0 || line.size() > one.line.size()) continue;
    one.line_size = line.copy(one.line.data(), line.size());
    one.page_bytes = page_bytes;
    one.end = end;
    one.begin = begin;
    watched_ = &one;
    return;
  }
}

FaultWatch::~FaultWatch() {
  if (watched_ != nullptr) watched_->begin = 0;
}

}  // namespace tidemark::kv::lmdb
