// Codec of segment files. FORMAT.md is the specification; the checks here are its "valid if and only if".
#include "journal/segment.h"

#include <zstd.h>

#include <algorithm>

#include "shared/wire/codec.h"

namespace tidemark::journal {
namespace {

constexpr uint8_t kSegmentMagic[8] = {'T', 'M', 'S', 'E', 'G', 'M', 'T', '\n'};

// Preamble: offsets of its fields.
constexpr size_t kAtVersion = 8, kAtDigest = 10, kAtFlags = 11, kAtHeadBytes = 12, kAtPayloadBytes = 16,
                 kAtStoredBytes = 24, kAtChunks = 32, kAtReserved = 36, kAtHeadChecksum = 48, kAtChecksum = 56;
static_assert(kAtChecksum + 8 == kSegmentPreambleBytes);

Status bad(std::string what) { return Status(Code::kCorruption, "segment: " + std::move(what)); }

Status check_batch(const BatchHeader& b) {
  if (b.source.empty() || b.source.size() > limits::kNameBytesMax) return bad("source name is empty or too long");
  if (b.point_name.size() > limits::kNameBytesMax) return bad("point name is too long");
  if (b.cluster.is_nil() || b.generation.is_nil()) return bad("cluster or generation is nil");
  if (b.number.value == 0) return bad("batch number 0");
  if (b.parts == 0 || b.parts > kSegmentPartsMax || b.part >= b.parts) return bad("part number out of range");
  if (b.incarnation.value == 0) return bad("incarnation 0");
  if (b.first.value == 0 || b.first.value > b.last.value + 1 || b.last.value == UINT64_MAX) {
    return bad("counter range is not in order");
  }
  bool supersedes = b.supersedes_first.value != 0 || b.supersedes_last.value != 0;
  if (b.kind != BatchKind::kNormal && b.kind != BatchKind::kResync && b.kind != BatchKind::kPiece) return bad("unknown batch kind");
  if (supersedes) {
    if (b.kind == BatchKind::kNormal) return bad("only a resync batch supersedes");
    if (b.supersedes_first.value == 0 || b.supersedes_first > b.supersedes_last ||
        b.supersedes_last.next() != b.number) {
      return bad("superseded numbers are not those before the batch");
    }
  }
  bool chain_start = (supersedes ? b.supersedes_first : b.number).value == 1;
  if (chain_start != (b.previous == Sha256{})) return bad("previous digest does not fit the number");
  return Status::ok();
}

Status check_images(const SegmentHead& head) {
  if (head.images.size() > kSegmentImagesMax) return bad("too many images");
  for (size_t i = 0; i < head.images.size(); ++i) {
    const SegmentImage& image = head.images[i];
    std::string at = "image " + std::to_string(i) + ": ";
    if (image.image.is_nil()) return bad(at + "nil UUID");
    if (i > 0 && !(head.images[i - 1].image < image.image)) return bad(at + "not in ascending order");
    if (image.first > image.last || image.first < head.batch.first || image.last > head.batch.last) {
      return bad(at + "counters outside the batch's");
    }
    if (image.size > limits::kImageBytesMax) return bad(at + "size is too large");
    if (image.coordinator_first > image.coordinator_last) return bad(at + "coordinator sequences not in order");
    if (image.parent.source.size() > limits::kNameBytesMax) return bad(at + "parent's source name is too long");
    if (image.epoch.value != 0 && image.parent.epoch >= image.epoch) return bad(at + "parent epoch is not older");
  }
  return Status::ok();
}

Status check_marks(const SegmentHead& head) {
  if (head.marks.size() > kSegmentMarksMax) return bad("too many marks");
  for (size_t i = 0; i < head.marks.size(); ++i) {
    const SegmentMark& mark = head.marks[i];
    std::string at = "mark " + std::to_string(i) + ": ";
    if (i > 0 && head.marks[i - 1].counter >= mark.counter) return bad(at + "counters not ascending");
    if (mark.counter < head.batch.first || mark.counter > head.batch.last) return bad(at + "counter outside the batch's");
    auto kind = static_cast<uint8_t>(mark.mark.kind);
    if (kind < static_cast<uint8_t>(wire::MarkKind::kCreate) || kind > static_cast<uint8_t>(wire::MarkKind::kWithheld)) {
      return bad(at + "unknown kind");
    }
  }
  return Status::ok();
}

// Gives the payload's size.
Result<uint64_t> check_extents(const SegmentHead& head) {
  if (head.extents.size() > kSegmentExtentsMax) return bad("too many extents");
  uint64_t position = 0;
  for (size_t i = 0; i < head.extents.size(); ++i) {
    const SegmentExtent& e = head.extents[i];
    std::string at = "extent " + std::to_string(i) + ": ";
    if (e.image >= head.images.size()) return bad(at + "image index out of range");
    if (e.kind != ExtentKind::kData && e.kind != ExtentKind::kZero && e.kind != ExtentKind::kDiscard) {
      return bad(at + "unknown kind");
    }
    if (e.extent.length == 0 || e.extent.length % kSegmentUnit != 0 || e.extent.offset % kSegmentUnit != 0) {
      return bad(at + "not whole units");
    }
    if (e.extent.offset > limits::kImageBytesMax || e.extent.length > limits::kImageBytesMax ||
        e.extent.end() > limits::kImageBytesMax) {
      return bad(at + "past the largest image");
    }
    if (i > 0) {
      const SegmentExtent& before = head.extents[i - 1];
      if (before.image > e.image || (before.image == e.image && before.extent.end() > e.extent.offset)) {
        return bad(at + "overlaps or precedes the one before");
      }
    }
    if (e.kind != ExtentKind::kData) {
      if (e.position != 0) return bad(at + "a position without data");
      continue;
    }
    if (e.extent.offset >= head.images[e.image].size) return bad(at + "data past the image's end");
    if (e.position != position) return bad(at + "payload position leaves a gap");
    position += e.extent.length;
    if (position > kSegmentPayloadBytesMax) return bad("payload is too large");
  }
  return position;
}

Result<uint64_t> check_head(const SegmentHead& head) {
  TM_RETURN_IF_ERROR(check_batch(head.batch));
  TM_RETURN_IF_ERROR(check_images(head));
  TM_RETURN_IF_ERROR(check_marks(head));
  return check_extents(head);
}

void encode_batch(const BatchHeader& b, Writer& w) {
  w.uuid(b.cluster).text(b.source).uuid(b.generation).id(b.number).u32(b.part).u32(b.parts);
  w.u8(static_cast<uint8_t>(b.kind)).id(b.supersedes_first).id(b.supersedes_last);
  w.id(b.incarnation).uuid(b.nonce).id(b.first).id(b.last).i64(b.label.ns).text(b.point_name).raw(b.previous);
}

BatchHeader decode_batch(Reader& r) {
  BatchHeader b;
  b.cluster = r.uuid();
  b.source = r.text();
  b.generation = r.uuid();
  b.number = r.id<BatchNumber>();
  b.part = r.u32();
  b.parts = r.u32();
  b.kind = static_cast<BatchKind>(r.u8());
  b.supersedes_first = r.id<BatchNumber>();
  b.supersedes_last = r.id<BatchNumber>();
  b.incarnation = r.id<Incarnation>();
  b.nonce = r.uuid();
  b.first = r.id<Counter>();
  b.last = r.id<Counter>();
  b.label.ns = r.i64();
  b.point_name = r.text();
  ByteSpan previous = r.raw(b.previous.size());
  if (!previous.empty()) std::copy(previous.begin(), previous.end(), b.previous.begin());
  return b;
}

void encode_image(const SegmentImage& i, Writer& w) {
  w.uuid(i.image).id(i.epoch).id(i.parent.epoch).text(i.parent.source).id(i.parent.last.incarnation);
  w.id(i.parent.last.counter).u8(i.parent.clean).id(i.first).id(i.last).id(i.coordinator_first).id(i.coordinator_last);
  w.u64(i.size).id(i.size_generation);
}

SegmentImage decode_image(Reader& r) {
  SegmentImage i;
  i.image = r.uuid();
  i.epoch = r.id<Epoch>();
  i.parent.epoch = r.id<Epoch>();
  i.parent.source = r.text();
  i.parent.last.incarnation = r.id<Incarnation>();
  i.parent.last.counter = r.id<Counter>();
  i.parent.clean = r.u8();
  i.first = r.id<Counter>();
  i.last = r.id<Counter>();
  i.coordinator_first = r.id<CoordinatorSequence>();
  i.coordinator_last = r.id<CoordinatorSequence>();
  i.size = r.u64();
  i.size_generation = r.id<Generation>();
  return i;
}

Bytes encode_head(const SegmentHead& head, const std::vector<StoredChunk>& chunks) {
  Bytes out;
  Writer w(out);
  encode_batch(head.batch, w);
  w.u32(static_cast<uint32_t>(head.images.size()));
  for (const SegmentImage& image : head.images) encode_image(image, w);
  w.u32(static_cast<uint32_t>(head.marks.size()));
  for (const SegmentMark& mark : head.marks) w.id(mark.counter).blob(wire::encode(mark.mark));
  w.u32(static_cast<uint32_t>(head.extents.size()));
  out.reserve(out.size() + head.extents.size() * 29 + chunks.size() * 12);
  for (const SegmentExtent& e : head.extents) {
    w.u32(e.image).u8(static_cast<uint8_t>(e.kind)).u64(e.extent.offset).u64(e.extent.length).u64(e.position);
  }
  for (const StoredChunk& chunk : chunks) w.u32(static_cast<uint32_t>(chunk.stored.size())).u64(chunk.checksum);
  return out;
}

uint32_t raw_bytes_of(uint64_t payload_bytes, uint64_t chunk) {
  return static_cast<uint32_t>(std::min<uint64_t>(kSegmentChunkBytes, payload_bytes - chunk * kSegmentChunkBytes));
}

struct Preamble {
  uint32_t head_bytes = 0, chunks = 0;
  uint64_t payload_bytes = 0, stored_bytes = 0, head_checksum = 0;
};

Result<Preamble> parse_preamble(ByteSpan in) {
  if (in.size() < kSegmentPreambleBytes) return bad("shorter than its preamble");
  if (std::memcmp(in.data(), kSegmentMagic, sizeof kSegmentMagic) != 0) return bad("magic is wrong");
  if (load_le<uint64_t>(in.data() + kAtChecksum) != digest64(in.first(kAtChecksum))) return bad("preamble checksum is wrong");
  auto version = load_le<uint16_t>(in.data() + kAtVersion);
  if (version != kSegmentVersion) {
    return Status(Code::kUnsupported, "segment: version " + std::to_string(version) + " is not known here");
  }
  if (in[kAtDigest] != kDigestXxh3) return Status(Code::kUnsupported, "segment: digest algorithm is not known here");
  if (in[kAtFlags] != 0) return bad("unknown flags");
  if (std::any_of(in.begin() + kAtReserved, in.begin() + kAtHeadChecksum, [](uint8_t b) { return b != 0; })) {
    return bad("reserved bytes are not zero");
  }
  Preamble p;
  p.head_bytes = load_le<uint32_t>(in.data() + kAtHeadBytes);
  p.payload_bytes = load_le<uint64_t>(in.data() + kAtPayloadBytes);
  p.stored_bytes = load_le<uint64_t>(in.data() + kAtStoredBytes);
  p.chunks = load_le<uint32_t>(in.data() + kAtChunks);
  p.head_checksum = load_le<uint64_t>(in.data() + kAtHeadChecksum);
  if (p.head_bytes > kSegmentHeadBytesMax) return bad("head is too large");
  if (p.payload_bytes > kSegmentPayloadBytesMax) return bad("payload is too large");
  if (p.stored_bytes > p.payload_bytes) return bad("stored bytes exceed the payload");
  if (p.chunks != (p.payload_bytes + kSegmentChunkBytes - 1) / kSegmentChunkBytes) return bad("chunk count is wrong");
  return p;
}

Status decode_lists(Reader& r, SegmentHead& head) {
  uint32_t images = r.u32();
  if (images > kSegmentImagesMax) return bad("too many images");
  for (uint32_t i = 0; i < images && r.ok(); ++i) head.images.push_back(decode_image(r));
  uint32_t marks = r.u32();
  if (marks > kSegmentMarksMax) return bad("too many marks");
  for (uint32_t i = 0; i < marks && r.ok(); ++i) {
    SegmentMark mark;
    mark.counter = r.id<Counter>();
    Result<wire::Mark> decoded = wire::decode<wire::Mark>(r.blob());
    if (!decoded) return bad("mark " + std::to_string(i) + ": " + decoded.status().message());
    mark.mark = std::move(*decoded);
    head.marks.push_back(std::move(mark));
  }
  uint32_t extents = r.u32();
  if (extents > kSegmentExtentsMax) return bad("too many extents");
  if (extents > r.left()) return bad("head ends early");
  head.extents.reserve(extents);
  for (uint32_t i = 0; i < extents && r.ok(); ++i) {
    SegmentExtent e;
    e.image = r.u32();
    e.kind = static_cast<ExtentKind>(r.u8());
    e.extent.offset = r.u64();
    e.extent.length = r.u64();
    e.position = r.u64();
    head.extents.push_back(e);
  }
  return Status::ok();
}

}  // namespace

StoredChunk compress_chunk(ByteSpan raw, int level) {
  TM_CHECK(!raw.empty() && raw.size() <= kSegmentChunkBytes, "a chunk holds 1 to 64 KiB");
  StoredChunk chunk;
  chunk.raw_bytes = static_cast<uint32_t>(raw.size());
  thread_local Bytes scratch(ZSTD_compressBound(kSegmentChunkBytes));
  struct Free { void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); } };
  thread_local std::unique_ptr<ZSTD_CCtx, Free> context(ZSTD_createCCtx());
  size_t n = ZSTD_compressCCtx(context.get(), scratch.data(), scratch.size(), raw.data(), raw.size(), level);
  // Stored raw where compression gains nothing: length equal to the raw one says so.
  ByteSpan stored = ZSTD_isError(n) || n >= raw.size() ? raw : ByteSpan(scratch).first(n);
  chunk.stored.assign(stored.begin(), stored.end());
  chunk.checksum = digest64(chunk.stored);
  return chunk;
}

