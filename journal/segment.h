// The segment file: one part of one batch, as staged by a source, shipped, and kept by the replica.
// FORMAT.md specifies the bytes and the rule "valid if and only if"; this is its only codec.
//
//   preamble (fixed) | head (batch, images, marks, extents, chunk table) | chunks
//
// Everything that describes the part stands in front, so that a reader needs only a prefix of the
// file (SegmentReader::prefix_bytes) and then single chunks. No I/O here: the caller brings bytes.
// Any thread, one object at a time by one thread; a parsed SegmentReader is immutable.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/digest.h"
#include "shared/base/ids.h"
#include "shared/base/limits.h"
#include "shared/base/status.h"
#include "shared/wire/messages.h"

namespace tidemark::journal {

inline constexpr uint16_t kSegmentVersion = 1;
inline constexpr uint32_t kSegmentPreambleBytes = 64;
inline constexpr uint32_t kSegmentUnit = 4096;              // extents and payload positions are multiples of it
inline constexpr uint32_t kSegmentChunkBytes = 64u << 10;   // uncompressed; the last chunk may be shorter
inline constexpr uint64_t kSegmentPayloadBytesMax = 48ull << 20;  // uncompressed bytes of one part
inline constexpr uint32_t kSegmentImagesMax = 65536;
inline constexpr uint32_t kSegmentMarksMax = 65536;         // of one part
inline constexpr uint32_t kSegmentExtentsMax = 1u << 18;    // of one part
inline constexpr uint32_t kSegmentHeadBytesMax = 15u << 20;
inline constexpr uint32_t kSegmentPartsMax = 65536;

enum class BatchKind : uint8_t {
  kNormal = 1,  // the changes between the cut before and this one
  kResync = 2,  // holds every block that may differ from what the replica has; may supersede missing batches
  kPiece = 3,   // of a resync: no point; kept aside until the next batch of another kind, which it is applied with
};

// What a batch is. The same in all of its parts but for `part`.
struct BatchHeader {
  Uuid cluster;
  std::string source;           // node name
  Uuid generation;              // of the source's journal
  BatchNumber number;           // from 1, never used twice within a generation
  uint32_t part = 0, parts = 1; // part < parts
  BatchKind kind = BatchKind::kNormal;
  // Resync only: numbers never shipped, in whose place this batch stands. 0, 0: none. Else
  // first <= last, and last + 1 == number.
  BatchNumber supersedes_first, supersedes_last;
  Incarnation incarnation;      // of the source's run that counted the writes
  Uuid nonce;                   // of that incarnation
  Counter first, last;          // counters held: first..last; first == last + 1 when there are none
  WallTime label;               // of the cut
  std::string point_name;       // may be empty
  Sha256 previous{};            // digest of the batch before in this chain (the one before supersedes_first); zeros for the first
};

// An image that the batch changes. The table is the same in all parts of a batch.
struct SegmentImage {
  ImageId image;
  Epoch epoch;
  wire::TenureParent parent;    // of that epoch
  Counter first, last;          // of its records in this batch
  CoordinatorSequence coordinator_first, coordinator_last;  // smallest and largest known; 0: none
  uint64_t size = 0;            // bytes, at the cut. Bytes past it are not part of the image and read as zeros after a grow.
  Generation size_generation;   // 0: unknown to the source
};

struct SegmentMark {
  Counter counter;              // its place among the source's records
  wire::Mark mark;
};

enum class ExtentKind : uint8_t {
  kData = 1,     // bytes in the payload
  kZero = 2,     // reads as zeros
  kDiscard = 3,  // reads as zeros, may be freed. May lie past `size` (left by a shrink).
};

struct SegmentExtent {
  uint32_t image = 0;           // index into images
  ExtentKind kind = ExtentKind::kData;
  Extent extent;                // offset and length multiples of kSegmentUnit; data past the image's size is zeros
  uint64_t position = 0;        // kData: where its bytes begin in this part's uncompressed payload; others 0
};

// Everything but the payload.
struct SegmentHead {
  BatchHeader batch;
  std::vector<SegmentImage> images;     // by UUID, strictly ascending
  std::vector<SegmentMark> marks;       // by counter, strictly ascending
  std::vector<SegmentExtent> extents;   // by (image, offset), not overlapping; data positions ascend without gaps
};

// One chunk as stored: zstd, or raw where that is not smaller.
struct StoredChunk {
  Bytes stored;
  uint32_t raw_bytes = 0;
  uint64_t checksum = 0;        // XXH3-64 of `stored`
};
// Compresses up to kSegmentChunkBytes. Pure; call it on a worker.
StoredChunk compress_chunk(ByteSpan raw, int level = 1);
// The reverse: kCorruption unless the checksum holds and exactly out.size() bytes come out.
Status decode_chunk(ByteSpan stored, uint64_t checksum, MutableByteSpan out);

// Makes the bytes of one part:
//   SegmentWriter w(head);                  // extents' positions already assigned
//   for each kSegmentChunkBytes of payload, in order: w.add_chunk(compress_chunk(piece));
//   Result<Bytes> prefix = w.finish();      // preamble and head; then the chunks' stored bytes follow
// The file is prefix, then every chunks()[i].stored.
class SegmentWriter {
 public:
  explicit SegmentWriter(SegmentHead head) : head_(std::move(head)) {}
  void add_chunk(StoredChunk chunk);
  // kInvalidArgument if the head breaks a rule of FORMAT.md or the chunks do not add up to the extents.
  Result<Bytes> finish();
  const std::vector<StoredChunk>& chunks() const { return chunks_; }
  uint64_t stored_bytes() const { return stored_bytes_; }
  const SegmentHead& head() const { return head_; }

