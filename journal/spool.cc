// The spool's files: what is staged and not yet at the replica. Written once, whole, and synced with their directory before the
// commit that names them; one that no row of the journal names is nobody's.
#include "journal/journal_impl.h"
#include "shared/base/log.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr size_t kWritePieceBytes = 1u << 20;

}  // namespace

struct JournalImpl::SpoolWrite {
  std::string path;
  std::unique_ptr<io::File> file;
  Bytes bytes;
};

Task<Status> JournalImpl::write_spool(std::string path, Bytes bytes) {
  auto file = std::make_shared<SpoolWrite>();   // shared with its writes
  file->path = std::move(path);
  file->bytes = std::move(bytes);
  auto opened = env_.files().open(file->path, {.create = true, .background = true});
  if (!opened) co_return opened.status();
  file->file = std::move(*opened);
  Status status = file->file->truncate(0);
  for (size_t at = 0; status && at < file->bytes.size(); at += kWritePieceBytes) {
    ByteSpan piece = ByteSpan(file->bytes).subspan(at, std::min(kWritePieceBytes, file->bytes.size() - at));
    status = co_await async<Status>([&](Callback<Status> done) {
      file->file->write(at, piece, io::IoMode::kQueued, [file, done = std::move(done)](Status s) mutable { done(std::move(s)); });
    });
  }
  if (status) {
    status = co_await async<Status>([&](Callback<Status> done) {
      file->file->sync(io::IoMode::kQueued, [file, done = std::move(done)](Status s) mutable { done(std::move(s)); });
    });
  }
  co_return status ? status : status.with_context(file->path);
}

Task<Status> JournalImpl::sync_spool() {
  auto result = std::make_shared<Status>();   // shared by the worker and the loop, one after the other
  co_await async<bool>([&](Callback<bool> done) {
    // A directory's fsync has no asynchronous form; it needs nothing but its path, so a worker may do it.
    env_.offload([result, files = &env_.files(), path = spool_] { *result = files->sync_directory(path); },
                 [done = std::move(done)]() mutable { done(true); });
  });
  co_return std::move(*result);
}

void JournalImpl::remove_spool_files(BatchNumber number, size_t parts) {
  for (uint32_t i = 0; i < parts; ++i) {
    Status removed = env_.files().unlink(spool_ + "/" + spool_file_name(number, i));
    if (!removed && removed.code() != Code::kNotFound) kLog.warning("spool_unlink", {{"batch", number}, {"status", removed}});
  }
}

void JournalImpl::sweep_spool() {
  // What is staged and not yet acknowledged stays; the rest was never committed or is done with.
  std::set<std::string> wanted;
  for (const StagedBatch& b : staged_at_open_) {
    for (uint32_t i = 0; i < b.parts.size(); ++i) wanted.insert(spool_file_name(b.number, i));
  }
  Result<std::vector<std::string>> names = env_.files().list(spool_);
  if (!names) return kLog.warning("spool_unreadable", {{"status", names.status()}});
  for (const std::string& name : *names) {
    if (wanted.erase(name) > 0) continue;
    Status removed = env_.files().unlink(spool_ + "/" + name);
    if (!removed) kLog.warning("spool_unlink", {{"file", name}, {"status", removed}});
  }
  for (const std::string& name : wanted) kLog.error("spool_file_missing", {{"file", name}, {"effect", "shipping will stop there"}});
}

}  // namespace tidemark::journal
