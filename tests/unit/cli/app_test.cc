// The whole program, as a user calls it, where no daemon is needed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "shared/cli/commands.h"
#include "shared/daemon/process.h"

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

class HostAddTest : public AppTest {
 protected:
  void SetUp() override {
    AppTest::SetUp();
    std::filesystem::create_directories(directory_ + "/brick");
    ASSERT_EQ(tidemark({"pki", "init", "--dir", directory_ + "/pki"}).code, 0);
  }
  Ran add(const std::string& name, std::vector<std::string> more) {
    std::vector<std::string> words{"host", "add", name, "--config", config_, "--dir", directory_ + "/pki", "--out",
                                   directory_ + "/out", "--run", directory_ + "/run/" + name};
    for (std::string& word : more) words.push_back(std::move(word));
    return tidemark(std::move(words));
  }
  Ran add_places(const std::string& name, const std::string& state, const std::string& mount, const std::string& brick) {
    return add(name, {"--state", directory_ + "/" + state, "--mount", directory_ + "/" + mount, "--brick",
                      directory_ + "/" + brick});
  }
  std::set<std::string> all() {
    std::set<std::string> out;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_)) out.insert(entry.path());
    return out;
  }
};

TEST_F(HostAddTest, WhatIsRefusedLeavesNothingBehind) {
  std::ofstream(directory_ + "/file") << "x";
  std::filesystem::create_directories(directory_ + "/full/x");
  std::filesystem::create_directories(directory_ + "/out");
  const std::set<std::string> before = all();
  struct Case { std::string name, state, mount, brick, says; };
  for (const Case& c : std::vector<Case>{{"", "s", "m", "b", "NAME"},
                                         {"../x", "s", "m", "b", "NAME"},
                                         {"ca", "s", "m", "b", "NAME"},
                                         {"host1", "s", "m", "b", "another node"},
                                         {"h2", "state", "m", "b", "is host1's"},
                                         {"h2", "s", "mnt", "b", "is host1's"},
                                         {"h2", "s", "m", "brick", "is host1's"},
                                         {"h2", "s", "m", "brick/x", "is host1's"},
                                         {"h2", "s", "m", "s", "within"},
                                         {"h2", "s", "m", "m/b", "within"},
                                         {"h2", "s", "m", "full", "in use"},
                                         {"h2", "full", "m", "b", "in use"},
                                         {"h2", "s", "m", "we\nird", "control character"},
                                         {"h2", "s", "m", "file/b", "directory"}}) {
    Ran r = add_places(c.name, c.state, c.mount, c.brick);
    EXPECT_NE(r.code, 0) << c.name << c.state << c.mount << c.brick;
    EXPECT_NE(r.error.find(c.says), std::string::npos) << r.error;
    EXPECT_EQ(all(), before) << r.error;
  }
  EXPECT_NE(add("h2", {"--state", directory_ + "/s", "--mount", directory_ + "/m", "--brick", ""}).code, 0);
  EXPECT_NE(add("h2", {"--state", directory_ + "/s", "--mount", directory_ + "/m", "--brick", directory_ + "/b",
                       "--brick", directory_ + "/b"}).code, 0);
  EXPECT_EQ(all(), before);
}

TEST_F(HostAddTest, AHostIsMadeWholeAndOnce) {
  Ran r = add_places("h2", "h2/state", "h2/mnt", "h2/brick");
  ASSERT_EQ(r.code, 0) << r.error;
  for (const char* made : {"/out/h2.toml", "/out/h2.pem", "/out/h2.key", "/h2/state", "/h2/mnt", "/h2/brick"})
    EXPECT_TRUE(std::filesystem::exists(directory_ + made)) << made;
  EXPECT_EQ(tidemark({"config", "check", directory_ + "/out/h2.toml"}).code, 0);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_ + "/out"), {}), 3);
  const std::set<std::string> before = all();
  EXPECT_NE(add_places("h2", "h3/state", "h3/mnt", "h3/brick").code, 0);
  EXPECT_EQ(all(), before);
}

TEST_F(HostAddTest, ForAnotherMachineNothingHereIsLookedAt) {
  const std::set<std::string> before = all();
  Ran r = add("h2", {"--state", directory_ + "/state", "--mount", directory_ + "/mnt", "--brick",
                     directory_ + "/nowhere/brick", "--elsewhere"});
  ASSERT_EQ(r.code, 0) << r.error;
  EXPECT_EQ(all().size(), before.size() + 4);   // out, and three files
}