Status decode_chunk(ByteSpan stored, uint64_t checksum, MutableByteSpan out) {
  if (digest64(stored) != checksum) return bad("chunk checksum is wrong");
  if (stored.size() == out.size()) {
    std::copy(stored.begin(), stored.end(), out.begin());
    return Status::ok();
  }
  struct Free { void operator()(ZSTD_DCtx* c) const { ZSTD_freeDCtx(c); } };
  thread_local std::unique_ptr<ZSTD_DCtx, Free> context(ZSTD_createDCtx());
  size_t n = ZSTD_decompressDCtx(context.get(), out.data(), out.size(), stored.data(), stored.size());
  if (ZSTD_isError(n) || n != out.size()) return bad("chunk does not decompress to its length");
  return Status::ok();
}

void SegmentWriter::add_chunk(StoredChunk chunk) {
  raw_bytes_ += chunk.raw_bytes;
  stored_bytes_ += chunk.stored.size();
  chunks_.push_back(std::move(chunk));
}

Result<Bytes> SegmentWriter::finish() {
  auto invalid = [](const std::string& what) { return Status(Code::kInvalidArgument, what); };
  Result<uint64_t> payload = check_head(head_);
  if (!payload) return invalid(payload.status().message());
  if (*payload != raw_bytes_) return invalid("segment: the chunks do not add up to the extents");
  for (size_t i = 0; i < chunks_.size(); ++i) {
    if (chunks_[i].raw_bytes != raw_bytes_of(raw_bytes_, i)) return invalid("segment: a chunk before the last is short");
  }
  Bytes head = encode_head(head_, chunks_);
  if (head.size() > kSegmentHeadBytesMax) return invalid("segment: head is too large");
  Bytes out(kSegmentPreambleBytes);
  std::copy(std::begin(kSegmentMagic), std::end(kSegmentMagic), out.begin());
  store_le<uint16_t>(out.data() + kAtVersion, kSegmentVersion);
  out[kAtDigest] = kDigestXxh3;
  store_le<uint32_t>(out.data() + kAtHeadBytes, static_cast<uint32_t>(head.size()));
  store_le<uint64_t>(out.data() + kAtPayloadBytes, raw_bytes_);
  store_le<uint64_t>(out.data() + kAtStoredBytes, stored_bytes_);
  store_le<uint32_t>(out.data() + kAtChunks, static_cast<uint32_t>(chunks_.size()));
  store_le<uint64_t>(out.data() + kAtHeadChecksum, digest64(head));
  store_le<uint64_t>(out.data() + kAtChecksum, digest64(ByteSpan(out).first(kAtChecksum)));
  out.insert(out.end(), head.begin(), head.end());
  return out;
}

