// Any text as a configuration file: it loads, or the error is one line that begins with the file's name.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "shared/base/config.h"

namespace {

using namespace tidemark;

void check(bool holds) {
  if (!holds) std::abort();
}

// Text that is nearly right reaches further than noise does.
constexpr char kPlausible[] =
    "[node]\nname = \"host1\"\nrole = \"host\"\nstate_dir = \"/s\"\n"
    "[tls]\nauthority = \"/a\"\ncertificate = \"/c\"\nkey = \"/k\"\n"
    "[shared]\naddress = \"127.0.0.1:1\"\nnode = \"shared1\"\n[storage]\nbricks = [\"/b\"]\n";

template <class T>
void load(Result<T> (*loader)(const std::string&), const std::string& path) {
  Result<T> loaded = loader(path);
  if (loaded) return;
  const std::string& message = loaded.status().message();
  check(message.starts_with(path));
  check(message.find('\n') == std::string::npos);
}

void run(std::string_view text) {
  int fd = ::memfd_create("config", 0);
  check(fd >= 0);
  check(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  load(config::load_host, path);
  load(config::load_shared, path);
  load(config::load_replica, path);
  (void)config::role_of(path);
  check(config::locate(path, "node", "name").starts_with(path));
  ::close(fd);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  run(text);
  run(std::string(kPlausible) + std::string(text));
  auto parsed = config::parse_size(text);
  if (parsed && *parsed > 0) check(text.find_first_of("0123456789") != std::string_view::npos);
  (void)config::parse_duration(text);
  return 0;
}
