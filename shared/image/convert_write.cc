// Writers: raw, fixed and dynamic VHD; and the resize in place.
#include <fcntl.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "shared/base/limits.h"
#include "shared/image/convert.h"
#include "shared/image/posix_file.h"
#include "shared/image/vhd_file.h"

namespace tidemark::image {
namespace {

constexpr size_t kChunkBytes = 1u << 20;
constexpr size_t kGranule = limits::kOrderGranule;

bool is_zero(ByteSpan bytes) {
  return bytes.empty() || (bytes[0] == 0 && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

Result<Uuid> random_uuid() {
  std::array<uint8_t, 16> bytes;
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return Status::from_errno(errno, "getrandom");
  }
  return Uuid::from_random(bytes);
}

Result<vhd::Footer> footer_for(const WriteOptions& options, vhd::DiskType type, uint64_t disk_size) {
  Uuid id = options.unique_id;
  if (id.is_nil()) { TM_ASSIGN_OR_RETURN(id, random_uuid()); }
  WallTime now = options.time ? *options.time : WallTime{std::time(nullptr) * 1'000'000'000ll};
  return vhd::make_footer(type, disk_size, id, now);
}

Status report(const WriteOptions& options, uint64_t done, uint64_t total) {
  if (!options.progress || options.progress(done, total)) return {};
  return Status(Code::kCancelled, "cancelled");
}

// A run of granules of `chunk` that are not all zeros, from `from` on.
Extent next_run(ByteSpan chunk, size_t from) {
  auto zero_at = [&](size_t at) { return is_zero(chunk.subspan(at, std::min(kGranule, chunk.size() - at))); };
  while (from < chunk.size() && zero_at(from)) from += kGranule;
  size_t end = from;
  while (end < chunk.size() && !zero_at(end)) end += kGranule;
  from = std::min(from, chunk.size());
  return {from, std::min(end, chunk.size()) - from};
}

// Calls write(offset, bytes) for all that is not zero. Chunks are aligned, so that granules are too.
template <typename Write>
Status for_each_run(ImageSource& source, const WriteOptions& options, Write write) {
  Bytes buffer(kChunkBytes);
  uint64_t at = 0;
  while (at < source.size()) {
    TM_RETURN_IF_ERROR(report(options, at, source.size()));
    TM_ASSIGN_OR_RETURN(Extent data, source.next_data(at));
    if (data.length == 0) break;
    uint64_t begin = std::max(at, data.offset / kGranule * kGranule);
    uint64_t chunk_end = (begin / kChunkBytes + 1) * kChunkBytes;
    uint64_t data_end = std::min((data.end() + kGranule - 1) / kGranule * kGranule, source.size());
    MutableByteSpan chunk(buffer.data(), static_cast<size_t>(std::min(chunk_end, data_end) - begin));
    TM_RETURN_IF_ERROR(source.read(begin, chunk));
    for (Extent run = next_run(chunk, 0); run.length != 0; run = next_run(chunk, run.end())) {
      TM_RETURN_IF_ERROR(write(begin + run.offset, ByteSpan(chunk).subspan(run.offset, run.length)));
    }
    at = begin + chunk.size();
  }
  return report(options, source.size(), source.size());
}

Status write_raw(ImageSource& source, const PosixFile& file, const WriteOptions& options) {
  TM_RETURN_IF_ERROR(file.truncate(source.size()));
  return for_each_run(source, options, [&](uint64_t offset, ByteSpan data) { return file.write(offset, data); });
}

Status write_fixed(ImageSource& source, uint64_t disk_size, const PosixFile& file, const WriteOptions& options) {
  TM_ASSIGN_OR_RETURN(vhd::Footer footer, footer_for(options, vhd::DiskType::kFixed, disk_size));
  TM_RETURN_IF_ERROR(file.truncate(disk_size + vhd::kFooterBytes));
  TM_RETURN_IF_ERROR(
      for_each_run(source, options, [&](uint64_t offset, ByteSpan data) { return file.write(offset, data); }));
  return file.write(disk_size, vhd::encode_footer(footer));
}

Status write_dynamic(ImageSource& source, uint64_t disk_size, const PosixFile& file, const WriteOptions& options) {
  TM_ASSIGN_OR_RETURN(vhd::Footer footer, footer_for(options, vhd::DiskType::kDynamic, disk_size));
  vhd::DynamicHeader header;
  header.table_entries = vhd::blocks_of(disk_size, header.block_bytes);
  std::vector<uint32_t> table(header.table_entries, vhd::kFreeEntry);
  const Bytes bitmap(header.bitmap_bytes(), 0xFF);
  uint64_t end = vhd::kTableOffset + vhd::encode_table(table).size();
  Status written = for_each_run(source, options, [&](uint64_t offset, ByteSpan data) -> Status {
    // A run lies in one chunk, and a block is a whole number of chunks.
    uint64_t block = offset / header.block_bytes;
    if (table[block] == vhd::kFreeEntry) {
      table[block] = static_cast<uint32_t>(end / vhd::kSectorBytes);
      TM_RETURN_IF_ERROR(file.write(end, bitmap));
      end += header.bitmap_bytes() + uint64_t{header.block_bytes};
    }
    uint64_t base = uint64_t{table[block]} * vhd::kSectorBytes + header.bitmap_bytes();
    return file.write(base + offset % header.block_bytes, data);
  });
  TM_RETURN_IF_ERROR(written);
  auto encoded = vhd::encode_footer(footer);
  TM_RETURN_IF_ERROR(file.write(0, encoded));
  TM_RETURN_IF_ERROR(file.write(vhd::kHeaderOffset, vhd::encode_header(header)));
  TM_RETURN_IF_ERROR(file.write(vhd::kTableOffset, vhd::encode_table(table)));
  return file.write(end, encoded);
}

class ZeroSource final : public ImageSource {
 public:
  explicit ZeroSource(uint64_t size) : size_(size) {}
  uint64_t size() const override { return size_; }
  Result<Extent> next_data(uint64_t) override { return Extent{size_, 0}; }
  Status read(uint64_t, MutableByteSpan out) override {
    std::fill(out.begin(), out.end(), 0);
    return {};
  }

 private:
  uint64_t size_;
};

// FORMAT.md, "VHD images": at every moment the file ends in a valid footer.
Status resize_fixed(const PosixFile& file, const VhdLayout& layout, uint64_t disk_size) {
  uint64_t footer_at = layout.file_bytes - vhd::kFooterBytes;
  if (layout.disk_bytes == disk_size && footer_at == disk_size) return {};
  TM_ASSIGN_OR_RETURN(vhd::Footer fresh,
                      vhd::make_footer(vhd::DiskType::kFixed, disk_size, layout.footer.unique_id, WallTime{}));
  fresh.timestamp = layout.footer.timestamp;
  fresh.original_size = layout.footer.original_size;
  TM_RETURN_IF_ERROR(file.write(disk_size, vhd::encode_footer(fresh)));
  TM_RETURN_IF_ERROR(file.sync());
  if (disk_size < footer_at) {
    TM_RETURN_IF_ERROR(file.truncate(disk_size + vhd::kFooterBytes));
  } else if (disk_size > footer_at) {
    const Bytes zeros(vhd::kFooterBytes, 0);
    TM_RETURN_IF_ERROR(file.write(footer_at, zeros));
  }
  return file.sync();
}

}  // namespace

std::optional<InputFormat> parse_input_format(std::string_view name) {
  if (name == "auto") return InputFormat::kAuto;
  if (name == "raw") return InputFormat::kRaw;
  if (name == "vpc" || name == "vhd") return InputFormat::kVpc;
  return std::nullopt;
}

std::optional<OutputFormat> parse_output_format(std::string_view name) {
  if (name == "raw") return OutputFormat::kRaw;
  if (name == "fixed" || name == "vhd-fixed") return OutputFormat::kFixedVhd;
  if (name == "dynamic" || name == "vhd-dynamic") return OutputFormat::kDynamicVhd;
  return std::nullopt;
}

std::string_view format_name(OutputFormat format) {
  switch (format) {
    case OutputFormat::kRaw: return "raw";
    case OutputFormat::kFixedVhd: return "vhd-fixed";
    case OutputFormat::kDynamicVhd: return "vhd-dynamic";
  }
  return "unknown";
}

OutputFormat format_for_name(std::string_view path) {
  if (path.size() < 4) return OutputFormat::kRaw;
  std::string ending(path.substr(path.size() - 4));
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
  return ending == ".vhd" ? OutputFormat::kFixedVhd : OutputFormat::kRaw;
}

Status write_image_file(ImageSource& source, const std::string& path, const WriteOptions& options) {
  uint64_t disk_size = source.size();
  if (options.format != OutputFormat::kRaw) {
    disk_size = (disk_size + vhd::kSectorBytes - 1) / vhd::kSectorBytes * vhd::kSectorBytes;
    if (disk_size > vhd::kDiskBytesMax) return vhd::make_footer(vhd::DiskType::kFixed, disk_size, {}, {}).status();
  }
  TM_RETURN_IF_ERROR(check_replaceable(path));
  struct stat st;
  if (!options.overwrite && ::lstat(path.c_str(), &st) == 0) {
    return Status(Code::kAlreadyExists, path + ": exists; remove it or ask to overwrite");
  }
  TM_ASSIGN_OR_RETURN(TemporaryFile temporary, TemporaryFile::create(path));
  Status written;
  switch (options.format) {
    case OutputFormat::kRaw: written = write_raw(source, temporary.file(), options); break;
    case OutputFormat::kFixedVhd: written = write_fixed(source, disk_size, temporary.file(), options); break;
    case OutputFormat::kDynamicVhd: written = write_dynamic(source, disk_size, temporary.file(), options); break;
  }
  TM_RETURN_IF_ERROR(written);
  return temporary.commit(options.overwrite);
}

Status create_image_file(const std::string& path, uint64_t disk_size, const WriteOptions& options) {
  if (disk_size > limits::kImageBytesMax) {
    return Status(Code::kInvalidArgument,
                  path + ": a size of " + std::to_string(disk_size) + " is over the limit of 64 TiB");
  }
  ZeroSource source(disk_size);
  return write_image_file(source, path, options);
}

Status resize_image_file(const std::string& path, uint64_t disk_size, InputFormat format) {
  if (disk_size > limits::kImageBytesMax) {
    return Status(Code::kInvalidArgument,
                  path + ": a size of " + std::to_string(disk_size) + " is over the limit of 64 TiB");
  }
  TM_ASSIGN_OR_RETURN(PosixFile file, PosixFile::open(path, O_RDWR));
  TM_ASSIGN_OR_RETURN(bool vhd, is_vhd(file, format));
  if (!vhd) {
    TM_RETURN_IF_ERROR(check_named_vhd(path, format));
    TM_RETURN_IF_ERROR(file.truncate(disk_size));
    return file.sync();
  }
  VhdLayout layout;
  TM_RETURN_IF_ERROR(explain_vhd_error(read_vhd_layout(file, layout), path, format));
  if (layout.footer.type == vhd::DiskType::kDynamic) {
    return Status(Code::kUnsupported,
                  path + ": a dynamic VHD is not resized in place; export it and import it at the new size");
  }
  return resize_fixed(file, layout, disk_size).with_context(path);
}

}  // namespace tidemark::image