Result<Bytes> write_segment(SegmentHead head, ByteSpan payload) {
  SegmentWriter writer(std::move(head));
  while (!payload.empty()) {
    ByteSpan piece = payload.first(std::min<size_t>(payload.size(), kSegmentChunkBytes));
    writer.add_chunk(compress_chunk(piece));
    payload = payload.subspan(piece.size());
  }
  TM_ASSIGN_OR_RETURN(Bytes out, writer.finish());
  for (const StoredChunk& chunk : writer.chunks()) out.insert(out.end(), chunk.stored.begin(), chunk.stored.end());
  return out;
}

Result<uint64_t> SegmentReader::prefix_bytes(ByteSpan preamble) {
  TM_ASSIGN_OR_RETURN(Preamble p, parse_preamble(preamble));
  return uint64_t{kSegmentPreambleBytes} + p.head_bytes;
}

Result<SegmentReader> SegmentReader::parse(ByteSpan prefix) {
  TM_ASSIGN_OR_RETURN(Preamble p, parse_preamble(prefix));
  if (prefix.size() - kSegmentPreambleBytes < p.head_bytes) return bad("shorter than its head");
  ByteSpan bytes = prefix.subspan(kSegmentPreambleBytes, p.head_bytes);
  if (digest64(bytes) != p.head_checksum) return bad("head checksum is wrong");

  SegmentReader s;
  s.prefix_bytes_ = kSegmentPreambleBytes + p.head_bytes;
  s.payload_bytes_ = p.payload_bytes;
  Reader r(bytes);
  s.head_.batch = decode_batch(r);
  TM_RETURN_IF_ERROR(decode_lists(r, s.head_));
  for (uint32_t i = 0; i < p.chunks && r.ok(); ++i) {
    uint32_t stored = r.u32();
    if (stored == 0 || stored > raw_bytes_of(p.payload_bytes, i)) return bad("a chunk's length is wrong");
    s.stored_end_.push_back(s.stored_end_.back() + stored);
    s.checksums_.push_back(r.u64());
  }
  if (!r.done()) return bad("head has the wrong length");
  if (s.stored_end_.back() != p.stored_bytes) return bad("chunks do not add up to the stored bytes");
  TM_ASSIGN_OR_RETURN(uint64_t payload, check_head(s.head_));
  if (payload != p.payload_bytes) return bad("extents do not add up to the payload");
  return s;
}

