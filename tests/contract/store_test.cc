// The key-value store.
#include "tests/contract/harness.h"

namespace tidemark::contract {
namespace {

using kv::key_u64;
using kv::WriteBatch;
using ::testing::ElementsAre;

class StoreContract : public ContractTest {
 protected:
  StoreContract() { open(); }
  void open() {
    auto opened = env().open_store(path("store"), {.tables = {"a", "b"}});
    EXPECT_TRUE(opened.is_ok()) << opened.status().to_string();
    if (opened) store = std::move(*opened);
  }
  Status commit(WriteBatch batch) {
    return wait<Status>([&](auto done) { store->commit(std::move(batch), std::move(done)); });
  }
  static WriteBatch put(kv::Table table, std::initializer_list<std::pair<std::string, std::string>> pairs) {
    WriteBatch batch;
    for (const auto& [key, value] : pairs) batch.put(table, as_bytes(key), as_bytes(value));
    return batch;
  }
  std::vector<std::string> keys(kv::Table table) {
    std::vector<std::string> out;
    auto snapshot = store->snapshot();
    auto cursor = snapshot->cursor(table);
    for (bool there = cursor->first(); there; there = cursor->next()) out.emplace_back(as_text(cursor->key()));
    return out;
  }
  std::string get(kv::Table table, std::string_view key) {
    auto value = store->snapshot()->get(table, as_bytes(key));
    return value ? std::string(as_text(*value)) : std::string(code_name(value.status().code()));
  }

