// What Tidemark writes, qemu-img and vhdiinfo read, and the other way round.
#include <gmock/gmock.h>

#include <array>
#include <cstdio>

#include "tests/unit/image/vhd_fixture.h"

namespace tidemark::image {
namespace {

using ::testing::HasSubstr;

struct Ran {
  int exit_code;
  std::string output;
};

Ran run(const std::string& command) {
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  std::string output;
  std::array<char, 4096> piece;
  while (size_t n = std::fread(piece.data(), 1, piece.size(), pipe)) output.append(piece.data(), n);
  return {::pclose(pipe), output};
}

bool has(const char* tool) { return run(std::string("command -v ") + tool).exit_code == 0; }

class InteropTest : public ImageFileTest {
 protected:
  void need(const char* tool) {
    if (!has(tool)) FAIL() << tool << " is not installed: run examples/install-packages";
  }
};

// Whole MiB, and sizes that no geometry hits.
const size_t kSizes[] = {1u << 20, 5u << 20, (7u << 20) + 512, (33u << 20) + 1024};

TEST_F(InteropTest, QemuReadsWhatWeWrite) {
  need("qemu-img");
  for (size_t size : kSizes) {
    spit(path("raw"), some_disk(size));
    for (OutputFormat format : {OutputFormat::kFixedVhd, OutputFormat::kDynamicVhd}) {
      std::filesystem::remove(path("x.vhd"));
      ASSERT_TRUE(convert(path("raw"), path("x.vhd"), format).is_ok());
      Ran compared = run("qemu-img compare -f vpc -F raw " + path("x.vhd") + " " + path("raw"));
      EXPECT_EQ(compared.exit_code, 0) << size << " " << format_name(format) << ": " << compared.output;
      Ran checked = run("qemu-img info --output=json -f vpc " + path("x.vhd"));
      EXPECT_THAT(checked.output, HasSubstr("\"virtual-size\": " + std::to_string(size)));
    }
  }
}

TEST_F(InteropTest, WeReadWhatQemuWrites) {
  need("qemu-img");
  for (size_t size : kSizes) {
    Bytes disk = some_disk(size);
    spit(path("raw"), disk);
    for (const char* subformat : {"fixed", "dynamic"}) {
      for (const char* force : {"on", "off"}) {
        std::string what = std::string("subformat=") + subformat + ",force_size=" + force;
        Ran made = run("qemu-img convert -f raw -O vpc -o " + what + " " + path("raw") + " " + path("q.vhd"));
        ASSERT_EQ(made.exit_code, 0) << made.output;
        auto source = open_image_file(path("q.vhd"));
        ASSERT_TRUE(source.is_ok()) << what << ": " << source.status().to_string();
        // Without force_size qemu rounds the size up to a geometry.
        ASSERT_GE((*source)->size(), disk.size());
        Ran info = run("qemu-img info --output=json -f vpc " + path("q.vhd"));
        EXPECT_THAT(info.output, HasSubstr("\"virtual-size\": " + std::to_string((*source)->size()))) << what;
        Bytes expected = disk;
        expected.resize((*source)->size());
        EXPECT_TRUE(contents(**source) == expected) << what;
        EXPECT_TRUE(image_file_info(path("q.vhd"))->validity.is_ok());
      }
    }
  }
}

TEST_F(InteropTest, QemuReadsAResizedFixedDisk) {
  need("qemu-img");
  spit(path("raw"), some_disk(4u << 20));
  ASSERT_TRUE(convert(path("raw"), path("x.vhd"), OutputFormat::kFixedVhd).is_ok());
  for (size_t size : {9u << 20, 3u << 20}) {
    ASSERT_TRUE(resize_image_file(path("x.vhd"), size).is_ok());
    std::filesystem::resize_file(path("raw"), size);
    Ran compared = run("qemu-img compare -f vpc -F raw " + path("x.vhd") + " " + path("raw"));
    EXPECT_EQ(compared.exit_code, 0) << compared.output;
  }
}

TEST_F(InteropTest, VhdiinfoReadsWhatWeWrite) {
  need("vhdiinfo");
  spit(path("raw"), some_disk(5u << 20));
  for (auto [format, type] : {std::pair{OutputFormat::kFixedVhd, "Fixed"}, {OutputFormat::kDynamicVhd, "Dynamic"}}) {
    std::string name = path(std::string(type) + ".vhd");
    ASSERT_TRUE(convert(path("raw"), name, format).is_ok());
    Ran ran = run("vhdiinfo " + name);
    EXPECT_EQ(ran.exit_code, 0) << ran.output;
    EXPECT_THAT(ran.output, HasSubstr(type));
    EXPECT_THAT(ran.output, HasSubstr(std::to_string(5u << 20)));
    Uuid id = image_file_info(name)->vhd->footer.unique_id;
    EXPECT_THAT(ran.output, HasSubstr(id.to_string()));
  }
}

}  // namespace
}  // namespace tidemark::image
