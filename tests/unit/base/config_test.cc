#include "shared/base/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace tidemark::config {
namespace {

const char* const kHost = R"(
[node]
name = "host1"
role = "host"
state_dir = "state"
[tls]
authority = "ca.pem"
certificate = "/pki/host1.pem"
key = "/pki/host1.key"
[storage]
bricks = ["brick1", "/b/2"]
stripe_unit = "64KiB"
stripe_count = 2
[shared]
address = "127.0.0.1:7400"
[journal]
cut_interval = "250ms"
limit_bytes = "1GiB"
limit_age = "2h"
ship_rate = "10MiB"
)";

class ConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string base = testing::TempDir() + "tidemark-config-XXXXXX";
    ASSERT_NE(mkdtemp(base.data()), nullptr);
    directory_ = base;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string write(const std::string& text) {
    file_ = directory_ + "/host.toml";
    std::ofstream(file_) << text;
    return file_;
  }
  // The error of the host configuration with `from` replaced by `to`, without the directory.
  std::string error_of(const std::string& from, const std::string& to) {
    std::string text = kHost;
    size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    auto r = load_host(write(text.replace(at, from.size(), to)));
    if (r) return "accepted";
    EXPECT_EQ(exit_code_of(r.status()), 2);
    std::string message = r.status().message();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_EQ(message.rfind(file_, 0), 0u) << message;
    return message.substr(std::min(message.size(), file_.size()));
  }
  std::string directory_, file_;
};

TEST_F(ConfigTest, ReadsValuesAndDefaultsAndMakesPathsRelativeToTheFile) {
  auto r = load_host(write(kHost));
  ASSERT_TRUE(r) << r.status().to_string();
  EXPECT_EQ(r->node.name, "host1");
  EXPECT_EQ(r->node.state_dir, directory_ + "/state");
  EXPECT_EQ(r->node.run_dir, directory_ + "/state");
  EXPECT_EQ(r->tls.authority, directory_ + "/ca.pem");
  EXPECT_EQ(r->tls.key, "/pki/host1.key");
  EXPECT_EQ(r->storage.bricks, (std::vector<std::string>{directory_ + "/brick1", "/b/2"}));
  EXPECT_EQ(r->storage.stripe_unit, 65536u);
  EXPECT_EQ(r->storage.group, "default");
  EXPECT_EQ(r->shared->connections, 2u);
  EXPECT_FALSE(r->replica);
  EXPECT_EQ(r->journal.cut_interval, std::chrono::milliseconds(250));
  EXPECT_EQ(r->journal.limit_bytes, 1ull << 30);
  EXPECT_EQ(r->journal.limit_age, std::chrono::hours(2));
  EXPECT_EQ(r->journal.ship_rate, 10u << 20);
  EXPECT_TRUE(r->mount.allow_other);
}

TEST_F(ConfigTest, UnknownKeyNamesLineAndTheKeyThatWasMeant) {
  EXPECT_EQ(error_of("cut_interval", "cut_intervall"), ":17: [journal] unknown key cut_intervall: did you mean cut_interval?");
  EXPECT_EQ(error_of("[journal]", "[jurnal]"), ":16: unknown section [jurnal]: did you mean journal?");
}

TEST_F(ConfigTest, WrongTypeNamesLineAndRemedy) {
  EXPECT_EQ(error_of("stripe_count = 2", "stripe_count = \"2\""),
            ":13: [storage] stripe_count: must be a whole number between 1 and 256");
  EXPECT_EQ(error_of("name = \"host1\"", "name = 1"), ":3: [node] name: must be text: write name = \"...\"");
}

TEST_F(ConfigTest, BadSizeNamesLineAndRemedy) {
  EXPECT_EQ(error_of("1GiB", "1GoB"),
            ":18: [journal] limit_bytes: bad size \"1GoB\": write bytes or a number with KiB, MiB, GiB or TiB, such "
            "as 256MiB");
  EXPECT_EQ(error_of("64KiB", "65KB"), ":12: [storage] stripe_unit: size is not a multiple of 4096: round it");
  EXPECT_EQ(error_of("\"1GiB\"", "-5"), ":18: [journal] limit_bytes: bad size: it must not be negative");
}

TEST_F(ConfigTest, MissingKeyAndSectionAreNamed) {
  EXPECT_EQ(error_of("state_dir = \"state\"\n", ""), ":2: [node] state_dir is missing: add state_dir = \"...\"");
  EXPECT_EQ(error_of("[shared]\naddress = \"127.0.0.1:7400\"\n", ""), ":1: section [shared] is missing: add it");
}

TEST_F(ConfigTest, RoleMustFitTheProgram) {
  EXPECT_NE(error_of("role = \"host\"", "role = \"shared\"").find(":4: [node] role: is \"shared\" but must be"),
            std::string::npos);
}

TEST_F(ConfigTest, BadAddressAndDurationAreRefused) {
  EXPECT_NE(error_of("127.0.0.1:7400", "127.0.0.1").find(":15: [shared] address: bad address"), std::string::npos);
  EXPECT_NE(error_of("127.0.0.1:7400", "127.0.0.1:99999").find(":15: [shared] address: bad address"), std::string::npos);
  EXPECT_NE(error_of("250ms", "250").find(":17: [journal] cut_interval: bad duration"), std::string::npos);
}

TEST_F(ConfigTest, NotTomlNamesTheLine) {
  EXPECT_NE(error_of("[tls]", "[tls").find(":6: not TOML"), std::string::npos);
}

TEST_F(ConfigTest, MissingFileIsNamed) {
  auto r = load_shared(directory_ + "/none.toml");
  ASSERT_FALSE(r);
  EXPECT_NE(r.status().message().find("none.toml:1: no such configuration file"), std::string::npos);
}

