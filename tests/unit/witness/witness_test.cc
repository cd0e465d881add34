#include "shared/witness/rules.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "shared/witness/witness.h"
#include "tests/sim/sim_env.h"

namespace tidemark::witness {
namespace {

Question ask(bool registers, uint64_t epoch, uint64_t generation, Verdict verdict = Verdict::kUndecided) {
  return {registers, Epoch(epoch), Generation(generation), verdict, "node"};
}

TEST(Witness, ADecisionIsMadeOnceAndSaidAgain) {
  auto record = step(std::nullopt, ask(true, 3, 1));
  ASSERT_TRUE(record);
  record = step(*record, ask(false, 3, 1, Verdict::kOutdated));
  ASSERT_TRUE(record);
  EXPECT_EQ(record->verdict, Verdict::kOutdated);
  for (Verdict other : {Verdict::kOutdated, Verdict::kFenced}) {
    auto again = step(*record, ask(false, 3, 1, other));
    ASSERT_TRUE(again);
    EXPECT_EQ(*again, *record);
  }
}

TEST(Witness, AnotherGenerationIsRefused) {
  auto record = step(std::nullopt, ask(true, 3, 2));
  ASSERT_TRUE(record);
  EXPECT_EQ(step(*record, ask(false, 3, 1, Verdict::kOutdated)).status().code(), Code::kBusy);
  EXPECT_EQ(step(*record, ask(false, 3, 3, Verdict::kFenced)).status().code(), Code::kBusy);
  EXPECT_EQ(step(*record, ask(false, 4, 2, Verdict::kFenced)).status().code(), Code::kBusy);
  EXPECT_EQ(step(*record, ask(true, 2, 9)).status().code(), Code::kBusy);
}

// One that lost its state votes for nobody until registered anew.
TEST(Witness, WithoutARegistrationThereIsNoVote) {
  for (Verdict verdict : {Verdict::kOutdated, Verdict::kFenced})
    EXPECT_EQ(step(std::nullopt, ask(false, 3, 1, verdict)).status().code(), Code::kNotFound);
}

TEST(Witness, ANewerGenerationIsUndecidedAgain) {
  auto record = step(std::nullopt, ask(true, 3, 1));
  record = step(*record, ask(false, 3, 1, Verdict::kOutdated));
  record = step(*record, ask(true, 3, 2));
  ASSERT_TRUE(record);
  EXPECT_EQ(record->verdict, Verdict::kUndecided);
  record = step(*record, ask(true, 4, 1));
  ASSERT_TRUE(record);
  EXPECT_EQ(record->epoch.value, 4u);
}

// Whatever is asked in whatever order: of one (epoch, generation) no two verdicts are ever answered.
TEST(Witness, ARandomWalkNeverAnswersTwoVerdictsOfOneGeneration) {
  std::mt19937_64 random(7);
  std::optional<Record> state;
  std::map<std::pair<uint64_t, uint64_t>, Verdict> answered;
  for (int i = 0; i < 100000; ++i) {
    Question q = ask(random() % 8 == 0, random() % 6, random() % 6, random() % 2 ? Verdict::kOutdated : Verdict::kFenced);
    auto record = step(state, q);
    if (!record) continue;
    if (state) {
      ASSERT_GE(std::make_pair(record->epoch, record->generation), std::make_pair(state->epoch, state->generation));
    }
    state = *record;
    if (record->verdict == Verdict::kUndecided) continue;
    auto [known, added] = answered.emplace(std::make_pair(record->epoch.value, record->generation.value), record->verdict);
    ASSERT_EQ(known->second, record->verdict);
    if (i % 20000 == 0) state.reset(), answered.clear();
  }
  EXPECT_FALSE(answered.empty());
}

// A shared node that is made anew learns which epochs were used; nobody else is told.
TEST(WitnessService, ListsItsRecordsToTheSharedNode) {
  sim::World world({.seed = 1});
  world.add_node({.name = "witness1", .cluster = Uuid::from_random({1}), .role = net::Role::kWitness});
  sim::SimEnv& env = world.start("witness1");
  auto witness = Witness::open(env, "/state/witness");
  ASSERT_TRUE(witness.is_ok()) << witness.status().to_string();
  auto request = [&](const std::string& method, const std::string& target, net::Role role) {
    net::HttpRequest asked;
    asked.method = method;
    asked.target = target;
    asked.peer.role = role;
    std::optional<net::HttpResponse> answer;
    (*witness)->handle(std::move(asked), [&](net::HttpResponse r) { answer = std::move(r); });
    EXPECT_TRUE(world.run_until([&] { return answer.has_value(); }, std::chrono::seconds(5)));
    std::string body = answer ? std::string(as_text(answer->body)) : "";
    if (const size_t store = body.find(",\"store\":"); store != std::string::npos) body = body.substr(0, store) + "}";
    return answer ? std::to_string(answer->status) + " " + body : "";
  };
  const std::string first = Uuid::from_random({1}).to_string(), second = Uuid::from_random({2}).to_string();
  EXPECT_EQ(request("GET", "/v1/witness/records", net::Role::kShared), "200 {\"records\":[]}");
  request("POST", "/v1/witness/" + second + "/7/3/register", net::Role::kShared);
  request("POST", "/v1/witness/" + second + "/7/3/fenced", net::Role::kShared);
  request("POST", "/v1/witness/" + first + "/5/1/register", net::Role::kShared);
  const std::string of_second = "{\"image\":\"" + second + "\",\"epoch\":7,\"generation\":3,\"verdict\":\"fenced\"}";
  EXPECT_EQ(request("GET", "/v1/witness/records", net::Role::kShared),
            "200 {\"records\":[{\"image\":\"" + first + "\",\"epoch\":5,\"generation\":1,\"verdict\":\"undecided\"}," +
                of_second + "]}");
  EXPECT_EQ(request("GET", "/v1/witness/records/" + first, net::Role::kShared), "200 {\"records\":[" + of_second + "]}");
  EXPECT_EQ(request("GET", "/v1/witness/records/" + second, net::Role::kShared), "200 {\"records\":[]}");
  EXPECT_TRUE(request("GET", "/v1/witness/records", net::Role::kHost).starts_with("403 "));
  EXPECT_TRUE(request("GET", "/v1/witness/records/x", net::Role::kShared).starts_with("404 "));
  world.crash("witness1", sim::Crash::kKill);
}

// By which the shared node sees that another one stands in its place.
TEST(WitnessService, AStoreHasOneNameAndAnEmptyOneAnother) {
  sim::World world({.seed = 1});
  world.add_node({.name = "witness1", .cluster = Uuid::from_random({1}), .role = net::Role::kWitness});
  auto answer_of = [&](const std::string& directory) {
    sim::SimEnv& env = world.start("witness1");
    auto witness = Witness::open(env, directory);
    EXPECT_TRUE(witness.is_ok()) << witness.status().to_string();
    net::HttpRequest asked;
    asked.method = "GET";
    asked.target = "/v1/witness/records";
    asked.peer.role = net::Role::kShared;
    std::string body;
    if (witness) (*witness)->handle(std::move(asked), [&](net::HttpResponse r) { body = std::string(as_text(r.body)); });
    world.crash("witness1", sim::Crash::kKill);
    return body;
  };
  const std::string first = answer_of("/state/witness");
  EXPECT_TRUE(first.starts_with("{\"records\":[],\"store\":\"")) << first;
  EXPECT_EQ(answer_of("/state/witness"), first);
  EXPECT_NE(answer_of("/state/other"), first);
}

// A replica serves on a full disk, with the witness beside it; an older version has left its store without a name.
TEST(WitnessService, StartsOnAFullDiskAndHasItsNameOnceThereIsRoom) {
  sim::World world({.seed = 1});
  world.add_node({.name = "witness1", .cluster = Uuid::from_random({1}), .role = net::Role::kWitness});
  world.set_store_fault("witness1", sim::StoreFault{.path_contains = "/witness", .status = Status(Code::kOutOfSpace, "full")});
  std::unique_ptr<Witness> witness;
  auto start = [&] {
    auto opened = Witness::open(world.start("witness1"), "/state/witness");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    witness = std::move(*opened);
  };
  auto list = [&] {
    net::HttpRequest asked;
    asked.method = "GET";
    asked.target = "/v1/witness/records";
    asked.peer.role = net::Role::kShared;
    std::string body;
    witness->handle(std::move(asked), [&](net::HttpResponse r) { body = std::string(as_text(r.body)); });
    world.run_for(std::chrono::seconds(1));
    return body;
  };
  ASSERT_NO_FATAL_FAILURE(start());
  EXPECT_EQ(list(), "{\"records\":[]}");
  EXPECT_EQ(list(), "{\"records\":[]}");
  world.set_store_fault("witness1", std::nullopt);
  list();   // it tries again
  const std::string named = list();
  EXPECT_TRUE(named.starts_with("{\"records\":[],\"store\":\"")) << named;
  world.crash("witness1", sim::Crash::kKill);
  witness.reset();
  ASSERT_NO_FATAL_FAILURE(start());
  EXPECT_EQ(list(), named);
  world.crash("witness1", sim::Crash::kKill);
}

TEST(WitnessService, ThatCannotKeepARecordSaysSo) {
  sim::World world({.seed = 1});
  world.add_node({.name = "witness1", .cluster = Uuid::from_random({1}), .role = net::Role::kWitness});
  sim::SimEnv& env = world.start("witness1");
  auto witness = Witness::open(env, "/state/witness");
  ASSERT_TRUE(witness.is_ok()) << witness.status().to_string();
  auto registers = [&](int generation) {
    net::HttpRequest asked;
    asked.method = "POST";
    asked.target = "/v1/witness/" + Uuid::from_random({2}).to_string() + "/7/" + std::to_string(generation) + "/register";
    asked.peer.role = net::Role::kShared;
    std::optional<int> answer;
    (*witness)->handle(std::move(asked), [&](net::HttpResponse r) { answer = r.status; });
    EXPECT_TRUE(world.run_until([&] { return answer.has_value(); }, std::chrono::seconds(5)));
    return answer.value_or(0);
  };
  EXPECT_EQ(registers(1), 200);
  EXPECT_TRUE((*witness)->health().empty());
  EXPECT_NE((*witness)->status_json().find("\"healthy\":true,\"reasons\":[]"), std::string::npos);
  world.set_store_fault("witness1", sim::StoreFault{.status = Status(Code::kOutOfSpace, "full")});
  EXPECT_EQ(registers(2), 503);
  EXPECT_EQ((*witness)->health().size(), 1u);
  EXPECT_NE((*witness)->status_json().find("\"healthy\":false,\"reasons\":[\"no vote"), std::string::npos);
  world.set_store_fault("witness1", std::nullopt);
  EXPECT_EQ(registers(3), 200);
  EXPECT_TRUE((*witness)->health().empty());
  world.crash("witness1", sim::Crash::kKill);
}

}  // namespace
}  // namespace tidemark::witness
