#include "fs/arguments.h"

#include <gtest/gtest.h>

namespace tidemark::fs {
namespace {

Next parse(std::vector<std::string> words, Arguments& out, std::string& error) {
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  return parse_arguments(static_cast<int>(argv.size()), argv.data(), out, error);
}

TEST(Arguments, FstabLineWorks) {
  Arguments a;
  std::string error;
  ASSERT_EQ(parse({"/sbin/mount.tidemark", "tidemark-config", "/mnt", "-s", "-o",
                   "rw,config=/etc/t.toml,_netdev,nosuid,x-systemd.automount"},
                  a, error),
            Next::kRun)
      << error;
  EXPECT_EQ(a.config, "/etc/t.toml");
  EXPECT_EQ(a.source, "tidemark-config");
  EXPECT_EQ(a.mountpoint, "/mnt");
  EXPECT_TRUE(a.background);
  EXPECT_EQ(a.mount_options, std::vector<std::string>{"nosuid"});
}

TEST(Arguments, DevicesAreNotForTheKernelToOpen) {
  Arguments a;
  std::string error;
  ASSERT_EQ(parse({"mount.tidemark", "vms", "/mnt", "-o", "dev,noexec"}, a, error), Next::kRun) << error;
  EXPECT_EQ(a.mount_options, std::vector<std::string>{"noexec"});
}

TEST(Arguments, SourceNamesTheConfiguration) {
  Arguments a;
  std::string error;
  ASSERT_EQ(parse({"mount.tidemark", "vms", "/mnt"}, a, error), Next::kRun);
  EXPECT_EQ(a.config, "/etc/tidemark/vms.toml");
}

TEST(Arguments, DaemonStaysInTheForeground) {
  Arguments a;
  std::string error;
  ASSERT_EQ(parse({"tidemark-fs", "--config", "x.toml", "/mnt", "-f", "-o", "ro,noallow_other,nolive"}, a, error), Next::kRun);
  EXPECT_FALSE(a.background);
  EXPECT_FALSE(a.live_restart);
  EXPECT_TRUE(a.read_only);
  EXPECT_EQ(a.allow_other, std::optional<bool>(false));
}

TEST(Arguments, WhatIsUnknownIsNamed) {
  Arguments a;
  std::string error;
  EXPECT_EQ(parse({"mount.tidemark", "s", "/m", "-o", "colour=red"}, a, error), Next::kWrong);
  EXPECT_NE(error.find("colour=red"), std::string::npos);
  EXPECT_EQ(parse({"tidemark-fs", "--config", "x", "--wat"}, a, error), Next::kWrong);
  EXPECT_NE(error.find("--wat"), std::string::npos);
  EXPECT_EQ(parse({"mount.tidemark", "s"}, a, error), Next::kWrong);
}

}  // namespace
}  // namespace tidemark::fs
