// What a VHD file says about itself, read and checked: shared by the readers and the resizer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shared/image/convert.h"
#include "shared/image/posix_file.h"
#include "shared/image/vhd.h"

namespace tidemark::image {

struct VhdLayout {
  uint64_t file_bytes = 0, disk_bytes = 0;
  bool has_footer = false;  // `footer` was found, be it valid or not
  bool footer_copy_used = false;
  vhd::Footer footer;
  vhd::DynamicHeader header;  // dynamic only, as the next
  std::vector<uint32_t> table;
};
// Fills `layout` as far as it gets; the error names the field.
Status read_vhd_layout(const PosixFile& file, VhdLayout& layout);
Result<bool> is_vhd(const PosixFile& file, InputFormat format);
// Names the file, and the way out if the format was guessed.
Status explain_vhd_error(const Status& status, const std::string& path, InputFormat format);
// Of a file without a footer: an error if it is named as a VHD. A fixed one has its only footer in its last sector, and
// looks like a raw disk once it was cut off, or padded.
Status check_named_vhd(const std::string& path, InputFormat format);

}  // namespace tidemark::image