// Nothing is set aside for an order that could never be carried out.
TEST_F(AppTest, ARebuildsHostsAreLookedAtBeforeAnythingIsMoved) {
  const std::string shared = directory_ + "/shared.toml", state = directory_ + "/shared";
  ASSERT_EQ(tidemark({"pki", "init", "--dir", directory_ + "/pki"}).code, 0);
  ASSERT_EQ(tidemark({"pki", "issue", "shared1", "--role", "shared", "--dir", directory_ + "/pki"}).code, 0);
  std::filesystem::create_directories(state + "/catalogue");
  std::filesystem::create_directories(directory_ + "/brick");
  std::ofstream(shared) << "[node]\nname = \"shared1\"\nrole = \"shared\"\nstate_dir = \"" << state << "\"\n"
                        << "[tls]\nauthority = \"pki/ca.pem\"\ncertificate = \"pki/shared1.pem\"\n"
                        << "key = \"pki/shared1.key\"\n[storage]\nbricks = [\"brick\"]\n"
                        << "[listen]\naddress = \"127.0.0.1:0\"\n";
  for (const char* hosts : {"", "host1,,host2", "host1,", "host1,host1", "shared1", "../x", "a\nb", "host1 host2", " "}) {
    Ran r = tidemark({"shared", "rebuild", "--config", shared, "--hosts", hosts, "--without-bricks", "--force"});
    EXPECT_EQ(r.code, 2) << hosts << r.out << r.error;
    EXPECT_NE(r.error.find("--hosts"), std::string::npos) << r.error;
    EXPECT_TRUE(std::filesystem::exists(state + "/catalogue")) << hosts;
    EXPECT_FALSE(std::filesystem::exists(state + "/rebuild")) << hosts;
  }
  Ran r = tidemark({"shared", "rebuild", "--config", shared, "--hosts", "host1, host2", "--without-bricks", "--force"});
  EXPECT_EQ(r.code, 0) << r.error;
  EXPECT_NE(r.out.find("  host1 host2\n"), std::string::npos) << r.out;
}

// As long as the daemon lets one wait.
TEST_F(AppTest, AMarkWaitsForAnHourAtMost) {
  EXPECT_EQ(tidemark({"mark", "--wait", "--timeout", "3601", "--config", config_}).code, 2);
  EXPECT_EQ(tidemark({"mark", "--wait", "--timeout", "3600", "--config", config_}).code, 5);   // no daemon runs
}

TEST_F(AppTest, WrongUsageIsExitCodeTwoAndOneLine) {
  for (auto words : std::vector<std::vector<std::string>>{{}, {"nonsense"}, {"image"}, {"image", "create"}, {"mark", "--timeout", "x"}}) {
    Ran r = tidemark(words);
    EXPECT_EQ(r.code, 2) << r.error;
    EXPECT_EQ(std::count(r.error.begin(), r.error.end(), '\n'), 1) << r.error;
  }
  EXPECT_EQ(tidemark({"status"}).code, 2);
}

TEST_F(AppTest, WrongUsageNamesTheWordAndTheHelpThatSaysMore) {
  EXPECT_EQ(tidemark({"image", "creat", "a.img", "1GiB"}).error,
            "tidemark: unknown command creat: one of create, list, info, resize, import, export, remove, takeover, "
            "abort, branches: see tidemark image --help\n");
  EXPECT_EQ(tidemark({"image", "create", "a.img"}).error,
            "tidemark: SIZE is required: see tidemark image create --help\n");
  EXPECT_EQ(Json::parse(tidemark({"image", "create", "--json"}).error)["error"], "invalid_argument");
}

TEST_F(AppTest, ConfigCheckWithoutAFileLooksForTheDefaultOne) {
  ASSERT_NE(access("/etc/tidemark/host.toml", R_OK), 0) << "this machine is a host: test on one that is none";
  Ran r = tidemark({"config", "check"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.error.find("/etc/tidemark/host.toml cannot be read"), std::string::npos) << r.error;
}

TEST_F(AppTest, OutputThatCannotBeWrittenIsNoSuccess) {
  const int standard = dup(1), full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  std::fflush(stdout);
  ASSERT_GE(dup2(full, 1), 0);
  std::vector<std::string> words{"tidemark", "version"};
  char* argv[] = {words[0].data(), words[1].data()};
  testing::internal::CaptureStderr();
  const int code = run(2, argv);
  std::clearerr(stdout);
  dup2(standard, 1);
  close(standard);
  close(full);
  EXPECT_EQ(code, 1);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("No space left on device"), std::string::npos);
}

