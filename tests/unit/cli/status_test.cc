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

constexpr const char* kDiskImage = "11111111-2222-4333-8444-555555555555";

Json level_status() {
  Json s = host_status();
  s["journal"] = {{"shipping", "normal"}, {"shipping_paused", false}, {"ship_error", ""}, {"resync_left_bytes", 0},
                  {"rpo_s", 0.0}, {"newest_durable_label", "2026-11-23T10:00:00Z"}, {"withheld", Json::array()}};
  return s;
}

TEST(Kept, IsPromisedWithoutConditionsOnlyWhileNothingIsBehind) {
  Kept kept = kept_by_replica(level_status(), kDiskImage);
  EXPECT_TRUE(kept.by_replica);
  EXPECT_EQ(kept.text, "the replica's points keep it under its UUID");
  EXPECT_TRUE(kept.json["behind"].is_null());
}

TEST(Kept, SaysSinceWhenAndWhyItIsBehind) {
  struct Case { const char* patch; const char* says; };
  for (const Case& c : std::vector<Case>{
           {R"({"journal": {"shipping_paused": true, "rpo_s": 7200.0}})", "; what was written since, in the last 2 h 0 min, may be in no point: shipping is PAUSED"},
           {R"({"journal": {"shipping": "degraded", "degraded_since": "T", "degraded_why": "spool full"}})", "outdated since T (spool full)"},
           {R"({"journal": {"shipping": "resyncing", "resync_left_bytes": 1048576}})", "being brought level (1.0 MiB left)"},
           {R"({"journal": {"ship_error": "no route"}})", "shipping fails: no route"},
           {R"({"journal": {"needs_full_resync": true}})", "the replica was replaced"},
           {R"({"journal": {"withheld": [{"uuid": "11111111-2222-4333-8444-555555555555", "why": "EIO"}]}})", "the image is not shipped: EIO"}}) {
    Json status = level_status();
    status.merge_patch(Json::parse(c.patch));
    Kept kept = kept_by_replica(status, kDiskImage);
    EXPECT_TRUE(kept.by_replica);
    EXPECT_NE(kept.text.find("as of 2026-11-23T10:00:00Z"), std::string::npos) << kept.text;
    EXPECT_NE(kept.text.find(c.says), std::string::npos) << kept.text;
  }
  Json status = level_status();
  status["images"][0]["unshipped_bytes"] = 4096;
  EXPECT_NE(kept_by_replica(status, kDiskImage).text.find("4.0 KiB of it are not yet shipped"), std::string::npos);
  EXPECT_EQ(kept_by_replica(status, "another").text, "the replica's points keep it under its UUID");
  status["images"][0]["writer"] = "host2";
  EXPECT_NE(kept_by_replica(status, kDiskImage).text.find("host2 holds it and ships it"), std::string::npos);
  status["journal"]["newest_durable_label"] = "";
  EXPECT_NE(kept_by_replica(status, kDiskImage).text.find("this one has not shipped anything yet"), std::string::npos);
  status["images"][0]["open_handles"] = 1;
  EXPECT_NE(kept_by_replica(status, kDiskImage).text.find("it is OPEN here"), std::string::npos);
}

TEST(Kept, IsNothingWhereNoReplicaIsConfigured) {
  Json status = level_status();
  status["replica"] = {{"url", ""}, {"connected", false}, {"error", ""}};
  for (const Json& s : {status, Json()}) {
    Kept kept = kept_by_replica(s, kDiskImage);
    EXPECT_FALSE(kept.by_replica);
    EXPECT_EQ(kept.text, "no replica is configured: nothing keeps it");
  }
  EXPECT_NE(status_text(status).find("none configured"), std::string::npos);
}

Json resync_status(uint64_t run, uint64_t ended, const char* shipping, uint64_t left, uint64_t closed, uint64_t durable) {
  return {{"incarnation", run}, {"journal", {{"resyncs_ended", ended}, {"shipping", shipping}, {"resync_left_bytes", left},
                                             {"newest_closed", closed}, {"newest_durable", durable}}}};
}

TEST(ResyncWatch, CountsWithinOneRun) {
  ResyncWatch watch(resync_status(7, 3, "normal", 0, 10, 10));
  EXPECT_FALSE(watch.ended(resync_status(7, 3, "resyncing", 100, 10, 10)));
  EXPECT_FALSE(watch.ended(resync_status(7, 3, "normal", 0, 10, 10))) << "not begun yet";
  EXPECT_TRUE(watch.ended(resync_status(7, 4, "normal", 0, 12, 12)));
}

TEST(ResyncWatch, GoesOnWithADaemonThatWasStartedAnew) {
  ResyncWatch watch(resync_status(7, 3, "normal", 0, 10, 10));
  EXPECT_FALSE(watch.ended(resync_status(7, 3, "resyncing", 100, 11, 10)));
  EXPECT_FALSE(watch.ended(resync_status(8, 0, "degraded", 100, 11, 10)));
  EXPECT_TRUE(watch.ended(resync_status(8, 1, "normal", 0, 12, 12)));
}

// Its end was not seen, or its last batch was on its way: the new run does not count that.
TEST(ResyncWatch, ARestartAtItsEndIsNotWaitedForWithoutEnd) {
  ResyncWatch watch(resync_status(7, 3, "normal", 0, 10, 10));
  EXPECT_FALSE(watch.ended(resync_status(8, 0, "normal", 0, 14, 12)));
  EXPECT_FALSE(watch.ended(resync_status(8, 0, "normal", 0, 15, 13))) << "of what was closed at first";
  EXPECT_TRUE(watch.ended(resync_status(8, 0, "normal", 0, 16, 14)));
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
