// Tenures that end by an operator's word, without their holder's: what would be lost is said first.
//
// The way of one image: the witness, if there is one, records that its holder must not go on alone; its holder's
// sessions are ended, writes begun before finish (`fencing`: nothing more of its epoch is begun), the copy is
// synced, the fence is made durable, the word is answered. From then on no frame of that epoch is applied. A witness
// that has let the holder go on, or does not answer, takes a second word: then only the operator knows that the holder
// is off.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/node/core.h"

namespace tidemark::node {

using nlohmann::json;

namespace {
const log::Logger kLog("node.takeover");
constexpr size_t kAskedAtOnce = 16;   // of one word
constexpr io::Duration kRefusedWithin = std::chrono::seconds(2);   // else a wait for an answer ended
constexpr size_t kRewriteBytes = 1u << 20;
constexpr io::Duration kSyncMax = std::chrono::seconds(5);   // a brick that hangs does not keep its images

struct Wish {
  std::vector<std::string> images;
  std::string host;
  bool force = false, accept_loss = false, dry_run = false;
};

Result<Wish> parse_wish(const std::string& text) {
  json j = json::parse(text, nullptr, false);
  Status bad(Code::kInvalidArgument,
             "the body must be {\"images\": [...] or \"host\": ..., \"force\", \"accept_loss\", \"dry_run\": bool}");
  if (!j.is_object()) return bad;
  Wish wish;
  for (const auto& [key, value] : j.items()) {
    if (key == "images" && value.is_array()) {
      for (const json& i : value) {
        if (!i.is_string()) return bad;
        wish.images.push_back(i.get<std::string>());
      }
    } else if (key == "host" && value.is_string()) {
      wish.host = value.get<std::string>();
    } else if (key == "force" && value.is_boolean()) {
      wish.force = value.get<bool>();
    } else if (key == "accept_loss" && value.is_boolean()) {
      wish.accept_loss = value.get<bool>();
    } else if (key == "dry_run" && value.is_boolean()) {
      wish.dry_run = value.get<bool>();
    } else {
      return bad;
    }
  }
  if (wish.images.empty() == wish.host.empty()) return bad;
  return wish;
}
}  // namespace

// One word under way: its images, and how many are not asked for, later not durably fenced, yet.
struct Core::TakeoverRun {
  json report;
  std::vector<std::pair<Image*, Epoch>> images;   // as they are held when the word is said
  std::vector<Image*> as_is;                      // held by nobody, and taken for what they hold
  bool accept_loss = false;
  size_t next = 0, asking = 0;                    // of the images; questions under way
  size_t unheard = 0;                             // questions in a row that the witness did not answer
  std::string silence;                            // how the last of these ended
  std::vector<std::pair<Image*, Epoch>> fenced;   // the witness bears their being taken
  std::string refused;
  size_t left = 0;
  void refuse(const std::string& why) { refused += (refused.empty() ? "" : "; ") + why; }
  Callback<Result<std::string>> done;
  void one_done() {
    if (--left != 0) return;
    report["taken"] = true;
    done(report.dump(-1, ' ', false, json::error_handler_t::replace));
  }
};

Image* Core::image_named(const std::string& name) {
  for (auto& [id, image] : images_) {
    if (image->record.nameless != 0) continue;
    if (id.to_string() == name || names_->path(image->record.inode) == (name.starts_with('/') ? name : "/" + name))
      return image.get();
  }
  return nullptr;
}

// What would happen to one image. `refused`: why nothing may be done.
std::string Core::describe_takeover(Image& image, const std::string& by, bool accept_loss, TakeoverRun& run) {
  const fence::State& tenure = image.record.tenure;
  const std::string& holder = tenure.holder;
  json entry = {{"path", names_->path(image.record.inode)}, {"uuid", image.id.to_string()},
                {"holder", holder},                         {"epoch", tenure.epoch.value},
                {"connected", session_of(holder) != nullptr}};
  auto gone = host_gone_at_.find(holder);
  entry["away_s"] = gone == host_gone_at_.end()
                        ? json(nullptr)
                        : json(std::chrono::duration<double>(env_.now() - gone->second).count());
  // While it has `mirror = none` there is nothing here to take, and its one copy is to stay whole on record.
  const bool cut = image.record.cut != 0 && image.attr->mirror != 0;
  const bool level = image.record.outdated == 0 && image.record.cut == 0;
  entry["level"] = level;
  entry["copy"] =
      level ? "level when " + holder + " was last heard of: what it acknowledged since, alone, is only there"
      : cut ? "damaged: " + cut_text(image)
            : "outdated: " + holder + " may have acknowledged writes that are not here";
  entry["tail"] = "what " + holder + " wrote without this copy is kept there as a branch, when it is back";
  if (asks_witness(image)) {
    entry["witness"] = "asked first: if it has let " + holder + " go on alone, or is silent, this takes --accept-loss";
  }
  const Status whole = accept_loss ? as_it_is(image) : Status::ok();
  std::string refused;
  if (!whole) {
    refused = whole.message() + ": bring the file back first";
  } else if (holder.empty() && cut && accept_loss) {
    if (in_use(image)) refused = "its copy here is in use: say it again";
    else run.as_is.push_back(&image);
    entry["action"] = "accept";
  } else if (holder.empty() && cut) {
    refused = "nobody holds it, and its copy here was cut short: let a host with a whole copy write it, or say "
              "--accept-loss";
  } else if (holder.empty()) {
    entry["action"] = "none";
    entry["reason"] = "nobody holds it: it can be written";
  } else if (holder == by) {
    refused = "this host holds it";
  } else if (image.attr->mirror == 0) {
    refused = "it has `mirror = none`: its blocks are on " + holder + " alone";
  } else if (!level && !accept_loss) {
    refused = "the shared copy is outdated: what " + holder +
              " acknowledged without it would be lost to the main line; say --accept-loss, or restore the replica's "
              "newest point";
  }
  if (!refused.empty()) {
    entry["action"] = "refused";
    entry["reason"] = refused;
  } else if (!holder.empty()) {
    entry["action"] = "take";
    run.images.emplace_back(&image, tenure.epoch);
  }
  std::string line = entry["path"].get<std::string>() + ": " + refused;
  run.report["images"].push_back(std::move(entry));
  return refused.empty() ? "" : line;
}

void Core::takeover(const std::string& text, const std::string& by, Callback<Result<std::string>> done) {
  auto wish = parse_wish(text);
  if (!wish) return done(wish.status());
  auto run = std::make_shared<TakeoverRun>();   // shared by the fences under way
  run->report = {{"dry_run", wish->dry_run}, {"taken", false}, {"images", json::array()}};
  std::vector<Image*> chosen;
  for (const std::string& name : wish->images) {
    Image* image = image_named(name);
    if (image == nullptr) return done(Status(Code::kNotFound, "no image " + name));
    chosen.push_back(image);
  }
  for (auto& [id, image] : images_) {
    bool of_host = !wish->host.empty() && image->record.tenure.holder == wish->host;
    if (of_host && image->record.nameless == 0) chosen.push_back(image.get());
  }
  for (Image* image : chosen) {
    std::string why = describe_takeover(*image, by, wish->accept_loss, *run);
    if (!why.empty()) run->refuse(why);
  }
  auto answer = [&] { done(run->report.dump(-1, ' ', false, json::error_handler_t::replace)); };
  if (wish->dry_run) return answer();
  if (!run->refused.empty()) return done(Status(Code::kBusy, "nothing was taken: " + run->refused));
  if (!run->images.empty() && !wish->force) {
    return done(Status(Code::kInvalidArgument, "a holder that is alive may go on alone: say --force if it is to lose "
                                               "these images"));
  }
  take_as_is(*run);
  run->done = std::move(done);
  if (run->images.empty())   // once that is durable
    return commit({}, [run] { run->done(run->report.dump(-1, ' ', false, json::error_handler_t::replace)); });
  run->accept_loss = wish->accept_loss;
  run->left = run->images.size();
  for (auto [image, epoch] : run->images) {
    ++image->ops;
    ++image->asking_witness;   // no new terms until it is carried out, or refused
  }
  ask_before_takeover(run);
}

// Copies that were cut short, for what they hold. Those that are held are taken with the fence.
void Core::take_as_is(TakeoverRun& run) {
  kv::WriteBatch batch;
  for (Image* image : run.as_is) {
    kLog.warning("cut_copy_accepted", {{"image", image->id}, {"path", names_->path(image->record.inode)}});
    close_copy(*image);   // it may know where it was cut
    image->record.cut = image->record.outdated = 0;
    image->holder_ahead = Image::Ahead::kNo;
    // As of a tenure taken by force: the next one's first batch holds all of it, whatever of it the replica has.
    image->record.tenure.parent.taken = true;
    image->record.tenure.parent.clean = false;
    note_copy(*image, Status::ok());
    mark_all_behind(*image, batch);
    put_image(batch, image->id, image->record);
    run.report["taken"] = true;
  }
  commit(std::move(batch), [] {});
}

// Whoever takes the image finds all that was acknowledged, for all that is known: until the witness answers that may
// have changed.
bool Core::copy_serves(const Image& image) {
  return image.record.outdated == 0 && image.record.cut == 0 && image.attr->mirror != 0;
}

// A holder that got terms for this epoch may ask the witness for its vote: no vote, no going on alone.
bool Core::asks_witness(const Image& image) const {
  return options_.witness && image.record.generation.value != 0 && !image.record.tenure.holder.empty();
}

// A few at a time: before a question is sent certificates are read for it, on this thread, by which all links live.
void Core::ask_before_takeover(const std::shared_ptr<TakeoverRun>& run) {
  while (run->asking < kAskedAtOnce && run->next < run->images.size()) {
    auto [image, epoch] = run->images[run->next++];
    ask_before_taking(*image, epoch, run);
  }
}

void Core::ask_before_taking(Image& image, Epoch epoch, const std::shared_ptr<TakeoverRun>& run) {
  auto decided = [this, &image, run, epoch](const std::string& refused) {
    if (refused.empty()) run->fenced.emplace_back(&image, epoch);
    else
      run->refuse(names_->path(image.record.inode) + ": " + refused +
                  "; say --accept-loss if that host is off for good");
    if (--run->left == 0) carry_out_takeover(run);
  };
  const TenureNow asked = tenure_now(image);
  auto no_vote = [run, holder = asked.holder](const std::string& answer) {
    if (run->accept_loss) return std::string();
    return "the witness gives no vote (" + answer + "), so that " + holder + " may go on alone";
  };
  if (asked.epoch != epoch || !asks_witness(image)) return decided("");   // the former has moved, and is not taken
  // It was silent for all that was asked at once: the others need not wait for as long again.
  if (run->unheard >= kAskedAtOnce) return decided(no_vote(run->silence));
  ++run->asking;
  ask_witness("fenced", image, [this, self = self_, &image, run, asked, decided, no_vote, at = env_.now()](
                                   Result<std::string> verdict, Generation) {
    if (*self == nullptr) return;
    const std::string answer = verdict ? *verdict : verdict.status().to_string();
    kLog.info("witness_asked", {{"image", image.id}, {"holder", asked.holder}, {"answer", answer}});
    --run->asking;
    // One whose disk hangs keeps no record, and answers what else it is asked.
    const bool heard = verdict || (witness_fault_ && env_.now() - at < kRefusedWithin);
    run->unheard = heard ? 0 : run->unheard + 1;
    if (!heard) run->silence = answer;
    const bool outdated = verdict && *verdict == "outdated";
    if (outdated) note_outdated(image, asked);
    if ((verdict && *verdict == "fenced") || (outdated && run->accept_loss)) decided("");
    else if (outdated)
      decided("the witness has let " + asked.holder + " go on alone: what it acknowledged since is not here");
    else decided(no_vote(answer));
    if (run->unheard == 0 || run->asking == 0) ask_before_takeover(run);
  });
}

void Core::carry_out_takeover(const std::shared_ptr<TakeoverRun>& run) {
  std::vector<Image*> now;
  for (auto [image, epoch] : run->images) {
    --image->ops;
    --image->asking_witness;
  }
  for (auto [image, epoch] : run->fenced) {
    if (image->record.tenure.epoch != epoch || image->record.tenure.holder.empty()) continue;
    now.push_back(image);
    const bool serves = run->accept_loss ? image->attr->mirror != 0 : copy_serves(*image);
    if (serves) continue;
    run->refuse(names_->path(image->record.inode) + ": its copy here may lack writes by now: say it again");
  }
  if (!run->refused.empty()) {
    // Of the others the vote is spent: their holder comes back for new terms.
    for (Image* image : now) {
      Session* session = asks_witness(*image) ? session_of(image->record.tenure.holder) : nullptr;
      if (session != nullptr)
        end_session(sessions_.at(session->number), Status(Code::kUnavailable, "the witness has fenced an image of it"));
    }
    for (auto [image, epoch] : run->images) consider_fencing(*image);   // who asked meanwhile was not heard
    return run->done(Status(Code::kBusy, "nothing was taken: " + run->refused));
  }
  run->left = now.size() + 1;   // + 1: not before all are begun
  for (Image* image : now) preempt(*image, [run] { run->one_done(); });
  run->one_done();
}

// Ends the tenure without its holder's word; `then` once that is durable.
void Core::preempt(Image& image, UniqueFunction<void()> then) {
  const std::string holder = image.record.tenure.holder;
  const Epoch epoch = image.record.tenure.epoch;
  kLog.warning("tenure_taken", {{"image", image.id},
                                {"path", names_->path(image.record.inode)},
                                {"from", holder},
                                {"epoch", epoch},
                                {"outdated", image.record.outdated},
                                {"effect", "what that host writes alone is a branch"}});
  image.fencing = true;
  ++image.ops;
  // Its unread frames are never begun; what it reads from its own copy it asks for again, in a session that is fenced.
  end_sessions_of(holder);
  auto fence_now = [this, &image, holder, epoch, then = std::move(then)]() mutable {
    image.fencing = false;
    if (image.record.tenure.holder != holder) {   // given back meanwhile
      --image.ops;
      return then();
    }
    // Back meanwhile, after a crash, and granted it anew: that is over as well, and no answer would ever say so to a
    // host that only reads.
    if (image.record.tenure.epoch != epoch) end_sessions_of(holder);
    image.record.outdated = 0;   // it is the main line now
    kv::WriteBatch batch;
    if (image.record.cut != 0 && as_it_is(image)) {
      image.record.cut = 0;
      note_copy(image, Status::ok());
      mark_all_behind(image, batch);
    }
    image.holder_ahead = Image::Ahead::kNo;
    refuse_waiters_if_cut(image);
    apply(image, fence::step(image.record.tenure, fence::Event::preempt(image.last_applied)), std::move(batch),
          [&image, then = std::move(then)](bool) mutable {
            --image.ops;
            then();
          });
  };
  auto written = [this, &image, go = std::move(fence_now)]() mutable { sync_main_line(image, std::move(go)); };
  if (image.write_ops == 0) return written();
  image.when_written.push_back([self = self_, go = std::move(written)]() mutable {
    if (*self != nullptr) go();
  });
}

void Core::end_sessions_of(const std::string& host) {
  for (Session* session = session_of(host); session != nullptr; session = session_of(host))
    end_session(sessions_.at(session->number), Status(Code::kUnavailable, "an image of it was taken over"));
}

// What the holder had acknowledged and no flush of it had covered: whoever takes the image copies it as it is read, and
// nobody's map would say so if it were lost here. A copy that cannot do it is taken as it is: nobody has a better one.
// The next tenure syncs once more (fs/engine_tenure.cc), and neither is enough: between the fence and that tenure other
// hosts read here, and the parent that the fence names says what this copy holds; but this one may fail or run out of
// time, and then the next holder must not begin upon what a loss of power could still take. Out of time it counts as
// failed until it has ended well: its failure may come when that tenure has begun, or when this run is over, and no
// sync after it would say so.
void Core::sync_main_line(Image& image, UniqueFunction<void()> then) {
  const bool none = image.attr->mirror == 0 || (image.record.has_copy == 0 && !image.copy);
  if (none || TM_PLANTED("take an image without a sync")) return then();
  auto once = std::make_shared<UniqueFunction<void()>>(std::move(then));   // shared by the sync and the limit for it
  auto over = [&image, once](const Status& status) {
    if (!*once) return;
    if (!status) kLog.warning("taken_unsynced", {{"image", image.id}, {"error", status}});
    std::exchange(*once, nullptr)();
  };
  if (Status s = ensure_copy(image, {}); !s) return over(s);
  auto late = std::make_shared<bool>(false);   // shared by the same two: the image is in doubt for that alone
  env_.after(kSyncMax, [this, self = self_, &image, once, late, over] {
    if (*self == nullptr || !*once) return;
    *late = image.record.in_doubt == 0;
    note_in_doubt(image, true);
    over(Status(Code::kIoError, "the sync has not ended in time"));
  });
  ++scans_;
  const LossId loss = group_->loss_id();
  const uint64_t begun = image.begun, ended = image.ended;
  image.copy->sync(io::IoMode::kQueued, [this, self = self_, id = image.id, loss, begun, ended, late,
                                         over](Status status) {
    if (*self == nullptr) return;
    --scans_;
    if (auto it = images_.find(id); it != images_.end()) {   // however late it ends
      Image& im = *it->second;
      if (status) im.synced = std::max(im.synced, ended);
      const bool covers_all = *late && im.begun == begun && group_->loss_id() == loss;
      if (!status || covers_all) note_in_doubt(im, !status);
    }
    over(status);
    maybe_stopped();
  });
}

// Durable with the fence or, where the next tenure's first sync finds it, before that begins anew.
void Core::note_in_doubt(Image& image, bool doubt) {
  const uint8_t now = doubt ? 1 : 0;
  if (std::exchange(image.record.in_doubt, now) == now) return;
  kv::WriteBatch batch;
  put_image(batch, image.id, image.record);
  commit(std::move(batch), [] {});
}

// The main line, block by block as it is read, where a sync failed, or hangs, over what a lost holder had written.
// Which blocks those are only that holder knows: it is all that is allocated. (A hole is not a block: where a file
// system could not keep one it does not go on.)
struct Core::Rewrite {
  Image& image;
  LossId loss;
  uint64_t at = 0;
  Extent piece;
  io::AlignedBuffer buffer{kRewriteBytes};
};

// What no sync covers here yet is a lost holder's. (Of its own writes a holder keeps account itself, and flushes them
// before it gives the image back.)
bool Core::begins_upon_lost(const Image& image) const {
  const fence::State& tenure = image.record.tenure;
  const bool lost = tenure.parent.taken && !tenure.parent.clean;
  return lost && (tenure.holder.empty() || !tenure.written);   // free, `written` is of the tenure before
}

void Core::write_main_line_again(Image& image, UniqueFunction<void(const Status&)> then) {
  const bool due = image.written_again || (image.record.in_doubt != 0 && begins_upon_lost(image));
  const bool none = image.attr->mirror == 0 || (image.record.has_copy == 0 && !image.copy);
  if (!due || none || TM_PLANTED("begin a tenure upon what a failed sync left")) return then(Status::ok());
  image.when_sure.push_back(std::move(then));
  if (std::exchange(image.written_again, true)) return;
  ++scans_;
  ++image.ops;
  kLog.warning("main_line_written_again", {{"image", image.id}, {"path", names_->path(image.record.inode)},
                                           {"reason", "a sync of it has failed, or has not ended"}});
  image.again_done = image.again_total = 0;
  if (Status s = ensure_copy(image, {}); !s) return main_line_written(image, s);
  if (auto bytes = image.copy->allocated_bytes()) image.again_total = *bytes;
  rewrite_next(std::make_shared<Rewrite>(Rewrite{image, group_->loss_id(), 0, {}}));   // shared by its steps
}

void Core::rewrite_next(std::shared_ptr<Rewrite> run) {
  Image& image = run->image;
  // Taken once more it may be given up meanwhile.
  Result<Extent> next = Status(Code::kCancelled, "its copy is not to be written any more");
  if (!stopping_ && image.copy) next = image.copy->next_data(run->at);
  if (!next) return main_line_written(image, next.status());
  if (next->length == 0) {
    image.copy->sync(io::IoMode::kQueued, [this, self = self_, run](Status status) {
      if (*self == nullptr) return;
      if (status && group_->loss_id() != run->loss) status = Status(Code::kUnavailable, "a sync has failed meanwhile");
      main_line_written(run->image, status);
    });
    return;
  }
  run->piece = {next->offset, std::min<uint64_t>(next->length, kRewriteBytes)};
  run->at = run->piece.end();
  MutableByteSpan bytes = run->buffer.span().first(run->piece.length);
  image.copy->read(run->piece.offset, bytes, io::IoMode::kQueued, [this, self = self_, run, bytes](Status read) {
    if (*self == nullptr) return;
    if (!read) return main_line_written(run->image, read);
    run->image.copy->write(run->piece.offset, bytes, io::IoMode::kQueued, [this, self, run](Status written) {
      if (*self == nullptr) return;
      if (!written) return main_line_written(run->image, written);
      run->image.again_done += run->piece.length;
      env_.post([this, self, run] {   // the stack is left between pieces
        if (*self != nullptr) rewrite_next(run);
      });
    });
  });
}

void Core::main_line_written(Image& image, const Status& status) {
  if (!status) kLog.warning("main_line_not_written_again", {{"image", image.id}, {"error", status}});
  image.again_failed = status;
  --scans_;
  kv::WriteBatch batch;
  if (status.is_ok()) {
    image.synced = image.ended;   // nobody writes it meanwhile
    image.record.in_doubt = 0;
    put_image(batch, image.id, image.record);
  }
  commit(std::move(batch), [this, &image, status] {
    --image.ops;
    image.written_again = false;
    for (auto& then : std::exchange(image.when_sure, {})) then(status);
    maybe_stopped();
  });
}

void Core::takeover_request(const PeerPtr& peer, wire::Request& request) {
  wire::Takeover m;
  if (!peer->link->decode_or_close(request.type, request.body, m)) return;
  takeover(m.request, peer->session->host, [peer, id = request.id](Result<std::string> report) {
    if (!report) return peer->link->respond_failure(wire::Type::kTakeover, id, report.status());
    const Bytes body = wire::encode(wire::TakeoverAnswer{std::move(*report)});
    const bool fits = body.size() <= limits::kFrameBodyBytesMax;
    if (fits) return peer->link->respond(wire::Type::kTakeover, id, ByteSpan(body));
    const Status too_long(Code::kUnsupported, "what was asked for was carried out, and the report is too long to be "
                                              "sent to a host: ask on the shared node, or name fewer images");
    peer->link->respond_failure(wire::Type::kTakeover, id, too_long);
  });
}

void Core::fence_seen_request(const PeerPtr& peer, wire::Request& request) {
  wire::FenceSeen m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  kLog.info("fence_seen", {{"image", image->id}, {"host", peer->session->host}, {"epoch", m.epoch}});
  apply(*image, fence::step(image->record.tenure, fence::Event::fence_seen(peer->session->host, m.epoch)), {},
        [peer, id = request.id](bool) { peer->link->respond(wire::Type::kFenceSeen, id, ByteSpan{}); });
}

}  // namespace tidemark::node
