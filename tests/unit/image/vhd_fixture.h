// Scratch files for the tests of image files.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "shared/image/convert.h"

namespace tidemark::image {

class ImageFileTest : public ::testing::Test {
 protected:
  ImageFileTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tidemark-vhd-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
  }
  ~ImageFileTest() override { std::filesystem::remove_all(root_); }

  std::string path(const std::string& name) const { return root_ + "/" + name; }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(root_))
      out.push_back(entry.path().filename().string());
    std::sort(out.begin(), out.end());
    return out;
  }
  static void spit(const std::string& path, const Bytes& bytes) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<long>(bytes.size()));
  }
  static Bytes slurp(const std::string& path) {
    Bytes out(std::filesystem::file_size(path));
    std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(out.data()), static_cast<long>(out.size()));
    return out;
  }
  // A disk with data at its start, its end and some places between.
  static Bytes some_disk(size_t size, uint32_t seed = 1) {
    std::mt19937 random(seed);
    Bytes out(size, 0);
    for (size_t at = 0; at < size; at += 700'000) {
      size_t n = std::min<size_t>(size - at, 1 + random() % 200'000);
      for (size_t i = 0; i < n; ++i) out[at + i] = static_cast<uint8_t>(random());
    }
    if (size != 0) out[size - 1] = 0x77;
    return out;
  }
  // All of a source by the way its users take: extents, then reads.
  static Bytes contents(ImageSource& source) {
    Bytes out(source.size(), 0);
    for (uint64_t at = 0; at < out.size();) {
      auto data = source.next_data(at);
      EXPECT_TRUE(data.is_ok()) << data.status().to_string();
      if (!data || data->length == 0) break;
      EXPECT_GE(data->offset, at);
      EXPECT_LE(data->end(), out.size());
      Status s = source.read(data->offset, MutableByteSpan(out).subspan(data->offset, data->length));
      EXPECT_TRUE(s.is_ok()) << s.to_string();
      at = data->end();
    }
    return out;
  }
  static Bytes contents_of(const std::string& path, InputFormat format = InputFormat::kAuto) {
    auto source = open_image_file(path, format);
    EXPECT_TRUE(source.is_ok()) << source.status().to_string();
    return source ? contents(**source) : Bytes();
  }
  static std::string open_error(const std::string& path, InputFormat format = InputFormat::kAuto) {
    auto source = open_image_file(path, format);
    return source ? "" : source.status().message();
  }
  static Status convert(const std::string& from, const std::string& to, OutputFormat format) {
    auto source = open_image_file(from);
    if (!source) return source.status();
    return write_image_file(**source, to, {.format = format});
  }

  std::string root_;
};

}  // namespace tidemark::image
