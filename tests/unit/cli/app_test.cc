// The whole program, as a user calls it, where no daemon is needed.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "shared/cli/commands.h"

namespace tidemark::cli {
namespace {

struct Ran { int code; std::string out, error; };

Ran tidemark(std::vector<std::string> words) {
  words.insert(words.begin(), "tidemark");
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  int code = run(static_cast<int>(argv.size()), argv.data());
  std::string out = testing::internal::GetCapturedStdout();
  return {code, out, testing::internal::GetCapturedStderr()};
}

class AppTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string base = testing::TempDir() + "tidemark-app-XXXXXX";
    ASSERT_NE(mkdtemp(base.data()), nullptr);
    directory_ = base;
    unsetenv("TIDEMARK_CONFIG");
    std::filesystem::create_directories(directory_ + "/mnt");
    std::ofstream(config_ = directory_ + "/host.toml")
        << "[node]\nname = \"host1\"\nrole = \"host\"\nstate_dir = \"state\"\n[tls]\nauthority = \"ca.pem\"\ncertificate = \"a\"\nkey = \"b\"\n"
        << "[storage]\nbricks = [\"brick\"]\n[shared]\naddress = \"127.0.0.1:1\"\n[mount]\npath = \"mnt\"\n";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string directory_, config_;
};

TEST_F(AppTest, WrongUsageIsExitCodeTwoAndOneLine) {
  for (auto words : std::vector<std::vector<std::string>>{{}, {"nonsense"}, {"image"}, {"image", "create"}, {"mark", "--timeout", "x"}}) {
    Ran r = tidemark(words);
    EXPECT_EQ(r.code, 2) << r.error;
    EXPECT_EQ(std::count(r.error.begin(), r.error.end(), '\n'), 1) << r.error;
  }
  EXPECT_EQ(tidemark({"status"}).code, 2);
}

TEST_F(AppTest, HelpNamesTheExitCodes) {
  Ran r = tidemark({"--help"});
  EXPECT_EQ(r.code, 0);
  EXPECT_NE(r.out.find("4 found divergence"), std::string::npos);
}

TEST_F(AppTest, ADaemonThatIsNotRunningIsUnavailableWithARemedy) {
  Ran r = tidemark({"--config", config_, "status"});
  EXPECT_EQ(r.code, 5);
  EXPECT_NE(r.error.find("start it with tidemark-fs --config " + config_), std::string::npos) << r.error;
  r = tidemark({"status", "--json", "--config", config_});   // options may stand behind the verb
  EXPECT_EQ(r.code, 5);
  EXPECT_EQ(Json::parse(r.error)["error"], "unavailable");
}

TEST_F(AppTest, ConfigCheckNamesFileLineAndRemedy) {
  Ran r = tidemark({"config", "check", config_});
  EXPECT_EQ(r.code, 2);
  EXPECT_EQ(r.out, config_ + ":6: [tls] authority: " + directory_ + "/ca.pem is missing: make it with tidemark pki issue\n");
  r = tidemark({"config", "check", "--json", config_});
  EXPECT_EQ(Json::parse(r.out)[0]["good"], false);
}

TEST_F(AppTest, CertificatesAreMadeShownAndNotOverwritten) {
  EXPECT_EQ(tidemark({"pki", "init", directory_ + "/pki"}).code, 0);
  EXPECT_NE(tidemark({"pki", "init", directory_ + "/pki"}).code, 0);
  Ran r = tidemark({"pki", "issue", "host1", "--role", "host", "--dir", directory_ + "/pki", "--san", "127.0.0.1", "--json"});
  ASSERT_EQ(r.code, 0) << r.error;
  r = tidemark({"pki", "show", directory_ + "/pki/host1.pem", "--json"});
  ASSERT_EQ(r.code, 0) << r.error;
  EXPECT_EQ(Json::parse(r.out)[0]["role"], "host");
  EXPECT_EQ(tidemark({"pki", "issue", "x", "--role", "king", "--dir", directory_ + "/pki"}).code, 2);
}

TEST_F(AppTest, NothingIsWrittenIntoAMountThatIsNotMounted) {
  Ran r = tidemark({"--config", config_, "image", "create", "a.img", "1MiB"});
  EXPECT_EQ(r.code, 5) << r.error;
  EXPECT_TRUE(std::filesystem::is_empty(directory_ + "/mnt"));
}

TEST_F(AppTest, ImageInfoLooksAtAnyFile) {
  std::ofstream(directory_ + "/x.img") << std::string(1000, 'x');
  Ran r = tidemark({"image", "info", directory_ + "/x.img", "--json"});
  ASSERT_EQ(r.code, 0) << r.error;
  EXPECT_EQ(Json::parse(r.out)["virtual_size"], 1000);
  EXPECT_EQ(tidemark({"--config", config_, "image", "info", "none.img"}).code, 3);
}

TEST_F(AppTest, NamesStayWithinTheMount) {
  Context context({.config_file = config_});
  EXPECT_EQ(name_image(context, directory_ + "/mnt/d/a.img")->path, "d/a.img");
  EXPECT_EQ(name_image(context, "d//./a.img")->path, "d/a.img");
  EXPECT_FALSE(name_image(context, "../a.img"));
  EXPECT_FALSE(name_image(context, "/etc/passwd"));
  EXPECT_TRUE(name_image(context, "11111111-2222-4333-8444-555555555555")->uuid.has_value());
}

TEST_F(AppTest, RemoveDryRunRemovesNothing) {
  std::ofstream(directory_ + "/mnt/a.img") << "x";
  Ran r = tidemark({"--config", config_, "image", "remove", "a.img", "--dry-run"});
  EXPECT_EQ(r.code, 0) << r.error;
  EXPECT_NE(r.out.find("would remove"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/mnt/a.img"));
  EXPECT_EQ(tidemark({"--config", config_, "image", "remove", "a.img"}).code, 0);
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/mnt/a.img"));
  EXPECT_EQ(tidemark({"--config", config_, "image", "remove", "a.img"}).code, 3);
}

}  // namespace
}  // namespace tidemark::cli
