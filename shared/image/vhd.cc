#include "shared/image/vhd.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace tidemark::image::vhd {
namespace {

constexpr std::string_view kFooterCookie = "conectix";
constexpr std::string_view kHeaderCookie = "cxsparse";
constexpr int64_t kEpochSeconds = 946684800;  // 2000-01-01 in seconds since 1970

// Field offsets of the footer.
enum : size_t {
  kFeatures = 8,
  kVersion = 12,
  kDataOffset = 16,
  kTimestamp = 24,
  kCreatorApp = 28,
  kCreatorVersion = 32,
  kCreatorHost = 36,
  kOriginalSize = 40,
  kCurrentSize = 48,
  kGeometry = 56,
  kDiskType = 60,
  kChecksum = 64,
  kUniqueId = 68,
  kSavedState = 84,
};
// And of the dynamic header.
enum : size_t {
  kHeaderDataOffset = 8,
  kHeaderTableOffset = 16,
  kHeaderVersion = 24,
  kHeaderEntries = 28,
  kHeaderBlockSize = 32,
  kHeaderChecksum = 36,
};

// The complement of the byte sum, the checksum's own four bytes counted as zero.
uint32_t checksum_of(ByteSpan bytes, size_t checksum_at) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i < checksum_at || i >= checksum_at + 4) sum += bytes[i];
  }
  return ~sum;
}

Status bad(std::string_view where, std::string_view field, const std::string& what) {
  return Status(Code::kCorruption, "VHD " + std::string(where) + ": " + std::string(field) + " " + what);
}
Status bad_footer(std::string_view field, const std::string& what) { return bad("footer", field, what); }
Status bad_header(std::string_view field, const std::string& what) { return bad("dynamic header", field, what); }

std::string hex(uint64_t v) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

}  // namespace

Geometry geometry_for(uint64_t disk_bytes) {
  constexpr uint64_t kSectorsMax = 65535ull * 16 * 255;
  uint64_t total = std::min(disk_bytes / kSectorBytes, kSectorsMax);
  uint64_t sectors, heads, tracks;  // tracks: cylinders times heads
  if (total >= 65535ull * 16 * 63) {
    sectors = 255;
    heads = 16;
    tracks = total / sectors;
  } else {
    sectors = 17;
    tracks = total / sectors;
    heads = std::max<uint64_t>((tracks + 1023) / 1024, 4);
    if (tracks >= heads * 1024 || heads > 16) {
      sectors = 31;
      heads = 16;
      tracks = total / sectors;
    }
    if (tracks >= heads * 1024) {
      sectors = 63;
      heads = 16;
      tracks = total / sectors;
    }
  }
  return {static_cast<uint16_t>(tracks / heads), static_cast<uint8_t>(heads), static_cast<uint8_t>(sectors)};
}

SizeSource size_source(const Footer& footer) {
  constexpr std::string_view kKnown[] = {"win ", "qem2", "d2v ", "CTXS", {"tap\0", 4}, {"wa\0\0", 4}};
  std::string_view app(footer.creator_app.data(), 4);
  if (std::find(std::begin(kKnown), std::end(kKnown), app) != std::end(kKnown)) return SizeSource::kCurrentSize;
  return footer.geometry.is_max() ? SizeSource::kCurrentSize : SizeSource::kGeometry;
}

uint64_t disk_bytes(const Footer& footer) {
  if (size_source(footer) == SizeSource::kCurrentSize) return footer.current_size;
  return std::max(footer.current_size, footer.geometry.bytes());
}