TEST_F(ConfigTest, WhatIsNoFileIsSaidToBeNone) {
  auto r = load_host(directory_);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.status().message(), directory_ + ":1: is no regular file: name a configuration file with --config");
}

// Its parser nests a table for each part of a key, without a bound.
TEST_F(ConfigTest, AKeyOfVeryManyPartsIsRefused) {
  std::string key = "a";
  for (int i = 1; i < 50'000; ++i) key += ".a";
  EXPECT_EQ(error_of("name = \"host1\"", key + " = 1"),
            ":3: more than 4096 dots in all, which no configuration has: keys are written under their [section]");
  EXPECT_EQ(error_of("[tls]", "[" + key + "]").find(":6: more than 4096 dots"), 0u);
  const std::string comment = "# " + std::string(50'000, '.') + "\n";
  auto r = load_host(write(comment + kHost));
  EXPECT_TRUE(r.is_ok()) << r.status().to_string();
}

TEST_F(ConfigTest, UrlsThatNameNoHostOrNoPortAreRefused) {
  const std::string last = "ship_rate = \"10MiB\"\n";
  for (const char* section : {"replica", "witness"}) {
    auto error = [&](const std::string& url) {
      return error_of(last, last + "[" + section + "]\nurl = \"" + url + "\"\n");
    };
    for (const char* url : {"https://", "https:///", "https://:7443", "https://127.0.0.1:99999", "https://127.0.0.1:", "https://a:b",
                            "https://127.0.0.1:0", "https://::1:7443", "http://replica1:7443", "https:///v1"}) {
      EXPECT_EQ(error(url).find(":22: [" + std::string(section) + "] url: bad url"), 0u) << url << error(url);
    }
    for (const char* url : {"https://replica1", "https://127.0.0.1:7443", "https://[::1]:7443", "https://[::1]", "https://replica1:7443/"})
      EXPECT_EQ(error(url), "accepted") << url;
  }
}

TEST_F(ConfigTest, AnEmptyNameOfAPeerIsRefused) {
  const std::string address = "address = \"127.0.0.1:7400\"\n", last = "ship_rate = \"10MiB\"\n";
  const std::string empty = "] node: is empty: name the node of its certificate, or leave the key out";
  EXPECT_EQ(error_of(address, address + "node = \"\"\n"), ":16: [shared" + empty);
  for (const std::string section : {"replica", "witness"})
    EXPECT_EQ(error_of(last, last + "[" + section + "]\nurl = \"https://a\"\nnode = \"\"\n"), ":23: [" + section + empty);
}

TEST_F(ConfigTest, TextWithANulByteIsRefused) {
  const std::string nul = "a\\u0000b", what = ": has a NUL byte: remove it";
  const std::string last = "ship_rate = \"10MiB\"\n";
  EXPECT_EQ(error_of("\"state\"", "\"" + nul + "\""), ":5: [node] state_dir" + what);
  EXPECT_EQ(error_of("\"state\"", "\"state\"\nrun_dir = \"" + nul + "\""), ":6: [node] run_dir" + what);
  EXPECT_EQ(error_of("\"brick1\"", "\"" + nul + "\""), ":11: [storage] bricks" + what);
  EXPECT_EQ(error_of(last, last + "[log]\nfile = \"" + nul + "\"\n"), ":22: [log] file" + what);
}

TEST_F(ConfigTest, TheRootIsNoMountPoint) {
  const std::string last = "ship_rate = \"10MiB\"\n";
  for (const char* path : {"/", "//", "/x/.."})
    EXPECT_EQ(error_of(last, last + "[mount]\npath = \"" + path + "\"\n"),
              ":22: [mount] path: is the root directory: name a directory in it");
  EXPECT_EQ(error_of(last, last + "[mount]\npath = \"/x\"\n"), "accepted");
}

TEST_F(ConfigTest, LocateGivesTheLineOfTheKey) {
  write(kHost);
  EXPECT_EQ(locate(file_, "shared", "address"), file_ + ":15: [shared] address");
  EXPECT_EQ(locate(file_, "shared", "node"), file_ + ":14: [shared] node");
}

TEST_F(ConfigTest, MissingBrickAndCertificateAreOneLineWithARemedy) {
  auto r = load_host(write(kHost));
  ASSERT_TRUE(r);
  EXPECT_EQ(check_paths(file_, r->tls, &r->storage).message(), file_ + ":7: [tls] authority: " + directory_ +
                                                                    "/ca.pem is missing: make it with tidemark pki issue");
  std::ofstream(directory_ + "/ca.pem") << "x";
  r->tls.certificate = r->tls.key = r->tls.authority;
  std::filesystem::permissions(r->tls.key, std::filesystem::perms(0640));
  EXPECT_EQ(check_paths(file_, r->tls, &r->storage).message(),
            file_ + ":9: [tls] key: " + r->tls.key + " may be read by others than its owner: chmod 600 it");
  std::filesystem::permissions(r->tls.key, std::filesystem::perms(0600));
  EXPECT_EQ(check_paths(file_, r->tls, &r->storage).message(),
            file_ + ":11: [storage] bricks: brick " + directory_ + "/brick1 is missing: mount or create the directory");
}

TEST_F(ConfigTest, RoleOfReadsTheRoleAlone) {
  auto r = role_of(write(kHost));
  ASSERT_TRUE(r) << r.status().to_string();
  EXPECT_EQ(*r, "host");
  EXPECT_FALSE(role_of(write("[node]\nname = \"x\"\n")));
}

}  // namespace
}  // namespace tidemark::config