 private:
  SegmentHead head_;
  std::vector<StoredChunk> chunks_;
  uint64_t stored_bytes_ = 0, raw_bytes_ = 0;
};
// All of a small part in one go (tests, marks-only batches): `payload` is cut into chunks here.
Result<Bytes> write_segment(SegmentHead head, ByteSpan payload);

class SegmentReader {
 public:
  // How many bytes of the file's beginning hold preamble and head. Needs kSegmentPreambleBytes bytes.
  static Result<uint64_t> prefix_bytes(ByteSpan preamble);
  // Parses and strictly validates preamble and head from (at least) that prefix of the file.
  // kCorruption with the rule broken; kUnsupported for a newer version.
  static Result<SegmentReader> parse(ByteSpan prefix);
  // The same from a whole file in memory; also checks its length and every chunk's checksum
  // (it does not decompress them).
  static Result<SegmentReader> parse_whole(ByteSpan file);

  const SegmentHead& head() const { return head_; }
  uint64_t prefix_bytes() const { return prefix_bytes_; }
  uint64_t payload_bytes() const { return payload_bytes_; }  // uncompressed
  uint64_t file_bytes() const { return prefix_bytes_ + stored_end_.back(); }
  uint32_t chunk_count() const { return static_cast<uint32_t>(checksums_.size()); }

  // One chunk's place, for whoever keeps its own index: bytes of the file, and what decode_chunk() needs.
  struct ChunkPlace { Extent stored; uint64_t checksum = 0; uint32_t raw_bytes = 0; };
  ChunkPlace chunk(uint32_t index) const;

  // To read payload bytes [position, position + length): read stored_extent() of the file, then give it to decode().
  Extent stored_extent(Extent payload) const;
  // `stored`: the file's bytes of stored_extent(payload). Fills out (payload.length bytes). kCorruption if damaged.
  Status decode(Extent payload, ByteSpan stored, MutableByteSpan out) const;
  // Both in one, with a blocking read of the file.
  using Pread = std::function<Status(uint64_t offset, MutableByteSpan out)>;
  Status read(Extent payload, const Pread& pread, MutableByteSpan out) const;

 private:
  SegmentHead head_;
  uint64_t prefix_bytes_ = 0, payload_bytes_ = 0;
  std::vector<uint64_t> stored_end_ = {0};   // [i]: where chunk i begins, relative to the first; one more at the end
  std::vector<uint64_t> checksums_;
};

// SHA-256. A part's digest is that of its file's bytes; a batch's is that over its parts' digests, in order.
Sha256 sha256(ByteSpan data);
Sha256 batch_digest(const std::vector<Sha256>& part_digests);
// "" for all zeros, else 64 hexadecimal digits.
std::string digest_text(const Sha256& digest);
Result<Sha256> parse_digest(std::string_view hex);

}  // namespace tidemark::journal
