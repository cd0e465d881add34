// The witness's vote on the shared node's side: terms for a level pair of copies, and a tenure that moves by itself
// once its holder is gone and the witness has recorded that it must not go on alone.
//
//   terms: generation + 1, durable -> registered at the witness -> answered to the holder
//   fence: the holder's sessions are over, for longer than it takes to notice that -> witness: "fenced" -> preempt
//
// The generation begins anew with each epoch: 0 until the holder has asked for terms in it. A holder without terms
// cannot get the vote.
#include <nlohmann/json.hpp>

#include <set>
#include <utility>

#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.witness");
// A host notices after 1.4 s of silence that the link is gone, and answers no read from its own copy eight seconds
// after it last asked and was answered, however long it stood still (fs/engine_read.cc). By CLOCK_BOOTTIME of this
// machine; the rest is room for clocks that run apart.
constexpr io::Duration kLease = std::chrono::seconds(10);
constexpr io::Duration kAskAgain = std::chrono::seconds(1);

Generation registered_of(const std::string& body, Epoch epoch) {
  auto json = nlohmann::json::parse(body, nullptr, false);
  if (!json.is_object() || !json.contains("epoch") || !json.contains("generation")) return Generation(0);
  if (!json["epoch"].is_number_unsigned() || !json["generation"].is_number_unsigned()) return Generation(0);
  if (json["epoch"].get<uint64_t>() != epoch.value) return Generation(0);
  return Generation(json["generation"].get<uint64_t>());
}
}  // namespace

// The verdict's name as the witness has recorded it. `registered`: the generation that it has of this epoch, where it
// refuses for that; else 0.
void Core::ask_witness(const char* what, const Image& image, WitnessAnswer done) {
  net::HttpRequest request;
  request.method = "POST";
  request.target = "/v1/witness/" + image.id.to_string() + "/" + std::to_string(image.record.tenure.epoch.value) + "/" +
                   std::to_string(image.record.generation.value) + "/" + what;
  options_.witness->request(std::move(request), [this, self = self_, done = std::move(done),
                                                 epoch = image.record.tenure.epoch, asked = env_.now()](
                                                    Result<net::HttpResponse> answer) mutable {
    if (*self != nullptr) note_witness(answer.status(), asked);
    if (!answer) return done(answer.status(), Generation(0));
    std::string body(as_text(answer->body));
    if (*self != nullptr) note_witness_store(*answer);
    if (answer->status != 200)
      return done(Status(Code::kUnavailable, "witness: " + body), registered_of(body, epoch));
    for (const char* verdict : {"undecided", "outdated", "fenced"}) {
      if (body.starts_with("{\"verdict\":\"" + std::string(verdict) + "\""))
        return done(std::string(verdict), Generation(0));
    }
    done(Status(Code::kCorruption, "witness: an answer of another form"), Generation(0));
  });
}

// At each tick: nobody else asks it while all is well, and that it is gone is to be seen before it is needed. It is
// asked for what comes after the last image: no record, and a witness of any version answers.
void Core::look_for_witness() {
  if (!options_.witness || std::exchange(looking_for_witness_, true)) return;
  net::HttpRequest request;
  request.method = "GET";
  request.target = "/v1/witness/records/ffffffff-ffff-ffff-ffff-ffffffffffff";
  options_.witness->request(std::move(request), [this, self = self_, asked = env_.now()](
                                                    Result<net::HttpResponse> answer) {
    if (*self == nullptr) return;
    looking_for_witness_ = false;
    constexpr int kFound = 200, kNoSuchMethod = 405;   // the latter of a version without a list
    Status status = answer.status();
    if (answer && answer->status != kFound && answer->status != kNoSuchMethod)
      status = Status(Code::kUnavailable, "HTTP " + std::to_string(answer->status) + ": no witness serves there");
    note_witness(status, asked);
    if (answer) note_witness_store(*answer);
  });
}

// Another store than the last one: of no image is there a vote in it before a registration, which takes both ends. Not
// of the generation that was registered before: the old one may have given a vote under it. Not inline: whoever asked
// goes on with the answer first.
void Core::note_witness_store(const net::HttpResponse& answer) {
  if (answer.status != 200) return;
  const auto json = nlohmann::json::parse(as_text(answer.body), nullptr, false);
  if (!json.is_object() || !json.contains("store") || !json["store"].is_string()) return;   // of an older version
  const auto store = Uuid::parse(json["store"].get<std::string>());
  if (!store || *store == witness_store_) return;
  const Uuid before = std::exchange(witness_store_, *store);
  if (before.is_nil()) return;   // in this run each holder has asked for new terms, or will
  kLog.warning("witness_replaced", {{"store", *store}, {"before", before},
                                    {"effect", "holders come back for new terms: until then there is no vote"}});
  env_.post([this, self = self_] {
    if (*self == nullptr) return;
    std::set<std::string> holders;
    for (const auto& [id, image] : images_)
      if (image->record.generation.value != 0 && !image->record.tenure.holder.empty())
        holders.insert(image->record.tenure.holder);
    for (const std::string& host : holders)
      for (Session* session = session_of(host); session != nullptr; session = session_of(host))
        end_session(sessions_.at(session->number), Status(Code::kUnavailable, "the witness was replaced"));
  });
}

void Core::note_witness(const Status& answered, io::BootTime asked) {
  if (!answered && asked < witness_heard_at_) return;   // it was asked before it was heard last
  if (answered) witness_heard_at_ = env_.now();
  if (answered.is_ok() != witness_fault_.is_ok()) {
    if (answered) kLog.info("witness_answers", {});
    else kLog.warning("witness_silent", {{"error", answered}, {"effect", "it gives no vote when one is needed"}});
    witness_silent_since_ = asked;
  }
  witness_fault_ = answered;
}

