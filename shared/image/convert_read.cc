// Readers: raw, fixed VHD (a window on the same bytes) and dynamic VHD.
#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "shared/image/convert.h"
#include "shared/image/posix_file.h"
#include "shared/image/vhd_file.h"

namespace tidemark::image {
namespace {

// The first `size` bytes of a file.
class WindowSource final : public ImageSource {
 public:
  WindowSource(PosixFile file, uint64_t size) : file_(std::move(file)), size_(size) {}
  uint64_t size() const override { return size_; }
  Result<Extent> next_data(uint64_t offset) override { return file_.next_data(offset, size_); }
  Status read(uint64_t offset, MutableByteSpan out) override { return file_.read(offset, out); }

 private:
  PosixFile file_;
  uint64_t size_;
};

class DynamicSource final : public ImageSource {
 public:
  DynamicSource(PosixFile file, VhdLayout layout)
      : file_(std::move(file)), layout_(std::move(layout)), bitmap_(layout_.header.bitmap_bytes()) {}
  uint64_t size() const override { return layout_.disk_bytes; }

  Result<Extent> next_data(uint64_t offset) override {
    const uint64_t block_bytes = layout_.header.block_bytes;
    while (offset < size()) {
      uint64_t block = offset / block_bytes, end = std::min((block + 1) * block_bytes, size());
      if (layout_.table[block] == vhd::kFreeEntry) {
        offset = end;
        continue;
      }
      TM_RETURN_IF_ERROR(load_bitmap(block));
      auto [begin, length] = run_at(offset - block * block_bytes, end - block * block_bytes, true);
      if (length != 0) return Extent{block * block_bytes + begin, length};
      offset = end;
    }
    return Extent{size(), 0};
  }

  Status read(uint64_t offset, MutableByteSpan out) override {
    const uint64_t block_bytes = layout_.header.block_bytes;
    while (!out.empty()) {
      uint64_t block = offset / block_bytes, within = offset % block_bytes;
      size_t count = static_cast<size_t>(std::min<uint64_t>(out.size(), block_bytes - within));
      std::memset(out.data(), 0, count);
      if (layout_.table[block] != vhd::kFreeEntry) TM_RETURN_IF_ERROR(read_block(block, within, out.first(count)));
      out = out.subspan(count);
      offset += count;
    }
    return {};
  }

 private:
  // The first run of sectors within [from, to) of the loaded block whose bit is `set`.
  Extent run_at(uint64_t from, uint64_t to, bool set) const {
    auto sector = [](uint64_t at) { return static_cast<uint32_t>(at / vhd::kSectorBytes); };
    auto next = [](uint64_t at) { return (at / vhd::kSectorBytes + 1) * vhd::kSectorBytes; };
    while (from < to && vhd::bitmap_has(bitmap_, sector(from)) != set) from = next(from);
    uint64_t end = std::min(from, to);
    while (end < to && vhd::bitmap_has(bitmap_, sector(end)) == set) end = next(end);
    return {from, std::min(end, to) - std::min(from, to)};
  }

  Status read_block(uint64_t block, uint64_t within, MutableByteSpan out) {
    TM_RETURN_IF_ERROR(load_bitmap(block));
    uint64_t data = block_offset(block) + layout_.header.bitmap_bytes();
    for (uint64_t at = within, end = within + out.size(); at < end;) {
      Extent run = run_at(at, end, true);
      if (run.length == 0) break;
      TM_RETURN_IF_ERROR(file_.read(data + run.offset, out.subspan(run.offset - within, run.length)));
      at = run.end();
    }
    return {};
  }

  uint64_t block_offset(uint64_t block) const { return uint64_t{layout_.table[block]} * vhd::kSectorBytes; }

  Status load_bitmap(uint64_t block) {
    if (bitmap_block_ == block) return {};
    bitmap_block_ = ~0ull;
    TM_RETURN_IF_ERROR(file_.read(block_offset(block), bitmap_));
    bitmap_block_ = block;
    return {};
  }