// It gives stores other names, under a daemon that began with them meanwhile.
TEST_F(AppTest, ARepairKeepsTheDaemonAway) {
  std::filesystem::create_directories(directory_ + "/state");
  std::filesystem::create_directories(directory_ + "/brick");
  auto daemon = daemon::PidFile::take(directory_ + "/state/host1.pid");
  ASSERT_TRUE(daemon) << daemon.status().to_string();
  Ran r = tidemark({"--config", config_, "fsck", "--repair"});
  EXPECT_EQ(r.code, 8);
  EXPECT_NE(r.out.find("the daemon must be stopped first"), std::string::npos) << r.out;
  EXPECT_NE(tidemark({"--config", config_, "fsck"}).out.find("0 stores"), std::string::npos);
  *daemon = daemon::PidFile();
  r = tidemark({"--config", config_, "fsck", "--repair"});
  EXPECT_NE(r.out.find("0 stores"), std::string::npos) << r.out << r.error;
  EXPECT_TRUE(daemon::PidFile::take(directory_ + "/state/host1.pid")) << "it is let go";
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

TEST_F(AppTest, ConfigCheckFindsWhatAPeerWouldRefuse) {
  std::filesystem::create_directories(directory_ + "/brick");
  auto issue = [&](std::vector<std::string> more, const std::string& authority = "/pki") {
    std::vector<std::string> words{"pki", "issue", "host1", "--force", "--dir", directory_ + authority, "--out"};
    words.push_back(directory_ + "/pki");
    words.insert(words.end(), more.begin(), more.end());
    Ran r = tidemark(words);
    ASSERT_EQ(r.code, 0) << r.error;
  };
  auto check = [&] { return tidemark({"config", "check", config_}); };
  ASSERT_EQ(tidemark({"pki", "init", directory_ + "/pki"}).code, 0);
  ASSERT_EQ(tidemark({"pki", "init", directory_ + "/other"}).code, 0);
  std::filesystem::create_symlink("pki/ca.pem", directory_ + "/ca.pem");
  std::filesystem::create_symlink("pki/host1.pem", directory_ + "/a");
  std::filesystem::create_symlink("pki/host1.key", directory_ + "/b");
  issue({});
  EXPECT_EQ(check().out, config_ + ": good (host)\n");
  struct Case { std::vector<std::string> options; std::string authority, line, what; };
  for (const Case& c : std::vector<Case>{
           {{"--role", "operator"}, "/pki", ":7: [tls] certificate: ", "is operator host1's, not host host1's: make"},
           {{"--not-before", "2020-01-01T00:00:00Z", "--not-after", "2020-02-01T00:00:00Z"},
            "/pki", ":7: [tls] certificate: ", "expired at 2020-02-01T00:00:00"},
           {{}, "/other", ":7: [tls] certificate: ", "issue it with this cluster's authority"}}) {
    issue(c.options, c.authority);
    Ran r = check();
    EXPECT_EQ(r.code, 2);
    EXPECT_EQ(r.out.rfind(config_ + c.line, 0), 0u) << r.out;
    EXPECT_NE(r.out.find(c.what), std::string::npos) << r.out;
  }
  issue({});
  std::filesystem::copy(directory_ + "/pki/host1.key", directory_ + "/former.key");
  issue({});
  std::filesystem::rename(directory_ + "/former.key", directory_ + "/pki/host1.key");
  EXPECT_NE(check().out.find(":8: [tls] key: key "), std::string::npos) << check().out;
  issue({});
  std::filesystem::permissions(directory_ + "/pki/host1.key", std::filesystem::perms(0644));
  EXPECT_NE(check().out.find("may be read by others than its owner: chmod 600 it"), std::string::npos) << check().out;
  std::filesystem::permissions(directory_ + "/pki/host1.key", std::filesystem::perms(0600));
  std::filesystem::remove(directory_ + "/mnt");
  EXPECT_NE(check().out.find("[mount] path: " + directory_ + "/mnt is missing: create"), std::string::npos);
}

// Without a live mount the directory below it would be listed as empty, or be filled.
TEST_F(AppTest, AMountThatIsNotMountedIsUnavailableForEveryVerb) {
  std::ofstream(directory_ + "/mnt/below.img") << "x";
  for (auto words : std::vector<std::vector<std::string>>{{"create", "a.img", "1MiB"}, {"list"}, {"info", "below.img"},
                                                          {"resize", "below.img", "1MiB"}, {"remove", "below.img"},
                                                          {"export", "below.img", "-o", directory_ + "/out.img"}}) {
    words.insert(words.begin(), {"--config", config_, "image"});
    Ran r = tidemark(words);
    EXPECT_EQ(r.code, 5) << words[3] << ": " << r.error;
    EXPECT_NE(r.error.find("/mnt is not mounted: start tidemark-fs first"), std::string::npos) << r.error;
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_ + "/mnt"), {}), 1);
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/out.img"));
}

