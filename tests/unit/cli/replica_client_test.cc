// The client against the documented interface, served on a unix socket by a thread of the test's own.
#include "shared/cli/replica_client.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "shared/cli/transfer.h"
#include "shared/daemon/routes.h"
#include "shared/io/real_env.h"
#include "shared/net/real_network.h"

namespace tidemark::cli {
namespace {

const char* const kImage = "11111111-2222-4333-8444-555555555555";
const char* const kLatin1 = "21111111-2222-4333-8444-555555555555";    // whose name is no UTF-8
const char* const kRemoved = "31111111-2222-4333-8444-555555555555";

class ReplicaClientTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string base = testing::TempDir() + "tidemark-replica-XXXXXX";
    ASSERT_NE(mkdtemp(base.data()), nullptr);
    directory_ = base;
    io::RealEnvOptions options;
    options.make_network = net::make_real_network;
    env_ = std::make_unique<io::RealEnv>(std::move(options));
    add_routes();
    net::HttpServerOptions server;
    server.unix_socket = directory_ + "/s";
    auto made = env_->network().serve_http(server, [this](net::HttpRequest request, Callback<net::HttpResponse> done) {
      targets_.push_back(request.target);
      routes_.dispatch(std::move(request), std::move(done));
    });
    ASSERT_TRUE(made) << made.status().to_string();
    server_ = std::move(*made);
    loop_ = std::thread([this] { env_->run(); });
    client_.emplace(Http::to_socket(server.unix_socket));
  }
  void TearDown() override {
    env_->stop();
    loop_.join();
    server_.reset();
    env_.reset();
    std::filesystem::remove_all(directory_);
  }
  void add_routes() {
    routes_.get("/v1/status", [this](const daemon::Request&) -> Result<std::string> {
      return Json{{"store", emptied_ ? "another" : "one"}}.dump();
    });
    routes_.get("/v1/points/resolve", [](const daemon::Request& r) -> Result<std::string> {
      std::string by;
      for (const auto& [key, value] : r.query) by += (by.empty() ? "" : "&") + key + "=" + value;
      Json j{{"id", 17}, {"source", "host1"}, {"batch", 3}, {"label", "l"}, {"name", by}, {"kind", "cut"}};
      if (by == "id=17&path=caf\xe9.img") j["image"] = kLatin1;
      if (by == "id=17&path=odd\ufffd.img") j["image"] = kImage;
      return dump(j, -1);
    });
    routes_.get("/v1/points", [this](const daemon::Request& r) -> Result<std::string> {
      ++pages_;
      uint64_t after = std::stoull(r.query.at("after"));
      Json list = Json::array();
      if (r.query.contains("newest") && !old_) {
        const uint64_t count = std::stoull(r.query.at("count"));
        after = std::max(after, count < 25 ? 25 - count : 0);
        for (uint64_t id = after + 1; id <= 25; ++id) list.push_back({{"id", id}});
        return Json{{"points", list}, {"next", nullptr}}.dump();
      }
      for (uint64_t id = after + 1; id <= 25 && list.size() < 10; ++id) list.push_back({{"id", id}});
      return Json{{"points", list}, {"next", after + 10 < 25 ? Json(after + 10) : Json()}}.dump();
    });
    routes_.get("/v1/points/17/tree", [](const daemon::Request&) -> Result<std::string> {
      return std::string(R"({"entries": [{"path": "d/disk.img", "uuid": ")") + kImage + R"(", "kind": "image", "size": 1, "mode": 420, "uid": 3, "gid": 4},
          {"path": "caf\ufffd.img", "uuid": ")" + kLatin1 + R"(", "kind": "image", "size": 1, "mode": 432, "uid": 5, "gid": 6},
          {"path": null, "uuid": ")" + kRemoved + R"(", "kind": "image", "size": 1, "mode": 0, "uid": 0, "gid": 0}]})";
    });
    routes_.get("/v1/points/17/images/{uuid}", [](const daemon::Request&) -> Result<std::string> {
      return std::string(R"({"uuid": ")") + kImage + R"(", "path": null, "size": 100000, "allocated": 8192})";
    });
    routes_.get("/v1/points/17/images/{uuid}/extents", [this](const daemon::Request& r) -> Result<std::string> {
      if (lie_) return std::string(R"({"extents": [[90000, 20000]], "next": 100000})");
      if (std::stoull(r.query.at("offset")) < 50000) return std::string(R"({"extents": [[4096, 4096], [40960, 4096]], "next": 50000})");
      return std::string(R"({"extents": [[90112, 9888]], "next": 100000})");
    });
  }
  std::string directory_;
  daemon::Routes routes_;
  std::unique_ptr<io::RealEnv> env_;
  std::unique_ptr<net::HttpServer> server_;
  std::thread loop_;
  std::optional<ReplicaClient> client_;
  std::vector<std::string> targets_;
  std::atomic<bool> lie_{false}, emptied_{false}, old_{false};
  std::atomic<int> pages_{0};
};

