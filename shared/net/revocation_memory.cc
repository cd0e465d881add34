#include "shared/net/revocation_memory.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <fstream>
#include <future>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "shared/base/bytes.h"
#include "shared/base/log.h"
#include "shared/base/sealed.h"
#include "shared/net/openssl_handles.h"

namespace tidemark::net {
namespace {

const log::Logger kLog("tls");
constexpr std::string_view kMagic{"TMREVOK\x01", 8};
constexpr uint32_t kVersion = 1;
constexpr auto kFilePatience = std::chrono::seconds(1);    // with the file's disk
constexpr auto kRetry = std::chrono::seconds(10);      // after a failure

struct Seen {
  uint64_t number = 0;                     // of the newest list
  Revoked serials;
  bool warned = false, gone = false;       // said
};
using AllSeen = std::map<std::string, Seen>;   // by authority

std::mutex file_mutex;                     // taken first: one writer at a time
std::mutex seen_mutex;
// Never destroyed: a thread that writes them may outlast main().
AllSeen& all_seen = *new AllSeen;          // guarded by seen_mutex
std::string& kept_in = *new std::string;   // guarded by seen_mutex; empty: nowhere
bool to_be_kept = false;                   // guarded by seen_mutex: the file lacks something
bool keeping = false;                      // guarded by seen_mutex: a thread writes the file
std::chrono::steady_clock::time_point retry_at;   // guarded by seen_mutex
KeptWriter& writer = *new KeptWriter;      // guarded by file_mutex; empty: write_pem_file()

Bytes encode(const AllSeen& all) {
  Bytes out;
  Writer w(out);
  w.raw(as_bytes(kMagic)).u32(kVersion).u32(static_cast<uint32_t>(all.size()));
  for (const auto& [authority, seen] : all) {
    w.text(authority).u64(seen.number).u32(static_cast<uint32_t>(seen.serials.size()));
    for (const std::string& serial : seen.serials) w.text(serial);
  }
  seal(out);
  return out;
}

Result<AllSeen> decode(ByteSpan bytes) {
  TM_ASSIGN_OR_RETURN(ByteSpan body, unseal(bytes, kMagic, kVersion));
  Reader in(body);
  AllSeen out;
  for (uint32_t left = in.u32(); left > 0 && in.ok(); --left) {
    Seen& seen = out[in.text()];
    seen.number = in.u64();
    for (uint32_t serials = in.u32(); serials > 0 && in.ok(); --serials) seen.serials.insert(in.text());
  }
  if (!in.done()) return Status(Code::kCorruption, "wrong length");
  return out;
}

// Until the file has all. What could not be written is tried again when a list is read later; until then this process
// remembers it.
void write_all() {
  for (;;) {
    std::lock_guard one_writer(file_mutex);
    std::string file;
    Bytes bytes;
    {
      std::lock_guard lock(seen_mutex);
      if (!std::exchange(to_be_kept, false)) {
        keeping = false;
        return;
      }
      file = kept_in;
      bytes = encode(all_seen);
    }
    Status written = writer ? writer(file, bytes) : write_pem_file(file, bytes, 0600, true);
    if (written) continue;
    kLog.warning("revocations_not_kept", {{"file", file}, {"error", written},
                                          {"effect", "after a restart an older list could count again"}});
    std::lock_guard lock(seen_mutex);
    to_be_kept = true;
    keeping = false;
    retry_at = std::chrono::steady_clock::now() + kRetry;
    return;
  }
}

// The file's disk may hang, and the caller be the loop: it waits a moment, lest a restart forget what has counted here.
void keep() {
  {
    std::lock_guard lock(seen_mutex);
    if (kept_in.empty() || !to_be_kept || keeping || std::chrono::steady_clock::now() < retry_at) return;
    keeping = true;
  }
  auto promise = std::make_shared<std::promise<void>>();   // shared: either may end first
  std::future<void> kept = promise->get_future();
  std::thread([promise] {
    sigset_t all;
    sigfillset(&all);   // the daemon's signals belong to its loop
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    write_all();
    promise->set_value();
  }).detach();
  if (kept.wait_for(kFilePatience) == std::future_status::ready) return;
  std::lock_guard lock(seen_mutex);
  if (keeping) kLog.warning("revocations_kept_late", {{"file", kept_in}, {"reason", "its disk does not answer"}});
}

}  // namespace

Status keep_revocations(const std::string& file) {
  AllSeen seen;
  std::ifstream in(file, std::ios::binary);
  if (!file.empty() && in) {
    const Bytes bytes(std::istreambuf_iterator<char>(in), {});
    auto decoded = in.bad() ? Result<AllSeen>(Status::from_errno(EIO, "reading it failed")) : decode(bytes);
    if (!decoded) {
      return decoded.status().with_context(
          file + ", where this node keeps what was revoked, cannot be used: put the newest revoked.pem of the "
                 "authority beside ca.pem, then move this file away, and it is made anew");
    }
    seen = std::move(*decoded);
  } else if (!file.empty() && errno != ENOENT) {
    return Status::from_errno(errno, file);
  }
  std::lock_guard one_writer(file_mutex);
  std::lock_guard lock(seen_mutex);
  all_seen = std::move(seen);
  kept_in = file;
  to_be_kept = false;
  retry_at = {};
  return Status::ok();
}

void set_kept_writer_for_testing(KeptWriter other) {
  std::lock_guard one_writer(file_mutex);
  writer = std::move(other);
}

std::shared_ptr<const Revoked> add_to_seen(RevocationList list) {
  std::shared_ptr<const Revoked> out;
  {
    std::lock_guard lock(seen_mutex);
    Seen& seen = all_seen[list.authority];
    seen.gone = false;
    const size_t count = list.serials.size(), known = seen.serials.size();
    list.serials.insert(seen.serials.begin(), seen.serials.end());
    const size_t lacking = list.serials.size() - count;
    const bool older = lacking != 0 || list.number < seen.number;
    if (older && !seen.warned) {
      kLog.warning("revocation_list_older",
                   {{"file", list.file}, {"number", list.number}, {"newest_seen", seen.number}, {"lacks", lacking},
                    {"kept", "what it lacks stays revoked"},
                    {"remedy", "put the authority's newest revoked.pem there; if that is lost, revoke the same "
                               "certificates again: tidemark pki revoke"}});
    }
    seen.warned = older;
    if (list.number > seen.number || list.serials.size() != known) {
      to_be_kept = true;
      retry_at = {};
    }
    seen.number = std::max(seen.number, list.number);
    seen.serials = list.serials;
    out = std::make_shared<const Revoked>(std::move(list.serials));   // shared by contexts and connections
  }
  keep();
  return out;
}

std::shared_ptr<const Revoked> seen_without_list(const std::string& authority, const std::string& file) {
  std::lock_guard lock(seen_mutex);
  auto at = all_seen.find(authority);
  if (at == all_seen.end()) return nullptr;
  if (!std::exchange(at->second.gone, true)) {
    kLog.warning("revocation_list_gone", {{"file", file}, {"newest_seen", at->second.number},
                                          {"kept", "what it revoked stays so"},
                                          {"remedy", "put the authority's newest revoked.pem there"}});
  }
  return std::make_shared<const Revoked>(at->second.serials);
}

}  // namespace tidemark::net