TEST_F(AppTest, AForeignImageIsNotTakenForARawDisk) {
  std::ofstream(directory_ + "/disk.qcow2") << "QFI\xfb" << std::string(4096, '\0');
  Ran r = tidemark({"--config", config_, "image", "import", directory_ + "/disk.qcow2", "a.img"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.error.find("is a qcow2 image: convert it with qemu-img convert -O raw"), std::string::npos) << r.error;
}

TEST_F(AppTest, ImageInfoLooksAtAnyFile) {
  std::ofstream(directory_ + "/x.img") << std::string(1000, 'x');
  Ran r = tidemark({"image", "info", directory_ + "/x.img", "--json"});
  ASSERT_EQ(r.code, 0) << r.error;
  EXPECT_EQ(Json::parse(r.out)["virtual_size"], 1000);
  EXPECT_EQ(tidemark({"--config", config_, "image", "info", "none.img"}).code, 5);   // nothing is mounted
}

TEST_F(AppTest, NamesStayWithinTheMount) {
  Context context({.config_file = config_});
  EXPECT_EQ(name_image(context, directory_ + "/mnt/d/a.img")->path, "d/a.img");
  EXPECT_EQ(name_image(context, "d//./a.img")->path, "d/a.img");
  EXPECT_FALSE(name_image(context, "../a.img"));
  EXPECT_FALSE(name_image(context, "/etc/passwd"));
  EXPECT_TRUE(name_image(context, "11111111-2222-4333-8444-555555555555")->uuid.has_value());
}

// Some file system that is mounted stands for Tidemark's own.
class MountedTest : public AppTest {
 protected:
  void SetUp() override {
    AppTest::SetUp();
    struct stat inside {}, above {};
    ASSERT_EQ(stat("/dev/shm", &inside), 0);
    ASSERT_EQ(stat("/dev", &above), 0);
    ASSERT_NE(inside.st_dev, above.st_dev) << "/dev/shm is no mount here: mount a tmpfs on it";
    std::string text;
    {
      std::ifstream in(config_);
      text.assign(std::istreambuf_iterator<char>(in), {});
    }
    text.replace(text.find("\"mnt\""), 5, "\"/dev/shm\"");
    std::ofstream(config_) << text;
    name_ = std::filesystem::path(directory_).filename().string();   // unlike any other in that mount
  }
  void TearDown() override {
    if (!name_.empty()) std::filesystem::remove_all("/dev/shm/" + name_);
    AppTest::TearDown();
  }
  Ran image(std::vector<std::string> words) {
    words.insert(words.begin(), {"--config", config_, "image"});
    return tidemark(words);
  }
  std::string name_;
};

TEST_F(MountedTest, RemoveDryRunRemovesNothing) {
  std::ofstream("/dev/shm/" + name_) << "x";
  Ran r = image({"remove", name_, "--dry-run"});
  EXPECT_EQ(r.code, 0) << r.error;
  EXPECT_NE(r.out.find("would remove"), std::string::npos);
  EXPECT_NE(r.out.find("no replica is configured: nothing keeps it"), std::string::npos) << r.out;
  EXPECT_TRUE(std::filesystem::exists("/dev/shm/" + name_));
  r = image({"remove", name_});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.error.find("nothing keeps it: give --force"), std::string::npos) << r.error;
  EXPECT_TRUE(std::filesystem::exists("/dev/shm/" + name_));
  EXPECT_EQ(image({"remove", name_, "--force"}).code, 0);
  EXPECT_FALSE(std::filesystem::exists("/dev/shm/" + name_));
  EXPECT_EQ(image({"remove", name_}).code, 3);
}