TEST_F(ReplicaClientTest, ResolvesIdTimeLatestAndName) {
  EXPECT_EQ(client_->resolve("17")->name, "id=17");
  EXPECT_EQ(client_->resolve("latest")->name, "id=latest");
  EXPECT_EQ(client_->resolve("2026-11-21T10:00:05Z")->name, "at=2026-11-21T10:00:05Z");
  EXPECT_EQ(client_->resolve("before upgrade")->name, "name=before upgrade");
}

TEST_F(ReplicaClientTest, APointIsWithoutWhatIsSaidOfTheImageAndOfNoneInParticular) {
  const Uuid image = *Uuid::parse(kImage), other = *Uuid::parse("91111111-2222-4333-8444-555555555555");
  const std::string of_it = "image " + image.to_string() + ", which host1 cannot read";
  const std::string of_other = "image " + other.to_string() + ", which is shown as epoch 3 has it";
  const std::string of_all = "host1 through write 1:5 (image " + other.to_string() + ")";
  const Point point{.json = {{"without", {of_it, of_other, of_all}}}};
  EXPECT_EQ(point.without(image), (std::vector<std::string>{of_it, of_all}));
  EXPECT_EQ(point.without(other), (std::vector<std::string>{of_other, of_all}));
  EXPECT_EQ(point.without(Uuid()).size(), 3u);
  EXPECT_TRUE(Point{}.without(image).empty());
}

TEST_F(ReplicaClientTest, WalksAllPagesOfPoints) {
  std::vector<uint64_t> ids;
  ASSERT_TRUE(client_->points(std::nullopt, 3, [&](Point p) { ids.push_back(p.id); return true; }));
  EXPECT_EQ(ids.size(), 22u);
  EXPECT_EQ(ids.front(), 4u);
  EXPECT_EQ(ids.back(), 25u);
}

TEST_F(ReplicaClientTest, TheNewestPointsAreOneQuestionAndOfAnOlderReplicaAllPages) {
  auto ids = [this](uint64_t after, uint64_t count) {
    std::vector<uint64_t> out;
    auto newest = client_->newest_points(std::nullopt, after, count);
    EXPECT_TRUE(newest) << newest.status().to_string();
    if (newest) for (const Point& p : *newest) out.push_back(p.id);
    return out;
  };
  const std::vector<uint64_t> last{21, 22, 23, 24, 25};
  EXPECT_EQ(ids(0, 5), last);
  EXPECT_EQ(pages_, 1);
  EXPECT_EQ(ids(23, 5), (std::vector<uint64_t>{24, 25}));
  EXPECT_EQ(ids(3, 0).size(), 22u);
  old_ = true;
  EXPECT_EQ(ids(0, 5), last);
  EXPECT_EQ(ids(23, 5), (std::vector<uint64_t>{24, 25}));
  EXPECT_EQ(ids(0, 25).size(), 25u);
}

TEST_F(ReplicaClientTest, FindsAnImageByPathWithItsExactSizeAndOwner) {
  Point point = *client_->resolve("17");
  auto image = client_->image(point, "d/disk.img", std::nullopt);
  ASSERT_TRUE(image) << image.status().to_string();
  EXPECT_EQ(image->uuid.to_string(), kImage);
  EXPECT_EQ(image->size, 100000u);
  EXPECT_EQ(image->mode, 0644u);
  EXPECT_EQ(image->uid, 3);
  auto none = client_->image(point, "other.img", std::nullopt);
  ASSERT_FALSE(none);
  EXPECT_EQ(exit_code_of(none.status()), 3);
}

TEST_F(ReplicaClientTest, APointIsAskedForWithTheImageThatItIsTakenFor) {
  const std::string time = "2026-11-21T10:00:05Z";
  EXPECT_EQ(client_->resolve(time, "d/a disk.img")->name, "at=" + time + "&path=d/a disk.img");
  EXPECT_EQ(client_->resolve(time, "", Uuid::parse(kImage))->name, "at=" + time + "&image=" + kImage);
  // What the replica found by time is the image, whatever the tree calls it.
  Point point = *client_->resolve("17");
  point.json["image"] = kLatin1;
  EXPECT_EQ(client_->image(point, "d/disk.img", std::nullopt)->uuid.to_string(), kLatin1);
}

