// What a journal's usage looks like to people and programs: JSON for status, reasons for the verdict.
#include <nlohmann/json.hpp>

#include "journal/journal.h"
#include "shared/base/config.h"

namespace tidemark::journal {
namespace {

constexpr int64_t kUnsettledToldNs = 5'000'000'000;

double seconds(int64_t ns) { return static_cast<double>(ns) / 1e9; }
std::string label(WallTime t) { return t.ns == 0 ? "" : t.to_string(); }

}  // namespace

std::string usage_json(const Usage& u) {
  nlohmann::json out = {{"records_unstaged", u.records_unstaged},
                        {"journal_bytes", u.journal_bytes},
                        {"pending_bytes", u.pending_bytes},
                        {"spool_bytes", u.spool_bytes},
                        {"spool_batches", u.spool_batches},
                        {"closed_batches", u.closed_batches},
                        {"unsettled_s", seconds(u.unsettled_ns)},
                        {"preserved_bytes", u.preserved_bytes},
                        {"shipping_paused", u.shipping_paused},
                        {"ship_error", u.ship_error},
                        {"newest_durable", u.newest_durable.value},
                        {"newest_closed", u.newest_closed.value},
                        {"newest_durable_label", label(u.newest_durable_label)},
                        {"rpo_s", seconds(u.rpo_ns)},
                        {"shipping", shipping_name(u.shipping)},
                        {"degraded_why", u.degraded_why},
                        {"degraded_since", label(u.degraded_since)},
                        {"limit_bytes", u.limit_bytes},
                        {"limit_age_s", seconds(u.limit_age_ns)},
                        {"oldest_unshipped_s", seconds(u.oldest_unshipped_ns)},
                        {"ship_rate_bytes", u.ship_rate},
                        {"full_in_s", nullptr},
                        {"resync_left_bytes", u.resync_left_bytes},
                        {"resync_sent_bytes", u.resync_sent_bytes},
                        {"resyncs_ended", u.resyncs_ended},
                        {"points_given_up", u.points_given_up},
                        {"names_given_up", u.names_given_up},
                        {"needs_full_resync", u.needs_full_resync},
                        {"disk_failure", u.disk_failure},
                        {"withheld", nlohmann::json::array()}};
  for (const Withheld& w : u.withheld)
    out["withheld"].push_back({{"uuid", w.image.to_string()}, {"why", w.why}, {"lacked_bytes", w.lacked_bytes}});
  if (u.full_in_ns >= 0) out["full_in_s"] = seconds(u.full_in_ns);
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::vector<std::string> usage_reasons(const Usage& u) {
  std::vector<std::string> out;
  if (!u.disk_failure.empty()) out.push_back("the journal's own disk: " + u.disk_failure);
  for (const Withheld& w : u.withheld)
    out.push_back("image " + w.image.to_string() + " cannot be read, the replica keeps an older state of it: " + w.why);
  if (u.shipping == Shipping::kDegraded) {
    out.push_back("the replica is outdated, and regions alone are remembered for it since " + label(u.degraded_since) + ": " +
                  u.degraded_why);
  } else if (u.resync_left_bytes != 0 || u.shipping == Shipping::kResyncing) {
    out.push_back("the replica is outdated and being brought level: " + config::format_size(u.resync_left_bytes) + " left");
  }
  if (!u.ship_error.empty()) out.push_back("shipping: " + u.ship_error);
  if (u.unsettled_ns >= kUnsettledToldNs)
    out.push_back("no recovery point is made: requests have had no answer for " + std::to_string(u.unsettled_ns / 1'000'000'000) + " s");
  return out;
}

}  // namespace tidemark::journal
