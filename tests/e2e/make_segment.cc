// Writes one segment file that is right in itself but breaks a rule of the stream: data of an image without any mark.
// With INODE, OLD and NEW it is accepted and untrue: the image was written again, has another size and another name.
//
//   make_segment CLUSTER SOURCE GENERATION IMAGE FILE [INODE OLD NEW]
#include <cstdio>
#include <cstdlib>
#include <string>

#include "journal/segment.h"

using namespace tidemark;

int main(int argc, char** argv) {
  auto uuid = [&](int i) { return i < argc ? Uuid::parse(argv[i]) : std::nullopt; };
  if ((argc != 6 && argc != 9) || !uuid(1) || !uuid(3) || !uuid(4)) {
    std::fprintf(stderr, "usage: make_segment CLUSTER SOURCE GENERATION IMAGE FILE [INODE OLD NEW]\n");
    return 2;
  }
  journal::SegmentHead head;
  head.batch.cluster = *uuid(1);
  head.batch.source = argv[2];
  head.batch.generation = *uuid(3);
  head.batch.number = BatchNumber(1);
  head.batch.incarnation = Incarnation(1);
  head.batch.nonce = *uuid(4);
  head.batch.first = head.batch.last = Counter(1);
  head.batch.label = *WallTime::parse("2026-01-01T00:00:00Z");
  journal::SegmentImage image;
  image.image = *uuid(4);
  image.epoch = Epoch(1);
  image.first = image.last = Counter(1);
  image.size = 1 << 20;
  if (argc == 9) {
    image.epoch = Epoch(1000);
    head.batch.last = Counter(3);
    image.first = image.last = Counter(3);
    wire::Mark mark;
    mark.origin = argv[2];
    mark.node.image = image.image;
    mark.node.inode = InodeNumber(std::strtoull(argv[6], nullptr, 10));
    mark.node.parent = mark.old_parent = InodeNumber(1);
    mark.kind = wire::MarkKind::kOpenWrite;
    head.marks.push_back({Counter(1), mark});
    mark.kind = wire::MarkKind::kRename;
    mark.number = mark.node.event = EventNumber(1'000'000);
    mark.old_name = argv[7];
    mark.name = argv[8];
    head.marks.push_back({Counter(2), mark});
  }
  head.images.push_back(image);
  head.extents.push_back({0, journal::ExtentKind::kData, {0, journal::kSegmentUnit}, 0});
  auto file = journal::write_segment(std::move(head), Bytes(journal::kSegmentUnit, uint8_t{0x5A}));
  if (!file) {
    std::fprintf(stderr, "make_segment: %s\n", file.status().to_string().c_str());
    return 1;
  }
  FILE* out = std::fopen(argv[5], "wb");
  bool good = out != nullptr && std::fwrite(file->data(), 1, file->size(), out) == file->size();
  if (out == nullptr || std::fclose(out) != 0 || !good) {
    std::perror(argv[5]);
    return 1;
  }
  return 0;
}