TEST_F(ReplicaClientTest, ANameThatIsNoUtf8FindsItsImageAndIsKept) {
  Point point = *client_->resolve("17");
  auto image = client_->image(point, "caf\xe9.img", std::nullopt);
  ASSERT_TRUE(image) << image.status().to_string();
  EXPECT_EQ(image->uuid.to_string(), kLatin1);
  EXPECT_EQ(image->path, "caf\xe9.img");
  EXPECT_EQ(image->uid, 5);
  // Another that would be shown alike is not taken for it.
  EXPECT_EQ(client_->image(point, "caf\xe8.img", std::nullopt).status().code(), Code::kNotFound);
}

// U+FFFD may stand for other bytes, unless the replica knows an image by just that name.
TEST_F(ReplicaClientTest, ANameThatIsShownInPlaceOfAnotherIsNotTheImagesOwn) {
  Point point = *client_->resolve("17");
  EXPECT_TRUE(client_->image(point, "caf\xe9.img", std::nullopt)->path_exact);
  EXPECT_TRUE(client_->image(point, "odd\ufffd.img", std::nullopt)->path_exact);
  auto shown = client_->image(point, "caf\ufffd.img", std::nullopt);
  ASSERT_TRUE(shown) << shown.status().to_string();
  EXPECT_EQ(shown->uuid.to_string(), kLatin1);
  EXPECT_FALSE(shown->path_exact);
  EXPECT_FALSE(client_->image(point, "", Uuid::parse(kLatin1))->path_exact);
}

// A replica of before says zeros.
TEST_F(ReplicaClientTest, OfAnImageWithoutANameOwnerAndModeAreNotKnown) {
  Point point = *client_->resolve("17");
  auto image = client_->image(point, "", Uuid::parse(kRemoved));
  ASSERT_TRUE(image) << image.status().to_string();
  EXPECT_EQ(image->mode, 0600u);
  EXPECT_EQ(image->uid, -1);
  EXPECT_EQ(image->gid, -1);
}

TEST_F(ReplicaClientTest, ExtentsComeInPagesAndAreClippedToTheQuestion) {
  Point point = *client_->resolve("17");
  PointImage image = *client_->image(point, "d/disk.img", std::nullopt);
  std::vector<Extent> seen;
  for (uint64_t at = 0;;) {
    auto e = client_->next_data(point, image, at);
    ASSERT_TRUE(e) << e.status().to_string();
    if (e->length == 0) break;
    seen.push_back(*e);
    at = e->end();
  }
  // A small gap within a page is not worth a request of its own.
  EXPECT_EQ(seen, (std::vector<Extent>{{4096, 40960}, {90112, 9888}}));
  EXPECT_EQ(*client_->next_data(point, image, 5000), (Extent{5000, 40056}));
}

// An emptied replica counts its points from 1 again: what was fetched before is of another history.
TEST_F(ReplicaClientTest, APointOfAnotherStoreIsAnother) {
  Point point = *client_->resolve("17");
  PointImage image = *client_->image(point, "d/disk.img", std::nullopt);
  auto identity = [&] { return ReplicaSource(*client_, *client_->store(), point, image).identity(); };
  const std::string before = identity();
  EXPECT_EQ(identity(), before);
  emptied_ = true;
  EXPECT_NE(identity(), before);
}

// One that was put back from a backup gives the ids after its newest point to other batches.
TEST_F(ReplicaClientTest, APointOfTheSameIdAndAnotherBatchIsAnother) {
  const PointImage image{.uuid = *Uuid::parse(kImage)};
  auto identity = [&](const std::string& source, const std::string& generation, uint64_t batch) {
    const Point point{.id = 17, .source = source, .batch = batch, .json = {{"generation", generation}}};
    return ReplicaSource(*client_, "one", point, image).identity();
  };
  const std::string before = identity("host1", "g", 3);
  EXPECT_EQ(identity("host1", "g", 3), before);
  EXPECT_NE(identity("host1", "g", 4), before);
  EXPECT_NE(identity("host1", "h", 3), before);
  EXPECT_NE(identity("host2", "g", 3), before);
}

TEST_F(ReplicaClientTest, ExtentsBeyondTheSizeAreRefused) {
  Point point = *client_->resolve("17");
  PointImage image = *client_->image(point, "d/disk.img", std::nullopt);
  lie_ = true;
  EXPECT_EQ(client_->next_data(point, image, 0).status().code(), Code::kCorruption);
}

}  // namespace
}  // namespace tidemark::cli
