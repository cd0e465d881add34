// Going on alone where the witness must say so first, and the end of waiting by an operator's word.
//
//   mirrored --terms asked of the shared node--> generation known --link lost--> waiting --witness: outdated--> alone
//
// Terms end with the next handshake: while the link was away either side may have got the vote under them. The vote
// that this host once got counts until it asks for new terms, which it does when both copies are level again; from then
// on the shared node may get the vote.
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr size_t kTermsAtOnce = 16;
constexpr std::chrono::seconds kTermsAgain{1};   // of one image
// The shared node answers others' reads while this host was there for certain less than a second ago
// (data_requests.cc): before it last sent anything. The rest is for clocks of other speeds.
constexpr std::chrono::milliseconds kHeardMax{1200};
}  // namespace

// For the images that lack them, those first that were asked for longest ago. A few at a time, since all may lack them
// at once, after a reconnect; while the witness is silent one, which finds out for all whether it still is. Not for a
// tenure that goes on alone unasked: with terms the shared node could get the vote, and give it away.
void Engine::want_terms(size_t at_least) {
  if (!witness_) return;
  const bool silent = !terms_error_.empty();
  size_t room = asking_terms_ <= kTermsAtOnce / 2 ? kTermsAtOnce - asking_terms_ : 0;
  if (silent) room = asking_terms_ == 0 ? 1 : 0;
  room = std::max(room, at_least);
  if (room == 0) return;
  std::vector<Image*> lacking;
  for (auto& [id, image] : images_) {
    Image& im = *image;
    bool level = im.held && im.state == MirrorState::kMirrored && !im.recovering && !im.yielding;
    bool due = im.terms_asked_at == io::BootTime{} || env_.now() - im.terms_asked_at >= kTermsAgain;
    if (level && due && im.facts.asks_first && im.terms.value == 0 && !im.asking_terms) lacking.push_back(&im);
  }
  room = std::min(room, lacking.size());
  auto older = [](const Image* a, const Image* b) { return a->terms_asked_at < b->terms_asked_at; };
  std::partial_sort(lacking.begin(), lacking.begin() + static_cast<ptrdiff_t>(room), lacking.end(), older);
  lacking.resize(room);
  for (Image* im : lacking) tasks_.spawn(ask_terms(*im));
}

Task<void> Engine::ask_terms(Image& im) {
  if (im.asking_terms) co_return;
  Pin pin(im);
  im.asking_terms = true;
  ++asking_terms_;
  im.terms_asked_at = env_.now();
  im.facts.witnessed = false;   // before it is asked: the answer may be lost
  remember(im);
  const Epoch epoch = im.epoch;
  const uint64_t session = mirror_->hello().session;
  using Answer = Result<wire::TermsAnswer>;
  wire::Terms ask{im.id, epoch};
  auto terms = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::TermsAnswer>(wire::Type::kTerms, ask, std::move(done));
  });
  im.asking_terms = false;
  --asking_terms_;
  if (terms && im.held && im.epoch == epoch) {
    im.terms = terms->generation;
    remember(im);
  }
  if (!terms && !mirror_->stands(session)) co_return;   // asked anew with the next one
  // Refused for this image, or for want of the witness: then whatever else is asked is, too.
  const Code code = terms.status().code();
  const bool witness = code != Code::kBusy && code != Code::kFenced && code != Code::kNotFound;
  const std::string error = terms ? "" : terms.status().message();
  if (!terms && error != (witness ? terms_error_ : im.witness_error))
    kLog.warning("terms_refused", {{"image", im.id}, {"error", error}});
  im.witness_error = error;
  if (terms && !terms_error_.empty()) kLog.info("terms_given_again", {{"image", im.id}});
  if (terms || witness) terms_error_ = error;
  if (terms || !witness) want_terms(0);
}

// Images of which nobody has a vote, should the link go now: their guests would wait, or stay with a host that is gone.
std::string Engine::without_vote() const {
  if (terms_error_.empty()) return "";
  size_t count = 0;
  std::string first;
  for (const auto& [id, image] : images_) {
    const Image& im = *image;
    const bool lacks = im.held && im.facts.asks_first && im.state == MirrorState::kMirrored && im.terms.value == 0;
    if (lacks && !im.witness_error.empty() && count++ == 0) first = names_->path_of(im.inode);
  }
  if (count == 0) return "";
  return first + (count == 1 ? "" : " and " + std::to_string(count - 1) + " more images") +
         ": the witness has no vote to give, should the shared node be lost: " + terms_error_;
}

