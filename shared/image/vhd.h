// VHD codec: footer, dynamic header, block allocation table and block bitmaps of fixed and dynamic
// disks, after Microsoft's "Virtual Hard Disk Image Format Specification" 1.0 (2006). Big-endian.
//
//   fixed:    data [0, size) | footer
//   dynamic:  footer copy @0 | header @512 | BAT @1536 | (bitmap, block)* | footer
//
// Pure: bytes in, values or an error out that names the field. Nothing here trusts a length, offset or
// count from the input before it was checked against the file's size and the limits below.
// Differencing disks are refused.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"

namespace tidemark::image::vhd {

inline constexpr uint32_t kSectorBytes = 512;
inline constexpr uint32_t kFooterBytes = 512;
inline constexpr uint32_t kHeaderBytes = 1024;
inline constexpr uint64_t kHeaderOffset = 512;
inline constexpr uint64_t kTableOffset = 1536;
inline constexpr uint32_t kBlockBytesDefault = 2u << 20;
inline constexpr uint32_t kBlockBytesMin = 4u << 10;
inline constexpr uint32_t kBlockBytesMax = 256u << 20;
inline constexpr uint32_t kTableEntriesMax = 16u << 20;  // 64 MiB of table
inline constexpr uint32_t kFreeEntry = 0xFFFFFFFF;
inline constexpr uint64_t kDiskBytesMax = 2040ull << 30;  // the specification's limit
inline constexpr uint64_t kNoOffset = ~0ull;

enum class DiskType : uint32_t { kFixed = 2, kDynamic = 3, kDifferencing = 4 };

struct Geometry {
  uint16_t cylinders = 0;
  uint8_t heads = 0, sectors = 0;
  uint64_t bytes() const { return uint64_t{cylinders} * heads * sectors * kSectorBytes; }
  bool is_max() const { return cylinders == 65535 && heads == 16 && sectors == 255; }
  bool operator==(const Geometry&) const = default;
};
// The specification's appendix "CHS Calculation". bytes() of the result is at most `disk_bytes`.
Geometry geometry_for(uint64_t disk_bytes);

struct Footer {
  uint32_t features = 2;  // bit 1 is always set
  uint32_t version = 0x00010000;
  uint64_t data_offset = kNoOffset;  // of the dynamic header
  uint32_t timestamp = 0;            // seconds since 2000-01-01 UTC
  std::array<char, 4> creator_app{'w', 'i', 'n', ' '};
  uint32_t creator_version = 0x00060001;
  std::array<char, 4> creator_host{'W', 'i', '2', 'k'};
  uint64_t original_size = 0, current_size = 0;
  Geometry geometry;
  DiskType type = DiskType::kFixed;
  Uuid unique_id;
  uint8_t saved_state = 0;
};

// Where the disk's size comes from: readers differ by who wrote the image. As QEMU's block/vpc.c: current_size for the
// creators "win ", "qem2", "d2v ", "CTXS", "tap\0", "wa\0\0" and where the geometry is at its maximum; of the others
// cylinders * heads * sectors * 512.
enum class SizeSource { kCurrentSize, kGeometry };
SizeSource size_source(const Footer& footer);
// The disk's size, for whoever reads or cuts an image. Where the geometry is the source and smaller than current_size,
// that counts all the same: VirtualBox ("vbox") rounds the geometry down and writes up to current_size, as Hyper-V does
// with any creator, and what some reader may have written must never be cut off.
uint64_t disk_bytes(const Footer& footer);

// A footer for a disk of `disk_bytes`, a multiple of 512 up to kDiskBytesMax. Its creator is one whose
// current_size counts, so that every reader sees exactly that size.
Result<Footer> make_footer(DiskType type, uint64_t disk_bytes, const Uuid& unique_id, WallTime now);
uint32_t vhd_time(WallTime time);
WallTime wall_time(uint32_t vhd_time);

std::array<uint8_t, kFooterBytes> encode_footer(const Footer& footer);
bool has_footer_cookie(ByteSpan sector);
// Checks length and cookie only; validate_footer the rest. For tools that show damaged images.
Result<Footer> parse_footer(ByteSpan sector);
Status validate_footer(ByteSpan sector);
Result<Footer> decode_footer(ByteSpan sector);  // both

struct DynamicHeader {
  uint64_t table_offset = kTableOffset;
  uint32_t table_entries = 0;
  uint32_t block_bytes = kBlockBytesDefault;
  uint32_t bitmap_bytes() const;  // padded to 512
};
std::array<uint8_t, kHeaderBytes> encode_header(const DynamicHeader& header);
// `disk_size` and `file_size` bound what the header may claim.
Result<DynamicHeader> decode_header(ByteSpan bytes, uint64_t disk_size, uint64_t file_size);

uint32_t blocks_of(uint64_t disk_size, uint32_t block_bytes);
// The first `entries` entries, padded to 512 bytes with free ones.
Bytes encode_table(const std::vector<uint32_t>& entries);
// The entries that the disk's size needs; each free, or a block that lies in the file and overlaps neither
// header, table nor another block. `bytes` is what stands at header.table_offset.
Result<std::vector<uint32_t>> decode_table(ByteSpan bytes, const DynamicHeader& header, uint64_t disk_size,
                                           uint64_t header_offset, uint64_t file_size);
// Bit 7 of byte 0 is sector 0. A clear bit: the sector reads as zeros.
inline bool bitmap_has(ByteSpan bitmap, uint32_t sector) { return (bitmap[sector / 8] >> (7 - sector % 8) & 1) != 0; }

}  // namespace tidemark::image::vhd
