// Any bytes as a VHD file. Checksums are made right first (a fuzzer does not guess them), so that the
// fields behind them are reached. What is accepted must be readable within the file and bounded.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "shared/image/convert.h"
#include "shared/image/vhd.h"

namespace {

using namespace tidemark;
using namespace tidemark::image;

void reseal(Bytes& file, size_t at, size_t length, size_t checksum_at) {
  if (at > file.size() || file.size() - at < length) return;
  store_be32(file.data() + at + checksum_at, 0);
  uint32_t sum = 0;
  for (size_t i = 0; i < length; ++i) sum += file[at + i];
  store_be32(file.data() + at + checksum_at, ~sum);
}

// Puts cookies and checksums where a reader looks for them.
Bytes made_plausible(ByteSpan input) {
  Bytes file(input.begin(), input.end());
  if (file.size() < 512) return file;
  auto put = [&](size_t at, std::string_view cookie) {
    if (at + cookie.size() <= file.size())
      std::copy(cookie.begin(), cookie.end(), file.begin() + static_cast<long>(at));
  };
  size_t end = file.size() - 512;
  uint64_t header = load_be64(file.data() + end + 16);
  if (header < file.size() && file.size() - header >= 1024) {
    put(header, "cxsparse");
    reseal(file, header, 1024, 36);
  }
  put(end, "conectix");
  reseal(file, end, 512, 64);
  return file;
}

void check(bool holds) {
  if (!holds) std::abort();
}

// At most a few MiB of a disk are read: its size may be terabytes.
void read_some(ImageSource& source) {
  Bytes buffer(64u << 10);
  uint64_t at = 0;
  for (int i = 0; i < 64 && at < source.size(); ++i) {
    auto data = source.next_data(at);
    if (!data) return;
    check(data->offset >= at && data->end() <= source.size());
    if (data->length == 0) return;
    size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), data->length));
    check(source.read(data->offset, MutableByteSpan(buffer).first(n)).is_ok());
    at = data->offset + n;
  }
}

void run(const Bytes& file) {
  int fd = ::memfd_create("vhd", 0);
  check(fd >= 0);
  check(::write(fd, file.data(), file.size()) == static_cast<ssize_t>(file.size()));
  std::string path = "/proc/self/fd/" + std::to_string(fd);
  for (InputFormat format : {InputFormat::kAuto, InputFormat::kVpc}) {
    auto source = open_image_file(path, format);
    auto info = image_file_info(path, format);
    check(info.is_ok());
    check(source.is_ok() == info->validity.is_ok());
    if (source) {
      check((*source)->size() == info->virtual_size);
      read_some(**source);
    } else {
      check(!source.status().message().empty());
    }
  }
  ::close(fd);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ByteSpan input(data, size);
  run(Bytes(input.begin(), input.end()));
  run(made_plausible(input));
  return 0;
}