void Core::terms_request(const PeerPtr& peer, wire::Request& request) {
  wire::Terms m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  auto refuse = [&](Code code, const char* why) {
    peer->link->respond_failure(request.type, request.id, Status(code, label(*image) + ": " + why));
  };
  if (!fence::may_write(image->record.tenure, peer->session->host, m.epoch)) return refuse(Code::kFenced, "not held");
  if (!options_.witness) return refuse(Code::kUnsupported, "the shared node has no [witness]");
  const bool differ = image->record.outdated != 0 && !TM_PLANTED("give terms while copies differ");
  if (differ) return refuse(Code::kBusy, "the copies are not level");
  if (image->asking_witness != 0 || image->fencing) return refuse(Code::kBusy, "being decided");
  ++image->asking_witness;
  ++image->ops;
  register_terms(peer, request.id, *image, m.epoch, image->record.generation.next(), true);
}

// A generation that the witness knows already is of before this node's catalogue was rebuilt: the next one follows it.
void Core::register_terms(const PeerPtr& peer, uint64_t id, Image& image, Epoch epoch, Generation next,
                          bool may_learn) {
  image.record.generation = next;
  kv::WriteBatch batch;
  put_image(batch, image.id, image.record);
  commit(std::move(batch), [this, peer, id, &image, epoch, may_learn] {
    ask_witness("register", image, [this, self = self_, peer, id, &image, epoch, may_learn](Result<std::string> verdict,
                                                                                      Generation registered) {
      if (*self == nullptr) return;
      const bool behind = registered >= image.record.generation && image.record.tenure.epoch == epoch;
      if (!verdict && may_learn && behind) {
        kLog.warning("generation_learned", {{"image", image.id}, {"epoch", epoch}, {"registered", registered},
                                            {"here", image.record.generation}});
        return register_terms(peer, id, image, epoch, registered.next(), false);
      }
      --image.asking_witness;
      --image.ops;
      if (verdict && *verdict != "undecided")
        verdict = Status(Code::kBusy, "the witness has decided already: " + *verdict);
      if (verdict && image.record.tenure.epoch != epoch) verdict = Status(Code::kFenced, "the tenure has moved");
      if (!verdict) return peer->link->respond_failure(wire::Type::kTerms, id, verdict.status());
      peer->link->respond(wire::Type::kTerms, id, wire::TermsAnswer{image.record.generation});
    });
  });
}

// Another host waits for the image of one that is gone.
void Core::consider_fencing(Image& image) {
  const fence::State& tenure = image.record.tenure;
  bool wanted = options_.witness && !tenure.waiters.empty() && !tenure.holder.empty() && copy_serves(image) &&
                image.record.generation.value != 0 && !image.fencing &&
                image.asking_witness == 0 && !image.fence_later;
  if (!wanted || session_of(tenure.holder) != nullptr) return;
  const io::Duration lease = TM_PLANTED("take a tenure before its lease is over") ? io::Duration(0) : kLease;
  const io::BootTime lease_over = gone_since(tenure.holder) + lease;
  if (env_.now() < lease_over) return consider_fencing_in(image, lease_over - env_.now());
  ++image.asking_witness;
  ++image.ops;
  ask_witness("fenced", image, [this, self = self_, &image, asked = tenure_now(image),
                                gone = gone_since(tenure.holder)](Result<std::string> verdict, Generation) {
    if (*self == nullptr) return;
    --image.asking_witness;
    --image.ops;
    kLog.info("witness_asked", {{"image", image.id}, {"holder", asked.holder},
                                {"answer", verdict ? *verdict : verdict.status().to_string()}});
    if (TM_PLANTED("move a tenure without the witness")) verdict = std::string("fenced");
    if (!verdict) return consider_fencing_in(image, kAskAgain);
    if (*verdict == "outdated") note_outdated(image, asked);
    if (*verdict != "fenced" || image.record.tenure.epoch != asked.epoch || image.record.tenure.holder.empty()) return;
    // It was back meanwhile: if it has gone again it may still answer reads from its own copy.
    if (session_of(asked.holder) != nullptr || gone_since(asked.holder) != gone) return consider_fencing(image);
    if (!image.fencing && copy_serves(image)) preempt(image, [] {});
  });
}

void Core::consider_fencing_in(Image& image, io::Duration delay) {
  image.fence_later = true;
  ++image.ops;
  env_.after(delay, [this, self = self_, &image] {
    if (*self == nullptr) return;
    image.fence_later = false;
    --image.ops;
    consider_fencing(image);
  });
}

// When its last session ended, as far as this run can know.
io::BootTime Core::gone_since(const std::string& host) const {
  auto gone = host_gone_at_.find(host);
  return gone == host_gone_at_.end() ? started_at_ : gone->second;
}

Core::TenureNow Core::tenure_now(const Image& image) {
  return {image.record.tenure.epoch, image.record.tenure.holder, image.holder_session};
}

// The holder has got the vote: it may have acknowledged what is not here, until it has said that it has not.
void Core::note_outdated(Image& image, const TenureNow& asked) {
  const fence::State& tenure = image.record.tenure;
  if (tenure.epoch != asked.epoch || tenure.holder.empty() || image.record.outdated != 0) return;
  if (image.holder_session != asked.session) return;   // it has resumed meanwhile, and said so
  image.record.outdated = 1;
  kLog.warning("shared_copy_outdated", {{"image", image.id}, {"holder", tenure.holder}, {"epoch", tenure.epoch},
                                        {"reason", "the witness has let its holder go on alone"}});
  kv::WriteBatch batch;
  put_image(batch, image.id, image.record);
  commit(std::move(batch), [] {});
}

}  // namespace tidemark::node