  std::unique_ptr<kv::Store> store;
};
INSTANTIATE_TEST_SUITE_P(Envs, StoreContract, ::testing::Values("real", "sim"),
                         [](const auto& info) { return info.param; });

TEST_P(StoreContract, CommittedIsReadAndSurvivesReopening) {
  ASSERT_TRUE(commit(put(0, {{"x", "1"}, {"y", ""}})).is_ok());
  ASSERT_TRUE(store->commit_and_wait(put(1, {{"x", "2"}})).is_ok());
  store.reset();
  open();
  EXPECT_EQ(get(0, "x"), "1");
  EXPECT_EQ(get(0, "y"), "");
  EXPECT_EQ(get(1, "x"), "2");
  EXPECT_EQ(get(1, "y"), "not_found");
}

TEST_P(StoreContract, OperationsOfABatchApplyInOrder) {
  WriteBatch batch = put(0, {{"a", "1"}, {"b", "1"}, {"c", "1"}});
  batch.erase(0, as_bytes("b"));
  batch.append(put(0, {{"b", "2"}}));
  batch.erase(0, as_bytes("none"));
  batch.erase_range(0, as_bytes("c"), {});
  ASSERT_TRUE(commit(std::move(batch)).is_ok());
  EXPECT_THAT(keys(0), ElementsAre("a", "b"));
  EXPECT_EQ(get(0, "b"), "2");
}

TEST_P(StoreContract, EraseRangeIsHalfOpen) {
  ASSERT_TRUE(commit(put(0, {{"a", ""}, {"b", ""}, {"c", ""}, {"d", ""}})).is_ok());
  WriteBatch batch;
  batch.erase_range(0, as_bytes("b"), as_bytes("d"));
  ASSERT_TRUE(commit(std::move(batch)).is_ok());
  EXPECT_THAT(keys(0), ElementsAre("a", "d"));
  WriteBatch all;
  all.erase_range(0, {}, {});
  all.append(put(0, {{"z", "1"}}));
  ASSERT_TRUE(commit(std::move(all)).is_ok());
  EXPECT_THAT(keys(0), ElementsAre("z"));
  WriteBatch empty;
  empty.erase_range(0, as_bytes("z"), as_bytes("a"));
  ASSERT_TRUE(commit(std::move(empty)).is_ok());
  EXPECT_THAT(keys(0), ElementsAre("z"));
}

TEST_P(StoreContract, LargeEraseRangeLeavesTheRest) {
  WriteBatch batch;
  for (uint64_t i = 0; i < 5000; ++i) batch.put(0, key_u64(i), pattern(50, static_cast<uint8_t>(i)));
  ASSERT_TRUE(commit(std::move(batch)).is_ok());
  WriteBatch erase;
  erase.erase_range(0, key_u64(10), key_u64(4990));
  erase.put(0, key_u64(6000), pattern(1, 1));
  ASSERT_TRUE(commit(std::move(erase)).is_ok());
  EXPECT_EQ(keys(0).size(), 21u);
  EXPECT_EQ(*store->snapshot()->get(0, key_u64(4990)), pattern(50, static_cast<uint8_t>(4990)));
}

TEST_P(StoreContract, SnapshotDoesNotSeeLaterCommits) {
  ASSERT_TRUE(commit(put(0, {{"x", "1"}})).is_ok());
  auto before = store->snapshot();
  ASSERT_TRUE(commit(put(0, {{"x", "2"}, {"y", "2"}})).is_ok());
  EXPECT_EQ(as_text(*before->get(0, as_bytes("x"))), "1");
  EXPECT_EQ(before->get(0, as_bytes("y")).status().code(), Code::kNotFound);
  EXPECT_EQ(get(0, "x"), "2");
}

TEST_P(StoreContract, CommitIsSeenWhenItsCallbackRunsAndCallbacksComeInOrder) {
  std::vector<int> order;
  for (int i = 0; i < 50; ++i) {
    store->commit(put(0, {{"n", std::to_string(i)}, {"k" + std::to_string(i), ""}}), [&, i](Status s) {
      EXPECT_TRUE(s.is_ok());
      EXPECT_EQ(get(0, "k" + std::to_string(i)), "");
      order.push_back(i);
    });
  }
  EXPECT_TRUE(order.empty()) << "never inline";
  ASSERT_TRUE(run_until([&] { return order.size() == 50; }));
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  EXPECT_EQ(get(0, "n"), "49");
}

TEST_P(StoreContract, CursorMovesBothWays) {
  ASSERT_TRUE(commit(put(0, {{"b", "1"}, {"d", "2"}, {"f", "3"}})).is_ok());
  auto snapshot = store->snapshot();
  auto c = snapshot->cursor(0);
  ASSERT_TRUE(c->seek(as_bytes("c")));
  EXPECT_EQ(as_text(c->key()), "d");
  EXPECT_EQ(as_text(c->value()), "2");
  ASSERT_TRUE(c->previous());
  EXPECT_EQ(as_text(c->key()), "b");
  EXPECT_FALSE(c->previous());
  ASSERT_TRUE(c->seek(as_bytes("d")));
  EXPECT_EQ(as_text(c->key()), "d");
  ASSERT_TRUE(c->next());
  EXPECT_EQ(as_text(c->key()), "f");
  EXPECT_FALSE(c->next());
  EXPECT_FALSE(c->seek(as_bytes("g")));
  ASSERT_TRUE(c->seek_before(as_bytes("d")));
  EXPECT_EQ(as_text(c->key()), "b");
  ASSERT_TRUE(c->seek_before(as_bytes("zzz")));
  EXPECT_EQ(as_text(c->key()), "f");
  EXPECT_FALSE(c->seek_before(as_bytes("b")));
  EXPECT_FALSE(c->seek_before({}));
  ASSERT_TRUE(c->seek({}));
  EXPECT_EQ(as_text(c->key()), "b");
  ASSERT_TRUE(c->last());
  EXPECT_EQ(as_text(c->key()), "f");
  auto none = snapshot->cursor(1);
  EXPECT_FALSE(none->first() || none->last() || none->seek(as_bytes("a")) || none->seek_before(as_bytes("a")));
}

TEST_P(StoreContract, BadKeyFailsItsBatchWholeAndOnlyIt) {
  std::string longest(511, 'k'), too_long(512, 'k');
  std::vector<Code> codes;
  auto note = [&](Status s) { codes.push_back(s.code()); };
  store->commit(put(0, {{"first", "1"}}), note);
  store->commit(put(0, {{"second", "1"}, {too_long, "1"}}), note);
  store->commit(put(0, {{"third", "1"}, {"", "1"}}), note);
  store->commit(put(0, {{longest, "1"}}), note);
  ASSERT_TRUE(run_until([&] { return codes.size() == 4; }));
  EXPECT_THAT(codes, ElementsAre(Code::kOk, Code::kInvalidArgument, Code::kInvalidArgument, Code::kOk));
  EXPECT_THAT(keys(0), ElementsAre("first", longest));
  EXPECT_EQ(get(0, too_long), "not_found");
}

TEST_P(StoreContract, NumbersSortAsNumbersHoweverTheyCome) {
  WriteBatch batch;
  for (uint64_t n : {300ull, 2ull, 1ull, 70'000ull, 65'536ull, 3ull}) batch.put(0, key_u64(n), {});
  ASSERT_TRUE(commit(std::move(batch)).is_ok());
  std::vector<uint64_t> seen;
  auto snapshot = store->snapshot();
  auto cursor = snapshot->cursor(0);
  for (bool there = cursor->first(); there; there = cursor->next()) seen.push_back(load_be64(cursor->key().data()));
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 300, 65'536, 70'000));
}