TEST_F(MountedTest, AListHasEveryImage) {
  const std::string directory = "/dev/shm/" + name_;
  std::filesystem::create_directories(directory);
  constexpr size_t kImages = 10'001;
  for (size_t i = 0; i < kImages; ++i) std::ofstream(directory + "/" + std::to_string(i) + ".img").flush();
  auto images = mounted_images(directory);
  ASSERT_TRUE(images) << images.status().to_string();
  EXPECT_EQ(images->size(), kImages);
}

TEST_F(MountedTest, ANameThatIsTakenOrHasNoDirectorySaysWhatToDo) {
  EXPECT_EQ(image({"create", name_ + "/a.img", "1MiB"}).error,
            "tidemark: directory /dev/shm/" + name_ + " does not exist: make it with mkdir first\n");
  std::filesystem::create_directories("/dev/shm/" + name_);
  EXPECT_EQ(image({"create", name_ + "/a.img", "1MiB"}).code, 0);
  EXPECT_EQ(image({"create", name_ + "/a.img", "1MiB"}).error,
            "tidemark: /dev/shm/" + name_ + "/a.img exists already: choose another name, or remove it first\n");
}

TEST_F(MountedTest, AnExportedNameInVhdIsAVhd) {
  std::filesystem::create_directories("/dev/shm/" + name_);
  ASSERT_EQ(image({"create", name_ + "/a.img", "1MiB"}).code, 0);
  Ran r = image({"export", name_ + "/a.img", "-o", directory_ + "/a.vhd"});
  ASSERT_EQ(r.code, 0) << r.error;
  EXPECT_NE(r.out.find("vhd-fixed"), std::string::npos) << r.out;
}

TEST_F(MountedTest, AVhdThatWasCutOffIsNotImportedAsARawDisk) {
  std::filesystem::create_directories("/dev/shm/" + name_);
  ASSERT_EQ(image({"create", name_ + "/a.vhd", "4MiB"}).code, 0);
  std::filesystem::copy("/dev/shm/" + name_ + "/a.vhd", directory_ + "/cut.vhd");
  std::filesystem::resize_file(directory_ + "/cut.vhd", 3 << 20);
  for (const char* to : {"/b.img", "/b.vhd"}) {
    Ran r = image({"import", directory_ + "/cut.vhd", name_ + to});
    EXPECT_EQ(r.code, 1) << r.out;
    EXPECT_NE(r.error.find("is named .vhd, but no VHD footer ends it"), std::string::npos) << r.error;
    EXPECT_FALSE(std::filesystem::exists("/dev/shm/" + name_ + to));
  }
  Ran r = image({"info", directory_ + "/cut.vhd"});
  EXPECT_EQ(r.code, 1);
  EXPECT_NE(r.out.find("PROBLEM"), std::string::npos) << r.out;
  EXPECT_EQ(image({"import", directory_ + "/cut.vhd", name_ + "/b.img", "--input-format", "raw"}).code, 0);
  EXPECT_EQ(std::filesystem::file_size("/dev/shm/" + name_ + "/b.img"), 3u << 20);
}

// What errors tell to do about it can be done.
TEST_F(MountedTest, ARawDiskThatLooksLikeAVhdIsTakenAsRawWhenSaid) {
  std::filesystem::create_directories("/dev/shm/" + name_);
  const std::string image_name = name_ + "/a.img", file = "/dev/shm/" + image_name;
  std::string disk(1 << 20, 'x');
  disk.replace(disk.size() - 512, 8, "conectix");
  std::ofstream(file) << disk;
  for (auto words : std::vector<std::vector<std::string>>{
           {"info", image_name}, {"export", image_name, "-o", directory_ + "/out.img"}, {"resize", image_name, "2MiB"}}) {
    Ran r = image(words);
    EXPECT_EQ(r.code, 1) << words[0] << r.out;
    EXPECT_NE((r.out + r.error).find("--input-format raw"), std::string::npos) << r.out << r.error;
    words.insert(words.end(), {"--input-format", "raw", "--json"});
    r = image(words);
    EXPECT_EQ(r.code, 0) << words[0] << r.error;
    EXPECT_EQ(Json::parse(r.out)["valid"], true) << r.out;
  }
  EXPECT_EQ(std::filesystem::file_size(directory_ + "/out.img"), 1u << 20);
  EXPECT_EQ(std::filesystem::file_size(file), 2u << 20);
}

}  // namespace
}  // namespace tidemark::cli