Result<SegmentReader> SegmentReader::parse_whole(ByteSpan file) {
  TM_ASSIGN_OR_RETURN(SegmentReader s, parse(file));
  if (file.size() != s.file_bytes()) return bad("file length is wrong");
  for (uint32_t i = 0; i < s.chunk_count(); ++i) {
    ChunkPlace place = s.chunk(i);
    if (digest64(file.subspan(place.stored.offset, place.stored.length)) != place.checksum) {
      return bad("chunk " + std::to_string(i) + ": checksum is wrong");
    }
  }
  return s;
}

SegmentReader::ChunkPlace SegmentReader::chunk(uint32_t index) const {
  TM_CHECK(index < checksums_.size(), "chunk index out of range");
  uint64_t begin = stored_end_[index];
  return {{prefix_bytes_ + begin, stored_end_[index + 1] - begin}, checksums_[index], raw_bytes_of(payload_bytes_, index)};
}

Extent SegmentReader::stored_extent(Extent payload) const {
  TM_CHECK(payload.end() <= payload_bytes_ && payload.end() >= payload.offset, "read past the payload");
  if (payload.length == 0) return {prefix_bytes_, 0};
  uint64_t first = payload.offset / kSegmentChunkBytes, last = (payload.end() - 1) / kSegmentChunkBytes;
  return {prefix_bytes_ + stored_end_[first], stored_end_[last + 1] - stored_end_[first]};
}

