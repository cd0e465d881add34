#include "shared/daemon/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace tidemark::daemon {
namespace {

std::string temporary_directory() {
  std::string base = testing::TempDir() + "tidemark-daemon-XXXXXX";
  EXPECT_NE(mkdtemp(base.data()), nullptr);
  return base;
}

TEST(PidFile, IsHeldByOneAndNamesTheHolder) {
  std::string directory = temporary_directory();
  {
    auto first = PidFile::take(directory + "/x.pid");
    ASSERT_TRUE(first) << first.status().to_string();
    auto second = PidFile::take(directory + "/x.pid");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.status().code(), Code::kBusy);
    EXPECT_NE(second.status().message().find("pid " + std::to_string(getpid())), std::string::npos);
  }
  EXPECT_FALSE(std::filesystem::exists(directory + "/x.pid"));
  std::filesystem::remove_all(directory);
}

TEST(PidFile, OneLeftByADeadProcessIsTaken) {
  std::string directory = temporary_directory();
  std::ofstream(directory + "/x.pid") << "1\n";
  EXPECT_TRUE(PidFile::take(directory + "/x.pid"));
  std::filesystem::remove_all(directory);
}

TEST(PidFile, IsWaitedForUntilItsProcessHasGone) {
  std::string directory = temporary_directory();
  const std::string path = directory + "/x.pid";
  EXPECT_TRUE(PidFile::wait_until_free(path, std::chrono::milliseconds(0)));   // none there
  {
    auto held = PidFile::take(path);
    ASSERT_TRUE(held) << held.status().to_string();
    EXPECT_EQ(PidFile::wait_until_free(path, std::chrono::milliseconds(20)).code(), Code::kBusy);
  }
  EXPECT_TRUE(PidFile::wait_until_free(path, std::chrono::milliseconds(0)));
  EXPECT_TRUE(PidFile::take(path));
  std::filesystem::remove_all(directory);
}

// The exit code that the caller of --background sees.
int background_exit_code(bool becomes_ready) {
  pid_t caller = fork();
  if (caller == 0) {
    auto background = Background::enter();
    if (!background) _exit(99);
    if (!becomes_ready) _exit(2);
    background->ready();
    _exit(0);
  }
  int status = 0;
  waitpid(caller, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Background, ParentLeavesWithZeroWhenReadyElseWithTheChildsCode) {
  EXPECT_EQ(background_exit_code(true), 0);
  EXPECT_EQ(background_exit_code(false), 2);
}

TEST(MakePrivateDirectory, MakesParentsAndRefusesAFile) {
  std::string directory = temporary_directory();
  EXPECT_TRUE(make_private_directory(directory + "/a/b"));
  EXPECT_TRUE(make_private_directory(directory + "/a/b"));
  std::ofstream(directory + "/file") << "x";
  EXPECT_FALSE(make_private_directory(directory + "/file"));
  EXPECT_FALSE(make_private_directory(directory + "/file/below"));
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace tidemark::daemon
