// Image files seen as disks: reading raw, fixed and dynamic VHD, and writing them. For the command line
// tool: plain blocking POSIX I/O on paths, which may lie in a mount. Not for a daemon's loop.
//
// What is written appears under its name whole or not at all: it is built under a temporary name
// beside it, synced and renamed; every failure, a cancel included, removes the temporary file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/image/vhd.h"

namespace tidemark::image {

enum class InputFormat { kAuto, kRaw, kVpc };  // kAuto: VHD if a footer's cookie is there
enum class OutputFormat { kRaw, kFixedVhd, kDynamicVhd };
std::optional<InputFormat> parse_input_format(std::string_view name);    // "auto", "raw", "vpc" ("vhd" too)
std::optional<OutputFormat> parse_output_format(std::string_view name);  // "raw", "fixed", "dynamic"
std::string_view format_name(OutputFormat format);                       // "raw", "vhd-fixed", "vhd-dynamic"
// ".vhd" is a fixed VHD, everything else raw.
OutputFormat format_for_name(std::string_view path);

// A disk's contents. Implemented here by files; others may (an image at a recovery point).
class ImageSource {
 public:
  virtual ~ImageSource() = default;
  virtual uint64_t size() const = 0;
  // The first extent at or after `offset` that may hold anything but zeros (its part from there on), within
  // [0, size()); length 0 at size() if none.
  virtual Result<Extent> next_data(uint64_t offset) = 0;
  // All of `out`; the range must lie within size().
  virtual Status read(uint64_t offset, MutableByteSpan out) = 0;
};

// kCorruption names the file and the field. kAuto and a damaged footer: an error, with `raw` as the way out.
Result<std::unique_ptr<ImageSource>> open_image_file(const std::string& path, InputFormat format = InputFormat::kAuto);

struct VhdInfo {
  vhd::Footer footer;
  vhd::SizeSource size_source = vhd::SizeSource::kCurrentSize;
  bool footer_copy_used = false;  // dynamic: the footer at the end is damaged, the copy at 0 is not
  uint32_t block_bytes = 0;       // dynamic only, as the next two
  uint32_t blocks = 0, blocks_allocated = 0;
};
struct ImageFileInfo {
  OutputFormat format = OutputFormat::kRaw;
  uint64_t virtual_size = 0;  // of the disk
  uint64_t file_size = 0, allocated = 0;
  std::optional<VhdInfo> vhd;
  // What open_image_file would say, and kCorruption for kAuto of a name in .vhd without a footer, which that takes
  // for a raw disk. The VHD fields are shown even if damaged.
  Status validity;
};
Result<ImageFileInfo> image_file_info(const std::string& path, InputFormat format = InputFormat::kAuto);

// (bytes of the disk done, all of them) -> go on? False cancels.
using Progress = std::function<bool(uint64_t done, uint64_t total)>;

struct WriteOptions {
  OutputFormat format = OutputFormat::kRaw;
  bool overwrite = false;  // else kAlreadyExists
  Progress progress;
  Uuid unique_id;                // of a VHD; nil draws one
  std::optional<WallTime> time;  // of a VHD; now if not given
};
// Writes `source` to `path`, thin: what reads as zeros in whole 4 KiB stays a hole (or a free block). A VHD's size
// is rounded up to 512. kCancelled if the progress callback said so.
Status write_image_file(ImageSource& source, const std::string& path, const WriteOptions& options);
// A new disk of zeros.
Status create_image_file(const std::string& path, uint64_t disk_size, const WriteOptions& options);

// Changes the disk's size in place: raw and fixed VHD (the footer moves, FORMAT.md). A dynamic VHD is refused:
// export and import it.
Status resize_image_file(const std::string& path, uint64_t disk_size, InputFormat format = InputFormat::kAuto);

}  // namespace tidemark::image
