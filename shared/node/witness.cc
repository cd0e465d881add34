// The witness's vote on the shared node's side: terms for a level pair of copies, and a tenure that moves by itself
// once its holder is gone and the witness has recorded that it must not go on alone.
//
//   terms: generation + 1, durable -> registered at the witness -> answered to the holder
//   fence: the holder's sessions are over, for longer than it takes to notice that -> witness: "fenced" -> preempt
#include <utility>

#include "shared/base/log.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.witness");
// A host pings every second and knows after five of silence that the link is gone: until then it answers reads from
// its own copy. By CLOCK_BOOTTIME of this machine; twice that time leaves room for clocks that run apart.
constexpr io::Duration kLease = std::chrono::seconds(10);
}  // namespace

// The verdict's name as the witness has recorded it.
void Core::ask_witness(const char* what, const Image& image, Callback<Result<std::string>> done) {
  net::HttpRequest request;
  request.method = "POST";
  request.target = "/v1/witness/" + image.id.to_string() + "/" + std::to_string(image.record.tenure.epoch.value) + "/" +
                   std::to_string(image.record.generation.value) + "/" + what;
  options_.witness->request(std::move(request), [done = std::move(done)](Result<net::HttpResponse> answer) mutable {
    if (!answer) return done(answer.status());
    std::string body(as_text(answer->body));
    if (answer->status != 200) return done(Status(Code::kUnavailable, "witness: " + body));
    for (const char* verdict : {"undecided", "outdated", "fenced"}) {
      if (body.starts_with("{\"verdict\":\"" + std::string(verdict) + "\"")) return done(std::string(verdict));
    }
    done(Status(Code::kCorruption, "witness: an answer of another form"));
  });
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
  if (image->record.outdated != 0) return refuse(Code::kBusy, "the copies are not level");
  if (image->asking_witness || image->fencing) return refuse(Code::kUnavailable, "being decided");
  image->asking_witness = true;
  ++image->ops;
  image->record.generation = image->record.generation.next();
  kv::WriteBatch batch;
  put_image(batch, image->id, image->record);
  commit(std::move(batch), [this, peer, id = request.id, image] {
    ask_witness("register", *image, [self = self_, peer, id, image](Result<std::string> verdict) {
      if (*self == nullptr) return;
      image->asking_witness = false;
      --image->ops;
      if (verdict && *verdict != "undecided")
        verdict = Status(Code::kBusy, "the witness has decided already: " + *verdict);
      if (!verdict) return peer->link->respond_failure(wire::Type::kTerms, id, verdict.status());
      peer->link->respond(wire::Type::kTerms, id, wire::TermsAnswer{image->record.generation});
    });
  });
}

// Another host waits for the image of one that is gone.
void Core::consider_fencing(Image& image) {
  const fence::State& tenure = image.record.tenure;
  bool wanted = options_.witness && !tenure.waiters.empty() && !tenure.holder.empty() && image.attr->mirror != 0 &&
                image.record.outdated == 0 && image.record.generation.value != 0 && !image.fencing &&
                !image.asking_witness;
  if (!wanted || session_of(tenure.holder) != nullptr) return;
  auto gone = host_gone_at_.find(tenure.holder);
  const io::BootTime lease_over = (gone == host_gone_at_.end() ? started_at_ : gone->second) + kLease;
  image.asking_witness = true;
  ++image.ops;
  if (env_.now() < lease_over) {
    env_.after(lease_over - env_.now(), [this, self = self_, &image] {
      if (*self == nullptr) return;
      image.asking_witness = false;
      --image.ops;
      consider_fencing(image);
    });
    return;
  }
  ask_witness("fenced", image, [this, self = self_, &image, holder = tenure.holder](Result<std::string> verdict) {
    if (*self == nullptr) return;
    image.asking_witness = false;
    --image.ops;
    kLog.info("witness_asked", {{"image", image.id}, {"holder", holder},
                                {"answer", verdict ? *verdict : verdict.status().to_string()}});
    if (!verdict || *verdict != "fenced") return;
    // It is back, and holds on: it cannot go on alone in this generation.
    if (image.record.tenure.holder != holder || session_of(holder) != nullptr || image.fencing) return;
    preempt(image, [] {});
  });
}

}  // namespace tidemark::node
