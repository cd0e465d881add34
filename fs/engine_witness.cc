// Going on alone where the witness must say so first, and the end of waiting by an operator's word.
//
//   mirrored --terms asked of the shared node--> generation known --link lost--> waiting --witness: outdated--> alone
//
// Terms end with the next handshake: while the link was away either side may have got the vote under them. The vote
// that this host once got counts until it asks for new terms, which it does when both copies are level again; from then
// on the shared node may get the vote. Should the link go before that, nobody is asked: but the shared node has heard
// this host since, and nothing is done alone before it has not for a while.
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr size_t kAskedAtOnce = 16;   // for terms, and for votes
constexpr std::chrono::seconds kTermsAgain{1};   // of one image
constexpr const char* kMayNotAsk = "this host may not ask the witness: its copy was not level under known terms";
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
  size_t room = asking_terms_ <= kAskedAtOnce / 2 ? kAskedAtOnce - asking_terms_ : 0;
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
  im.voted = im.facts.witnessed = false;   // before it is asked: the answer may be lost
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
    im.vote_asked_at = {};
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

// The image has come to wait, or waits and something has changed. A vote that was given counts without a witness, too.
void Engine::wait_for_vote(Image& im) {
  if (im.voted) return tasks_.spawn(go_on_voted(im));
  if (!witness_) return;
  if (im.terms.value != 0) return want_votes();
  if (im.witness_error.empty()) im.witness_error = kMayNotAsk;   // all come to wait at once: none goes through all
}

// Of the images that wait those first whose guests do, then those that were asked for longest ago. A few at a time, as
// want_terms(): all lose their link at once, and the witness has connections for so many of all hosts.
void Engine::want_votes() {
  const size_t at_once = votes_.silent ? 1 : kAskedAtOnce;
  if (!witness_ || stopping_ || votes_.asking > at_once / 2) return;
  std::vector<Image*> due;
  bool later = false;
  for (auto& [id, image] : images_) {
    Image& im = *image;
    const bool waits = im.held && im.state == MirrorState::kWaiting && im.facts.asks_first && !im.voted;
    if (!waits || im.asking_witness) continue;
    if (im.terms.value == 0 || !im.facts.copy_whole || !im.facts.handshaken) {
      if (im.witness_error.empty()) im.witness_error = kMayNotAsk;
    } else if (im.vote_asked_at == io::BootTime{} || env_.now() - im.vote_asked_at >= kRetry) {
      due.push_back(&im);
    } else {
      later = true;
    }
  }
  const size_t room = std::min(at_once - votes_.asking, due.size());
  auto guests_wait = [](const Image* im) {
    return !im->parked.empty() || !im->unknown.empty() || !im->flushes.empty();
  };
  auto before = [&](const Image* a, const Image* b) {
    if (guests_wait(a) != guests_wait(b)) return guests_wait(a);
    return a->vote_asked_at < b->vote_asked_at;
  };
  std::partial_sort(due.begin(), due.begin() + static_cast<ptrdiff_t>(room), due.end(), before);
  due.resize(room);
  for (Image* im : due) tasks_.spawn(ask_witness(*im));
  if (later) tasks_.spawn(want_votes_later());
}

Task<void> Engine::want_votes_later() {
  if (std::exchange(votes_.later, true)) co_return;
  co_await sleep(kRetry);
  votes_.later = false;
  want_votes();
}

Task<void> Engine::ask_witness(Image& im) {
  if (im.asking_witness) co_return;
  Pin pin(im);
  im.asking_witness = true;
  ++votes_.asking;
  im.vote_asked_at = env_.now();
  const Epoch epoch = im.epoch;
  const Generation terms = im.terms;
  net::HttpRequest request;
  request.method = "POST";
  request.target = "/v1/witness/" + im.id.to_string() + "/" + std::to_string(epoch.value) + "/" +
                   std::to_string(terms.value) + "/outdated";
  using Answer = Result<net::HttpResponse>;
  auto answer = co_await async<Answer>([&](Callback<Answer> done) {
    witness_->request(std::move(request), std::move(done));
  });
  --votes_.asking;
  votes_.silent = !answer;
  im.asking_witness = false;
  // With other terms the link was back meanwhile: what was said then decides nothing now.
  if (im.held && im.epoch == epoch && im.state == MirrorState::kWaiting && im.terms == terms) take_verdict(im, answer);
  if (votes_.silent) tasks_.spawn(want_votes_later());
  else want_votes();
}

void Engine::take_verdict(Image& im, const Result<net::HttpResponse>& answer) {
  const std::string body = answer ? std::string(as_text(answer->body)) : answer.status().message();
  if (answer && answer->status == 200 && body.starts_with("{\"verdict\":\"outdated\"")) {
    kLog.warning("witness_recorded", {{"image", im.id}, {"epoch", im.epoch}, {"generation", im.terms},
                                      {"effect", "this host goes on alone"}});
    im.voted = true;
    im.terms = Generation(0);   // new ones are asked for when both copies are level again
    im.witness_error.clear();
    remember(im);
    tasks_.spawn(go_on_voted(im));
  } else if (body.starts_with("{\"verdict\":\"fenced\"")) {
    // The tenure moves, or this host is heard again before it has.
    im.terms = Generation(0);
    remember(im);
    im.witness_error = "the witness has recorded that another host may take it";
  } else {
    if (im.witness_error != body) kLog.warning("witness_silent", {{"image", im.id}, {"answer", body}});
    im.witness_error = body;
  }
}

// Not while another host's read may be answered without what is acknowledged here. The link may come and go meanwhile.
Task<void> Engine::go_on_voted(Image& im) {
  if (im.asking_witness) co_return;
  Pin pin(im);
  im.asking_witness = true;
  const Epoch epoch = im.epoch;
  auto waits = [&] {
    return !stopping_ && im.held && im.epoch == epoch && im.state == MirrorState::kWaiting && im.voted;
  };
  auto heard_until = [this] { return mirror_->up() ? env_.now() : mirror_->sent_until() + kHeardMax; };
  do {   // once in any case: whoever spawned this is still at what has made the image wait
    co_await sleep(std::max(heard_until() - env_.now(), io::Duration(0)));
  } while (waits() && env_.now() < heard_until());
  if (waits()) {
    im.facts.witnessed = true;
    apply(im, MirrorEvent::kWitnessed);
  }
  im.asking_witness = false;
  if (im.state == MirrorState::kWaiting && !im.voted) want_votes();   // another tenure's, or under new terms
}

// At the start of a run: its link to the shared node is likely to be there in a moment.
Task<void> Engine::ask_unless_linked(Image& im) {
  Pin pin(im);
  im.vote_asked_at = env_.now();   // not with what others wait for
  if (co_await wait_link(kRetry) || !witness_) co_return;
  want_votes();
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
