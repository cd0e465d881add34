#include <gtest/gtest.h>

#include "shared/cli/commands.h"

namespace tidemark::cli {
namespace {

Json host_status() {
  return Json::parse(R"({"node": "host1", "role": "host", "version": "0.1.0", "healthy": false, "reasons": ["link down"],
    "mount": "/m", "shared": {"connected": false, "address": "127.0.0.1:7400", "node": "shared1"},
    "replica": {"url": "https://r:1", "connected": true, "error": ""},
    "journal": {"journal_bytes": 4096, "spool_bytes": 1048576, "spool_batches": 3, "rpo_s": 2.5, "shipping_paused": true},
    "images": [{"path": "disk.img", "uuid": "11111111-2222-4333-8444-555555555555", "size": 1073741824, "allocated": 4096,
      "epoch": 3, "writer": "host1", "mirror": "local only", "stale_bytes": 4194304, "rpo_s": 2.5}]})");
}

TEST(StatusText, ShowsWhatIsNotWell) {
  std::string text = status_text(host_status());
  EXPECT_NE(text.find("host1 (host, 0.1.0): NOT HEALTHY\n  - link down"), std::string::npos) << text;
  EXPECT_NE(text.find("NOT CONNECTED"), std::string::npos) << text;
  EXPECT_NE(text.find("spool 1.0 MiB in 3 batches, RPO now 2.5 s, SHIPPING PAUSED"), std::string::npos) << text;
  EXPECT_NE(text.find("disk.img  1.0 GiB    4.0 KiB      3  host1   local only  4.0 MiB  2.5 s"), std::string::npos) << text;
}

TEST(StatusText, SurvivesFieldsThatAreMissingOrOfAnotherType) {
  EXPECT_NE(status_text(Json::parse(R"({"node": 5, "images": [{"path": null, "size": "x"}], "journal": []})")).size(), 0u);
  EXPECT_NE(status_text(Json::parse("[]")).size(), 0u);
}

TEST(MarkText, TheNameOfAPointReachesNoTerminalRaw) {
  EXPECT_EQ(mark_text(Json{{"batch", 7}, {"label", "now"}, {"name", "a\x1b[2Jb"}}), "batch 7 cut at now, name a\\x1b[2Jb");
  EXPECT_EQ(mark_text(Json{{"batch", 7}, {"label", "now"}, {"name", ""}}), "batch 7 cut at now");
}

TEST(Verify, ExitCodeIsZeroOnlyWhenTheResultSaysEqual) {
  EXPECT_EQ(verify_exit_code(Json::parse(R"({"equal": true})")), 0);
  EXPECT_EQ(verify_exit_code(Json::parse(R"({"equal": false})")), 4);
  EXPECT_EQ(verify_exit_code(Json::parse("{}")), 4);
}

TEST(Verify, NamesImageCopyAndOffset) {
  std::string text = verify_text(Json::parse(R"({"equal": false, "images": [
    {"path": "a.img", "equal": false, "bytes_compared": 8192, "copies": {"host": "level", "shared": "level", "replica": "level"},
     "differences": [{"copy": "replica", "offset": 4096, "length": 4096}]},
    {"path": "b.img", "equal": false, "bytes_compared": 0, "copies": {"host": "behind"}, "differences": []}]})"));
  EXPECT_NE(text.find("a.img: copy of replica differs at offset 4096, 4096 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("DIFFERENT"), std::string::npos) << text;
  EXPECT_NE(text.find("not level"), std::string::npos) << text;
}

TEST(StatusOfAnswer, TakesTheDaemonsCodeElseTheHttpStatus) {
  EXPECT_EQ(status_of_answer(409, R"({"error": "busy", "message": "held by host2"})", "x").message(), "x: held by host2");
  EXPECT_EQ(exit_code_of(status_of_answer(409, R"({"error": "busy", "message": "m"})", "x")), 6);
  EXPECT_EQ(exit_code_of(status_of_answer(404, R"({"error": "unknown", "reason": "no point"})", "x")), 3);
  EXPECT_EQ(status_of_answer(404, R"({"error": "unknown", "reason": "no point"})", "x").message(), "x: no point");
  EXPECT_EQ(exit_code_of(status_of_answer(503, "garbage", "x")), 5);
}

}  // namespace
}  // namespace tidemark::cli