Status SegmentReader::decode(Extent payload, ByteSpan stored, MutableByteSpan out) const {
  Extent expected = stored_extent(payload);
  TM_CHECK(stored.size() == expected.length && out.size() == payload.length, "decode of other bytes than asked for");
  Bytes whole;
  while (payload.length > 0) {
    auto index = static_cast<uint32_t>(payload.offset / kSegmentChunkBytes);
    ChunkPlace place = chunk(index);
    uint64_t skip = payload.offset % kSegmentChunkBytes;
    uint64_t take = std::min<uint64_t>(payload.length, place.raw_bytes - skip);
    ByteSpan from = stored.first(place.stored.length);
    if (take == place.raw_bytes) {
      TM_RETURN_IF_ERROR(decode_chunk(from, place.checksum, out.first(take)));
    } else {
      whole.resize(place.raw_bytes);
      TM_RETURN_IF_ERROR(decode_chunk(from, place.checksum, whole));
      std::copy_n(whole.begin() + static_cast<ptrdiff_t>(skip), take, out.begin());
    }
    stored = stored.subspan(place.stored.length);
    out = out.subspan(take);
    payload = {payload.offset + take, payload.length - take};
  }
  return Status::ok();
}

Status SegmentReader::read(Extent payload, const Pread& pread, MutableByteSpan out) const {
  Extent where = stored_extent(payload);
  Bytes stored(where.length);
  if (!stored.empty()) TM_RETURN_IF_ERROR(pread(where.offset, stored));
  return decode(payload, stored, out);
}

}  // namespace tidemark::journal
