#include "fs/units.h"

#include <memory>

namespace tidemark::fs {
namespace {
constexpr uint32_t kWorkers = 4;

struct UnitRun {
  std::vector<Extent> units;
  size_t next = 0;
  UnitWork work;
  Status status;
  uint32_t running = 0;
  Callback<bool> done;
};

Task<void> unit_worker(std::shared_ptr<UnitRun> run) {
  while (run->status.is_ok() && run->next < run->units.size()) {
    Extent unit = run->units[run->next++];
    Status s = co_await run->work(unit);
    if (!s && run->status.is_ok()) run->status = s;
  }
  if (--run->running == 0) run->done(true);
}
}  // namespace

Task<Status> for_units(TaskGroup& tasks, std::vector<Extent> units, UnitWork work) {
  auto run = std::make_shared<UnitRun>();  // shared by its workers
  run->units = std::move(units);
  run->work = std::move(work);
  run->running = kWorkers;
  co_await async<bool>([&](Callback<bool> done) {
    run->done = std::move(done);
    for (uint32_t i = 0; i < kWorkers; ++i) tasks.spawn(unit_worker(run));
  });
  co_return run->status;
}

}  // namespace tidemark::fs