TEST_P(StoreContract, LargeValuesComeBackWhole) {
  WriteBatch batch;
  batch.put(0, as_bytes("large"), pattern(1 << 20, 3));
  ASSERT_TRUE(commit(std::move(batch)).is_ok());
  EXPECT_EQ(*store->snapshot()->get(0, as_bytes("large")), pattern(1 << 20, 3));
}

TEST_P(StoreContract, DestroyingItFinishesCommitsWithoutCallingBack) {
  bool called = false;
  for (int i = 0; i < 10; ++i) store->commit(put(0, {{"k" + std::to_string(i), ""}}), [&](Status) { called = true; });
  store.reset();
  harness->run_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(called);
  open();
  EXPECT_EQ(keys(0).size(), 10u);
}

TEST_P(StoreContract, SecondOpeningInTheProcessIsRefused) {
  EXPECT_EQ(env().open_store(path("store"), {.tables = {"a"}}).status().code(), Code::kBusy);
  store.reset();
  open();
  EXPECT_NE(store, nullptr);
}

TEST_P(StoreContract, ReadOnlyOpeningReadsAndRefusesToWrite) {
  ASSERT_TRUE(commit(put(0, {{"x", "1"}})).is_ok());
  store.reset();
  auto opened = env().open_store(path("store"), {.tables = {"a", "b"}, .read_only = true});
  ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
  store = std::move(*opened);
  EXPECT_EQ(get(0, "x"), "1");
  EXPECT_EQ(commit(put(0, {{"x", "2"}})).code(), Code::kUnsupported);
  EXPECT_EQ(store->commit_and_wait(put(0, {{"x", "2"}})).code(), Code::kUnsupported);
  EXPECT_FALSE(env().open_store(path("none"), {.tables = {"a"}, .read_only = true}).is_ok());
}

TEST_P(StoreContract, OnlyAStoreThatIsThereIsOpenedWhereNoneIsToBeMade) {
  EXPECT_EQ(env().open_store(path("none"), {.tables = {"a"}, .create = false}).status().code(), Code::kNotFound);
  EXPECT_FALSE(env().files().stat(path("none")).is_ok()) << "it was made";
  ASSERT_TRUE(commit(put(0, {{"x", "1"}})).is_ok());
  store.reset();
  auto opened = env().open_store(path("store"), {.tables = {"a", "b"}, .create = false});
  ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
  store = std::move(*opened);
  EXPECT_EQ(get(0, "x"), "1");
}

TEST_P(StoreContract, ABatchWithoutWhatItsLaterOperationsUndoDoesTheSame) {
  uint64_t seed = 1;
  auto below = [&](uint64_t bound) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % bound;
  };
  for (int round = 0; round < 30; ++round) {
    WriteBatch whole, less;
    for (int i = 0; i < 60; ++i) {
      const std::string key(1, static_cast<char>('a' + below(20))), end(1, static_cast<char>('a' + below(20)));
      const std::string value = std::to_string(round) + "." + std::to_string(i);
      const uint64_t kind = below(10);
      for (auto [batch, table] : {std::pair{&whole, 0u}, std::pair{&less, 1u}}) {
        if (kind < 6) batch->put(table, as_bytes(key), as_bytes(value));
        else if (kind < 8) batch->erase(table, as_bytes(key));
        else batch->erase_range(table, as_bytes(kind == 8 && i % 5 == 0 ? "" : key), as_bytes(i % 7 == 0 ? "" : end));
      }
    }
    less.drop_superseded();
    EXPECT_LT(less.bytes(), whole.bytes());
    EXPECT_LT(less.ops().size(), 60u);
    ASSERT_TRUE(commit(std::move(whole)).is_ok());
    ASSERT_TRUE(commit(std::move(less)).is_ok());
    ASSERT_EQ(keys(0), keys(1)) << "round " << round;
    for (const std::string& key : keys(0)) EXPECT_EQ(get(0, key), get(1, key)) << "round " << round << ", " << key;
  }
}

TEST_P(StoreContract, UsageGrows) {
  ASSERT_TRUE(commit(put(0, {{"x", "1"}})).is_ok());
  auto before = store->usage();
  ASSERT_TRUE(before.is_ok());
  WriteBatch batch;
  batch.put(0, as_bytes("large"), pattern(1 << 20, 3));
  ASSERT_TRUE(commit(std::move(batch)).is_ok());
  auto after = store->usage();
  ASSERT_TRUE(after.is_ok());
  EXPECT_GE(after->used_bytes, before->used_bytes + (1 << 20));
  EXPECT_LE(after->used_bytes, after->file_bytes);
  EXPECT_LE(after->file_bytes, after->map_bytes);
}

}  // namespace
}  // namespace tidemark::contract