Task<void> Engine::ask_witness(Image& im) {
  if (im.asking_witness) co_return;
  Pin pin(im);
  im.asking_witness = true;
  const Epoch epoch = im.epoch;
  auto waits = [&] { return !stopping_ && im.held && im.epoch == epoch && im.state == MirrorState::kWaiting; };
  while (waits()) {
    if (im.terms.value == 0 || !im.facts.copy_whole || !im.facts.handshaken) {
      im.witness_error = "this host may not ask the witness: its copy was not level under known terms";
      break;
    }
    net::HttpRequest request;
    request.method = "POST";
    const Generation terms = im.terms;
    request.target = "/v1/witness/" + im.id.to_string() + "/" + std::to_string(epoch.value) + "/" +
                     std::to_string(terms.value) + "/outdated";
    using Answer = Result<net::HttpResponse>;
    auto answer = co_await async<Answer>([&](Callback<Answer> done) {
      witness_->request(std::move(request), std::move(done));
    });
    if (!waits()) break;
    if (im.terms != terms) continue;   // the link was back meanwhile: what was said then decides nothing now
    const std::string body = answer ? std::string(as_text(answer->body)) : answer.status().message();
    if (answer && answer->status == 200 && body.starts_with("{\"verdict\":\"outdated\"")) {
      // Until then another host's read may be answered without what is acknowledged here.
      const io::BootTime unheard = mirror_->sent_until() + kHeardMax;
      if (!mirror_->up() && env_.now() < unheard) {
        co_await sleep(unheard - env_.now());
        if (!waits() || im.terms != terms) continue;
      }
      kLog.warning("witness_recorded", {{"image", im.id}, {"epoch", epoch}, {"generation", im.terms},
                                        {"effect", "this host goes on alone"}});
      im.facts.witnessed = true;
      im.terms = Generation(0);   // new ones are asked for when both copies are level again
      im.witness_error.clear();
      apply(im, MirrorEvent::kWitnessed);
      break;
    }
    if (body.starts_with("{\"verdict\":\"fenced\"")) {
      // The tenure moves, or this host is heard again before it has.
      im.terms = Generation(0);
      remember(im);
      im.witness_error = "the witness has recorded that another host may take it";
      break;
    }
    if (im.witness_error != body) kLog.warning("witness_silent", {{"image", im.id}, {"answer", body}});
    im.witness_error = body;
    co_await sleep(kRetry);
  }
  im.asking_witness = false;
}

// At the start of a run: its link to the shared node is likely to be there in a moment.
Task<void> Engine::ask_unless_linked(Image& im) {
  Pin pin(im);
  if (co_await wait_link(kRetry) || !witness_) co_return;
  if (im.state == MirrorState::kWaiting) co_await ask_witness(im);
}

void Engine::abort_waiting(std::string name, Callback<Result<std::string>> done) {
  auto attr = names_->resolve(name);
  if (!attr) return done(Status(Code::kNotFound, name + ": no such image"));
  size_t count = 0;
  if (Image* im = find(attr->image)) {
    const Status aborted = Status::from_errno(EIO, "the waiting was ended by `tidemark image abort`");
    std::vector<Op*> parked, unknown, flushes, untold;
    parked.swap(im->parked);
    unknown.swap(im->unknown);
    flushes.swap(im->flushes);
    untold.swap(im->untold);
    count = parked.size() + unknown.size() + flushes.size() + untold.size();
    kLog.warning("waiting_aborted", {{"image", im->id}, {"requests", count}});
    for (Op* op : parked) {
      auto answer = std::move(op->done);
      recycle(op);
      answer(aborted);
    }
    for (Op* op : unknown) finish_op(op, aborted);
    for (Op* op : untold) finish_op(op, aborted);
    for (Op* op : flushes) leave(op, aborted);
  }
  done("{\"aborted\":" + std::to_string(count) + "}");
}

}  // namespace tidemark::fs