  PosixFile file_;
  VhdLayout layout_;
  Bytes bitmap_;  // of block bitmap_block_
  uint64_t bitmap_block_ = ~0ull;
};

using Sector = std::array<uint8_t, vhd::kFooterBytes>;

Result<Sector> read_sector(const PosixFile& file, uint64_t offset) {
  Sector out;
  TM_RETURN_IF_ERROR(file.read(offset, out));
  return out;
}

Status read_dynamic(const PosixFile& file, VhdLayout& layout) {
  uint64_t at = layout.footer.data_offset;
  if (at > layout.file_bytes || layout.file_bytes - at < vhd::kHeaderBytes) {
    return Status(Code::kCorruption,
                  "VHD footer: data offset is " + std::to_string(at) + "; the header does not lie in the file");
  }
  Bytes header(vhd::kHeaderBytes);
  TM_RETURN_IF_ERROR(file.read(at, header));
  // A creator that counts by geometry may have made the table for no more: the disk ends where the table does.
  uint64_t least = layout.disk_bytes;
  if (vhd::size_source(layout.footer) == vhd::SizeSource::kGeometry) least = layout.footer.geometry.bytes();
  TM_ASSIGN_OR_RETURN(layout.header, vhd::decode_header(header, least, layout.file_bytes));
  layout.disk_bytes = std::min(layout.disk_bytes, uint64_t{layout.header.table_entries} * layout.header.block_bytes);
  TM_ASSIGN_OR_RETURN(layout.header, vhd::decode_header(header, layout.disk_bytes, layout.file_bytes));
  Bytes table(uint64_t{vhd::blocks_of(layout.disk_bytes, layout.header.block_bytes)} * 4);
  TM_RETURN_IF_ERROR(file.read(layout.header.table_offset, table));
  TM_ASSIGN_OR_RETURN(layout.table, vhd::decode_table(table, layout.header, layout.disk_bytes, at, layout.file_bytes));
  return {};
}

// The footer at the end; for a dynamic disk whose last sector is damaged, its copy at 0.
Status read_footer(const PosixFile& file, VhdLayout& layout) {
  if (layout.file_bytes < vhd::kFooterBytes) {
    return Status(Code::kCorruption, "VHD footer: length of the file is " + std::to_string(layout.file_bytes) +
                                         ", too short for a footer");
  }
  TM_ASSIGN_OR_RETURN(Sector last, read_sector(file, layout.file_bytes - vhd::kFooterBytes));
  TM_ASSIGN_OR_RETURN(Sector first, read_sector(file, 0));
  Status last_valid = vhd::validate_footer(last);
  bool copy_is_dynamic = false;
  if (auto copy = vhd::decode_footer(first)) copy_is_dynamic = copy->type == vhd::DiskType::kDynamic;
  if (!last_valid && copy_is_dynamic) {
    layout.footer_copy_used = true;
    last = first;
  } else if (auto parsed = vhd::parse_footer(last)) {
    layout.footer = *parsed;
    layout.has_footer = true;
    TM_RETURN_IF_ERROR(last_valid);
    // A disk that was compacted or resized by a tool that forgot one of the two.
    if (copy_is_dynamic && parsed->type == vhd::DiskType::kDynamic && first != last) {
      auto copy = *vhd::parse_footer(first);
      if (copy.current_size != parsed->current_size || copy.data_offset != parsed->data_offset) {
        return Status(Code::kCorruption, "VHD footer: current size or data offset differs from the footer copy's at 0");
      }
    }
  } else {
    if (auto copy = vhd::parse_footer(first)) {
      layout.footer = *copy;
      layout.has_footer = true;
    }
    return last_valid;
  }
  TM_ASSIGN_OR_RETURN(layout.footer, vhd::parse_footer(last));
  layout.has_footer = true;
  return {};
}

Result<bool> looks_like_vhd(const PosixFile& file, uint64_t file_bytes) {
  if (file_bytes < vhd::kFooterBytes) return false;
  TM_ASSIGN_OR_RETURN(Sector last, read_sector(file, file_bytes - vhd::kFooterBytes));
  if (vhd::has_footer_cookie(last)) return true;
  TM_ASSIGN_OR_RETURN(Sector first, read_sector(file, 0));
  return vhd::has_footer_cookie(first);
}

}  // namespace

Status read_vhd_layout(const PosixFile& file, VhdLayout& layout) {
  TM_ASSIGN_OR_RETURN(layout.file_bytes, file.size());
  TM_RETURN_IF_ERROR(read_footer(file, layout));
  layout.disk_bytes = vhd::disk_bytes(layout.footer);
  if (layout.footer.type == vhd::DiskType::kDynamic) return read_dynamic(file, layout);
  if (layout.disk_bytes > layout.file_bytes - vhd::kFooterBytes) {
    std::string_view field = layout.disk_bytes == layout.footer.current_size ? "current size" : "geometry";
    return Status(Code::kCorruption, "VHD footer: " + std::string(field) + " gives a disk of " +
                                         std::to_string(layout.disk_bytes) + " bytes, the file holds " +
                                         std::to_string(layout.file_bytes - vhd::kFooterBytes));
  }
  return {};
}

Result<bool> is_vhd(const PosixFile& file, InputFormat format) {
  if (format != InputFormat::kAuto) return format == InputFormat::kVpc;
  TM_ASSIGN_OR_RETURN(uint64_t size, file.size());
  return looks_like_vhd(file, size);
}

Status explain_vhd_error(const Status& status, const std::string& path, InputFormat format) {
  if (status.is_ok()) return status;
  Status named = status.message().starts_with(path) ? status : status.with_context(path);
  if (format != InputFormat::kAuto || status.code() != Code::kCorruption) return named;
  return Status(named.code(), named.message() + " (if this is no VHD, give --input-format raw)");
}

Status check_named_vhd(const std::string& path, InputFormat format) {
  if (format != InputFormat::kAuto || format_for_name(path) != OutputFormat::kFixedVhd) return {};
  return {Code::kCorruption, path + " is named .vhd, but no VHD footer ends it: it was cut off, it may be; bring it "
                                    "whole, or give --input-format raw if it is a raw disk"};
}

Result<std::unique_ptr<ImageSource>> open_image_file(const std::string& path, InputFormat format) {
  TM_ASSIGN_OR_RETURN(PosixFile file, PosixFile::open(path, O_RDONLY | O_NONBLOCK));
  TM_ASSIGN_OR_RETURN(bool vhd, is_vhd(file, format));
  if (!vhd) {
    TM_ASSIGN_OR_RETURN(uint64_t size, file.size());
    return std::unique_ptr<ImageSource>(std::make_unique<WindowSource>(std::move(file), size));
  }
  VhdLayout layout;
  TM_RETURN_IF_ERROR(explain_vhd_error(read_vhd_layout(file, layout), path, format));
  if (layout.footer.type == vhd::DiskType::kFixed) {
    return std::unique_ptr<ImageSource>(std::make_unique<WindowSource>(std::move(file), layout.disk_bytes));
  }
  return std::unique_ptr<ImageSource>(std::make_unique<DynamicSource>(std::move(file), std::move(layout)));
}

Result<ImageFileInfo> image_file_info(const std::string& path, InputFormat format) {
  TM_ASSIGN_OR_RETURN(PosixFile file, PosixFile::open(path, O_RDONLY | O_NONBLOCK));
  ImageFileInfo info;
  TM_ASSIGN_OR_RETURN(info.file_size, file.size());
  TM_ASSIGN_OR_RETURN(struct stat st, file.stat());
  info.allocated = static_cast<uint64_t>(st.st_blocks) * 512;
  info.virtual_size = info.file_size;
  TM_ASSIGN_OR_RETURN(bool vhd, is_vhd(file, format));
  if (!vhd) {
    info.validity = check_named_vhd(path, format);
    return info;
  }
  VhdLayout layout;
  info.validity = explain_vhd_error(read_vhd_layout(file, layout), path, format);
  bool is_dynamic = layout.has_footer && layout.footer.type == vhd::DiskType::kDynamic;
  info.format = is_dynamic ? OutputFormat::kDynamicVhd : OutputFormat::kFixedVhd;
  if (!layout.has_footer) return info;
  VhdInfo details;
  details.footer = layout.footer;
  details.size_source = vhd::size_source(layout.footer);
  details.footer_copy_used = layout.footer_copy_used;
  info.virtual_size = info.validity ? layout.disk_bytes : vhd::disk_bytes(layout.footer);
  if (is_dynamic && info.validity) {
    details.block_bytes = layout.header.block_bytes;
    details.blocks = static_cast<uint32_t>(layout.table.size());
    auto free = std::count(layout.table.begin(), layout.table.end(), vhd::kFreeEntry);
    details.blocks_allocated = details.blocks - static_cast<uint32_t>(free);
  }
  info.vhd = std::move(details);
  return info;
}

}  // namespace tidemark::image