uint32_t vhd_time(WallTime time) {
  return static_cast<uint32_t>(std::clamp<int64_t>(time.ns / 1'000'000'000 - kEpochSeconds, 0, UINT32_MAX));
}
WallTime wall_time(uint32_t vhd_time) { return {(int64_t{vhd_time} + kEpochSeconds) * 1'000'000'000}; }

Result<Footer> make_footer(DiskType type, uint64_t disk_bytes, const Uuid& unique_id, WallTime now) {
  if (disk_bytes % kSectorBytes != 0) {
    return Status(Code::kInvalidArgument, "a VHD's size is a multiple of 512 bytes, not " + std::to_string(disk_bytes));
  }
  if (disk_bytes > kDiskBytesMax) {
    return Status(Code::kInvalidArgument,
                  "a VHD holds at most 2040 GiB, not " + std::to_string(disk_bytes) + " bytes; use a raw image (.img)");
  }
  Footer footer;
  footer.type = type;
  footer.data_offset = type == DiskType::kFixed ? kNoOffset : kHeaderOffset;
  footer.timestamp = vhd_time(now);
  footer.original_size = footer.current_size = disk_bytes;
  footer.geometry = geometry_for(disk_bytes);
  footer.unique_id = unique_id;
  return footer;
}

std::array<uint8_t, kFooterBytes> encode_footer(const Footer& footer) {
  std::array<uint8_t, kFooterBytes> out{};
  uint8_t* p = out.data();
  std::memcpy(p, kFooterCookie.data(), 8);
  store_be32(p + kFeatures, footer.features);
  store_be32(p + kVersion, footer.version);
  store_be64(p + kDataOffset, footer.data_offset);
  store_be32(p + kTimestamp, footer.timestamp);
  std::memcpy(p + kCreatorApp, footer.creator_app.data(), 4);
  store_be32(p + kCreatorVersion, footer.creator_version);
  std::memcpy(p + kCreatorHost, footer.creator_host.data(), 4);
  store_be64(p + kOriginalSize, footer.original_size);
  store_be64(p + kCurrentSize, footer.current_size);
  store_be16(p + kGeometry, footer.geometry.cylinders);
  p[kGeometry + 2] = footer.geometry.heads;
  p[kGeometry + 3] = footer.geometry.sectors;
  store_be32(p + kDiskType, static_cast<uint32_t>(footer.type));
  std::memcpy(p + kUniqueId, footer.unique_id.bytes.data(), 16);
  p[kSavedState] = footer.saved_state;
  store_be32(p + kChecksum, checksum_of(out, kChecksum));
  return out;
}

bool has_footer_cookie(ByteSpan sector) { return sector.size() >= 8 && as_text(sector.first(8)) == kFooterCookie; }

Result<Footer> parse_footer(ByteSpan sector) {
  if (sector.size() != kFooterBytes) return bad_footer("length", "is " + std::to_string(sector.size()) + ", not 512");
  if (!has_footer_cookie(sector)) return bad_footer("cookie", "is not \"conectix\": not a VHD image");
  const uint8_t* p = sector.data();
  Footer footer;
  footer.features = load_be32(p + kFeatures);
  footer.version = load_be32(p + kVersion);
  footer.data_offset = load_be64(p + kDataOffset);
  footer.timestamp = load_be32(p + kTimestamp);
  std::memcpy(footer.creator_app.data(), p + kCreatorApp, 4);
  footer.creator_version = load_be32(p + kCreatorVersion);
  std::memcpy(footer.creator_host.data(), p + kCreatorHost, 4);
  footer.original_size = load_be64(p + kOriginalSize);
  footer.current_size = load_be64(p + kCurrentSize);
  footer.geometry = {load_be16(p + kGeometry), p[kGeometry + 2], p[kGeometry + 3]};
  footer.type = static_cast<DiskType>(load_be32(p + kDiskType));
  std::memcpy(footer.unique_id.bytes.data(), p + kUniqueId, 16);
  footer.saved_state = p[kSavedState];
  return footer;
}

Status validate_footer(ByteSpan sector) {
  TM_ASSIGN_OR_RETURN(Footer footer, parse_footer(sector));
  uint32_t stored = load_be32(sector.data() + kChecksum), computed = checksum_of(sector, kChecksum);
  if (stored != computed) return bad_footer("checksum", "is " + hex(stored) + ", its bytes give " + hex(computed));
  if (footer.version >> 16 != 1) return bad_footer("version", "is " + hex(footer.version) + ", only 1.x is known");
  uint32_t type = static_cast<uint32_t>(footer.type);
  if (footer.type == DiskType::kDifferencing) {
    return Status(Code::kUnsupported, "VHD footer: disk type is differencing; merge it with its parent first");
  }
  if (type != 2 && type != 3)
    return bad_footer("disk type", "is " + std::to_string(type) + ", not fixed (2) or dynamic (3)");
  // Some writers of fixed disks store 32 bits of ones.
  bool is_none = footer.data_offset == kNoOffset || footer.data_offset == 0xFFFFFFFF;
  if (footer.type == DiskType::kFixed && !is_none) {
    return bad_footer("data offset", "is " + hex(footer.data_offset) + "; a fixed disk has all ones");
  }
  if (footer.type == DiskType::kDynamic && (footer.data_offset % kSectorBytes != 0 ||
                                            footer.data_offset < kFooterBytes || footer.data_offset > kDiskBytesMax)) {
    return bad_footer("data offset", "is " + hex(footer.data_offset) + "; no header can be there");
  }
  if (footer.current_size > kDiskBytesMax) {
    return bad_footer("current size", "is " + std::to_string(footer.current_size) + ", over the limit of 2040 GiB");
  }
  if (footer.current_size % kSectorBytes != 0) {
    return bad_footer("current size", "is " + std::to_string(footer.current_size) + ", not a multiple of 512");
  }
  if (footer.saved_state > 1)
    return bad_footer("saved state", "is " + std::to_string(footer.saved_state) + ", not 0 or 1");
  if (size_source(footer) == SizeSource::kGeometry) {
    const Geometry& g = footer.geometry;
    if (footer.current_size != 0 && g.bytes() == 0) {
      return bad_footer("geometry", "has a zero in it (" + std::to_string(g.cylinders) + "/" + std::to_string(g.heads) +
                                        "/" + std::to_string(g.sectors) +
                                        "), and this creator's size is taken from it");
    }
  }
  return {};
}

Result<Footer> decode_footer(ByteSpan sector) {
  TM_RETURN_IF_ERROR(validate_footer(sector));
  return parse_footer(sector);
}

uint32_t DynamicHeader::bitmap_bytes() const {
  uint32_t bytes = (block_bytes / kSectorBytes + 7) / 8;
  return (bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
}

uint32_t blocks_of(uint64_t disk_size, uint32_t block_bytes) {
  return static_cast<uint32_t>(disk_size / block_bytes + (disk_size % block_bytes != 0 ? 1 : 0));
}

std::array<uint8_t, kHeaderBytes> encode_header(const DynamicHeader& header) {
  std::array<uint8_t, kHeaderBytes> out{};
  uint8_t* p = out.data();
  std::memcpy(p, kHeaderCookie.data(), 8);
  store_be64(p + kHeaderDataOffset, kNoOffset);
  store_be64(p + kHeaderTableOffset, header.table_offset);
  store_be32(p + kHeaderVersion, 0x00010000);
  store_be32(p + kHeaderEntries, header.table_entries);
  store_be32(p + kHeaderBlockSize, header.block_bytes);
  store_be32(p + kHeaderChecksum, checksum_of(out, kHeaderChecksum));
  return out;
}

Result<DynamicHeader> decode_header(ByteSpan bytes, uint64_t disk_size, uint64_t file_size) {
  if (bytes.size() != kHeaderBytes) return bad_header("length", "is " + std::to_string(bytes.size()) + ", not 1024");
  const uint8_t* p = bytes.data();
  if (as_text(bytes.first(8)) != kHeaderCookie) return bad_header("cookie", "is not \"cxsparse\"");
  uint32_t stored = load_be32(p + kHeaderChecksum), computed = checksum_of(bytes, kHeaderChecksum);
  if (stored != computed) return bad_header("checksum", "is " + hex(stored) + ", its bytes give " + hex(computed));
  uint32_t version = load_be32(p + kHeaderVersion);
  if (version >> 16 != 1) return bad_header("version", "is " + hex(version) + ", only 1.x is known");
  uint64_t next = load_be64(p + kHeaderDataOffset);
  if (next != kNoOffset && next != 0xFFFFFFFF) return bad_header("data offset", "is " + hex(next) + ", not all ones");
  DynamicHeader header;
  header.table_offset = load_be64(p + kHeaderTableOffset);
  header.table_entries = load_be32(p + kHeaderEntries);
  header.block_bytes = load_be32(p + kHeaderBlockSize);
  if (!std::has_single_bit(header.block_bytes) || header.block_bytes < kBlockBytesMin ||
      header.block_bytes > kBlockBytesMax) {
    return bad_header("block size",
                      "is " + std::to_string(header.block_bytes) + ", not a power of two from 4 KiB to 256 MiB");
  }
  uint32_t needed = blocks_of(disk_size, header.block_bytes);
  if (header.table_entries < needed) {
    return bad_header("max table entries", "is " + std::to_string(header.table_entries) + ", the disk's size needs " +
                                               std::to_string(needed));
  }
  if (needed > kTableEntriesMax) {
    return bad_header("block size", "of " + std::to_string(header.block_bytes) + " makes a table of " +
                                        std::to_string(needed) + " entries, over the limit");
  }
  uint64_t table_bytes = uint64_t{needed} * 4;
  if (header.table_offset % kSectorBytes != 0 || header.table_offset < kFooterBytes ||
      header.table_offset > file_size || table_bytes > file_size - header.table_offset) {
    return bad_header("table offset", "is " + hex(header.table_offset) + "; the table does not lie in the file");
  }
  return header;
}

Bytes encode_table(const std::vector<uint32_t>& entries) {
  size_t bytes = (entries.size() * 4 + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
  Bytes out(bytes, 0xFF);
  for (size_t i = 0; i < entries.size(); ++i) store_be32(out.data() + i * 4, entries[i]);
  return out;
}

Result<std::vector<uint32_t>> decode_table(ByteSpan bytes, const DynamicHeader& header, uint64_t disk_size,
                                           uint64_t header_offset, uint64_t file_size) {
  uint32_t needed = blocks_of(disk_size, header.block_bytes);
  if (bytes.size() < uint64_t{needed} * 4) return bad("BAT", "length", "is " + std::to_string(bytes.size()) + " bytes");
  const uint64_t extent = uint64_t{header.bitmap_bytes()} + header.block_bytes;
  struct Taken {
    uint64_t begin, end;
    uint32_t entry;  // kFreeEntry: not a block
  };
  std::vector<Taken> taken{{0, kFooterBytes, kFreeEntry}, {header_offset, header_offset + kHeaderBytes, kFreeEntry}};
  const Extent table{header.table_offset, uint64_t{needed} * 4};
  for (const Taken& t : taken) {
    if (table.overlaps({t.begin, t.end - t.begin})) {
      return bad_header("table offset",
                        "is " + hex(table.offset) + "; the table overlaps the footer copy or the header");
    }
  }
  if (needed != 0) taken.push_back({table.offset, table.end(), kFreeEntry});
  std::vector<uint32_t> entries(needed);
  for (uint32_t i = 0; i < needed; ++i) {
    entries[i] = load_be32(bytes.data() + uint64_t{i} * 4);
    if (entries[i] == kFreeEntry) continue;
    uint64_t begin = uint64_t{entries[i]} * kSectorBytes;
    if (extent > file_size || begin > file_size - extent) {
      return bad("BAT", "entry " + std::to_string(i),
                 "points to " + hex(begin) + "; its block does not lie in the file");
    }
    taken.push_back({begin, begin + extent, i});
  }
  std::sort(taken.begin(), taken.end(), [](const Taken& a, const Taken& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < taken.size(); ++i) {
    const Taken &a = taken[i - 1], &b = taken[i];
    if (a.end <= b.begin) continue;
    if (a.entry == kFreeEntry && b.entry == kFreeEntry) {
      return bad_footer("data offset", "is " + hex(header_offset) + "; the header overlaps the footer copy");
    }
    uint32_t entry = b.entry != kFreeEntry ? b.entry : a.entry;
    uint32_t other = b.entry != kFreeEntry ? a.entry : b.entry;
    return bad("BAT", "entry " + std::to_string(entry),
               "points to " + hex(uint64_t{entries[entry]} * kSectorBytes) + ", which overlaps " +
                   (other == kFreeEntry ? "the header or the table" : "entry " + std::to_string(other)));
  }
  return entries;
}

}  // namespace tidemark::image::vhd
