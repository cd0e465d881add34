// What the shared node tells a host before a session, and what it learns from a witness that knows more.
#include <charconv>

#include "shared/wire/features.h"
#include "tests/unit/node/fixture.h"

namespace tidemark::node {
namespace {

using wire::Type;

class NumbersTest : public NodeTest {
 protected:
  std::optional<wire::Met> meet(HostClient& h) {
    h.hello.cluster = cluster_;
    h.hello.features |= wire::kFeatureHelloMore | wire::kFeatureMeet;
    if (!h.open_link(port_)) return std::nullopt;
    auto met = h.ask<wire::Met>(Type::kHello, h.hello);
    h.hello.features &= ~wire::kFeatureMeet;
    EXPECT_TRUE(met) << met.status().to_string();
    return met ? std::optional(*met) : std::nullopt;
  }
};

TEST_F(NumbersTest, AHostIsToldOfItsNewestRunAndBeginsAboveItWithAnotherJournal) {
  auto a = std::make_unique<HostClient>(world_, "host1");
  auto met = meet(*a);
  ASSERT_TRUE(met);
  EXPECT_EQ(met->more.base.session, 0u);
  EXPECT_EQ(met->known.value, 0u);
  EXPECT_EQ(met->floor.value, 0u);
  // Nothing is served, and no session is open, before the second Hello.
  a->hello.incarnation = Incarnation(70);
  ASSERT_TRUE(a->ask<wire::HelloAnswerMore>(Type::kHello, a->hello));
  EXPECT_TRUE(a->create("x"));
  met = meet(*a);
  ASSERT_TRUE(met);
  EXPECT_EQ(met->known.value, 70u);
  EXPECT_EQ(met->known_nonce, a->hello.nonce);
  EXPECT_EQ(met->known_generation, a->hello.journal_generation);
  EXPECT_EQ(met->floor.value, 0u);
  a->hello.journal_generation.bytes[3] = 9;
  met = meet(*a);
  ASSERT_TRUE(met);
  EXPECT_GT(met->floor.value, 70u);
}

TEST_F(NumbersTest, ItsRunsAreRememberedWithTheirNonces) {
  auto a = std::make_unique<HostClient>(world_, "host1");
  auto first = meet(*a);
  ASSERT_TRUE(first);
  a.reset();
  restart_node(sim::Crash::kPowerLoss);
  a = std::make_unique<HostClient>(world_, "host2");
  auto second = meet(*a);
  ASSERT_TRUE(second);
  ASSERT_EQ(second->boots.size(), first->boots.size() + 1);
  EXPECT_EQ(second->boots.front(), first->boots.front());
  EXPECT_EQ(second->boots.back().first, second->more.base.boot);
  for (int i = 0; i < 300; ++i) restart_node(sim::Crash::kKill);
  a = std::make_unique<HostClient>(world_, "host3");
  auto last = meet(*a);
  ASSERT_TRUE(last);
  EXPECT_EQ(last->boots.size(), 256u);
  EXPECT_EQ(last->boots.back().first, last->more.base.boot);
}

// Rebuilt with a clock that was set back: what it would register is below what the witness has.
class FakeWitness final : public net::HttpClient {
 public:
  void request(net::HttpRequest request, Callback<Result<net::HttpResponse>> done) override {
    // /v1/witness/IMAGE/EPOCH/GENERATION/what
    uint64_t generation = 0;
    const std::string& t = request.target;
    const size_t end = t.rfind('/'), begin = t.rfind('/', end - 1) + 1;
    std::from_chars(t.data() + begin, t.data() + end, generation);
    asked.push_back(generation);
    if (generation > registered) {
      registered = generation;
      return done(net::HttpResponse::json(200, R"({"verdict":"undecided","by":"shared"})"));
    }
    done(net::HttpResponse::json(409, R"({"error":"other_generation","reason":"x","epoch":)" + std::to_string(epoch) +
                                          R"(,"generation":)" + std::to_string(registered) + "}"));
  }
  uint64_t registered = 0, epoch = 1;
  std::vector<uint64_t> asked;
};

TEST_F(NumbersTest, AGenerationThatTheWitnessKnowsIsFollowed) {
  node_.reset();
  world_.crash("shared", sim::Crash::kKill);
  auto owned = std::make_unique<FakeWitness>();
  FakeWitness& witness = *owned;
  witness_ = std::move(owned);
  start_node();
  auto a = host("host1");
  auto attr = a->create("x");
  ASSERT_TRUE(attr);
  auto grant = a->acquire(attr->image);
  ASSERT_TRUE(grant);
  witness.epoch = grant->epoch.value;
  witness.registered = 1'795'322'548;
  auto terms = a->ask<wire::TermsAnswer>(Type::kTerms, wire::Terms{attr->image, grant->epoch});
  ASSERT_TRUE(terms) << terms.status().to_string();
  EXPECT_EQ(terms->generation.value, 1'795'322'549u);
  EXPECT_EQ(witness.asked.size(), 2u);
  terms = a->ask<wire::TermsAnswer>(Type::kTerms, wire::Terms{attr->image, grant->epoch});
  ASSERT_TRUE(terms);
  EXPECT_EQ(witness.asked.size(), 3u);
  // Of another epoch nothing is learned: then it is this node that is behind.
  witness.registered += 1000;
  witness.epoch += 1;
  EXPECT_FALSE(a->ask<wire::TermsAnswer>(Type::kTerms, wire::Terms{attr->image, grant->epoch}));
}

}  // namespace
}  // namespace tidemark::node
