// The inside of SharedNode. One class, its members grouped by what they do; each group has its .cc:
// core.cc (start, stop, commits), sessions.cc, data_requests.cc and data.cc (the way of a data request), copies.cc,
// hang.cc (a brick that hangs), scans.cc (hash and extents), tenures.cc, takeover.cc, rebuild.cc,
// name_requests.cc, status.cc.
//
// The way of a request that changes blocks:
//
//   decoded --overlaps one in flight--> waits in OrderTable
//      |                                   |
//      +-----------------------------------+--> fence check --region not warm--> prepare(): marks durable
//                                                    |                                |
//                                                    +--------------------------------+--> issue --> answer
//
// A region is warm while every other host's map has it marked in a way that no map handed out before can
// clear. Whatever changes maps (hand-out, Level, a new host, a new holder) makes all regions cold.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "shared/base/metrics.h"
#include "shared/image/store.h"
#include "shared/kv/store.h"
#include "shared/node/catalogue.h"
#include "shared/node/node.h"
#include "shared/node/order.h"
#include "shared/wire/connection.h"

namespace tidemark::wire { struct CreateOnce; }

namespace tidemark::node {

struct Session;
struct Op;
struct Rebuild;

// One connection of a host.
struct Peer : std::enable_shared_from_this<Peer> {
  std::unique_ptr<wire::Connection> link;
  std::shared_ptr<Session> session;   // shared by the connections and requests of a session; null before Hello
  io::TimerId hello_timer;
  bool greeted = false;               // its Hello is being looked at
  bool met = false;                           // it was told what it judges by, and may open a session
  bool ready = false;                 // its Hello was answered
  uint64_t payload_bytes = 0;         // received and not yet applied
  uint64_t read_bytes = 0;            // being read for it
  std::deque<Op*> held_reads;         // until it has taken what it asked for
};

struct Session {
  uint64_t number = 0;
  std::string host;
  HostRun run;
  uint64_t features = 0;                      // that its host offered
  LossId loss;                                // as its Hello was answered
  std::vector<std::shared_ptr<Peer>> peers;   // shared with their unanswered requests
  bool ended = false;
  uint32_t ops = 0;                           // begun or waiting
  std::vector<UniqueFunction<void()>> when_drained;
};

struct Image {
  ImageId id;
  ImageRecord record;
  wire::Attr* attr = nullptr;                 // in the name space
  std::unique_ptr<image::ImageCopy> copy;     // opened when first needed
  Status copy_fault;                          // blocks are here, and cannot be opened or do not count: why
  bool reopen = false;                        // the copy that is open was cut: closed once nobody uses it
  bool mending = false;                       // its holder compares all of a copy that was cut with its own, whole one
  std::map<std::string, BehindMap> behind;
  OrderTable<Op> order;
  std::vector<uint64_t> warm;                 // bitmap by region
  uint64_t warm_serial = 0;                   // grows when everything becomes cold
  bool settled = false;                       // of this epoch: `written` and `has_copy` are durable
  CoordinatorSequence coordinator;            // last given
  CoordinatorSequence reserved_durable;
  bool reserving = false;
  WriteSequence last_applied;                 // of this epoch
  uint64_t holder_session = 0;                // in which the holder was granted its tenure, or said that it stands
  // It may have acknowledged writes that this copy lacks, alone or before a crash: until it has made the two equal.
  enum class Ahead : uint8_t { kNo, kUntilFlush, kUntilWrite, kUntilResume } holder_ahead = Ahead::kNo;
  io::BootTime outdated_since;                // as the ticks saw it; 0: the copy here is level
  // Of the holder, or lost after it had been applied: the holder may not have heard of it when it next resumes.
  bool refused_writes = false;
  uint32_t asking_witness = 0;                // questions on their way: meanwhile no new terms
  bool fence_later = false;                   // a timer is set to look at its holder's absence again
  bool fencing = false;                       // being taken from its holder: nothing more of the epoch is begun
  uint32_t ops = 0, write_ops = 0;            // begun or waiting
  std::vector<UniqueFunction<void()>> when_written;   // run when write_ops is 0
  std::map<std::string, Incarnation> users;   // hosts that may have it open
  uint64_t last_user = 0;                     // session that was noted last: spares the look-up
  io::BootTime kept_until;                    // nameless: not removed before
  bool times_changed = false;                 // mtime is newer in memory
  bool syncing = false;
  std::vector<Op*> sync_joined;               // of the sync under way; empty if it hangs
  std::vector<Op*> sync_waiting;              // joined by the next sync
  // Requests that change blocks: begun, ended, and those that had ended when the last sync that succeeded, or the first
  // tenure in a row of the present holder's, was begun (not one that follows upon a taking by force). The first stands
  // for all of this node's earlier run.
  uint64_t begun = 1, ended = 1, synced = 1;
  bool written_again = false;                 // just being
  uint64_t again_done = 0, again_total = 0;   // bytes of that
  Status again_failed;                        // why the last try did not end well
  std::vector<UniqueFunction<void(const Status&)>> when_sure;   // run when it was, or when that hangs
  uint32_t hung = 0;                          // operations on the copy that were given up and have not ended
  uint64_t used_at = 0;
};

inline constexpr uint8_t kZeroAllocate = 2;   // Zero::kind

// A data request under way.
struct Op {
  std::shared_ptr<Peer> peer;                 // shared: the connection may close before the answer
  std::shared_ptr<Session> session;
  Image* image = nullptr;
  wire::Type type = wire::Type::kWrite;
  uint64_t id = 0;
  Extent range;                               // for the OrderTable
  bool exclusive = false;                     // changes blocks
  bool ordered = false;                       // is in the image's OrderTable
  bool committing = false;                    // waits for the catalogue
  io::BootTime waits_until, waits_at_most;    // Read: for a holder that may be ahead; 0: it has not waited
  io::IoMode mode = io::IoMode::kQueued;
  wire::Payload payload;
  Epoch epoch;
  WriteSequence sequence;
  uint64_t offset = 0, length = 0;            // as asked
  uint8_t kind = 0;                           // Zero::kind, Repair::hole, Write::flags
  Generation size_generation;
  CoordinatorSequence coordinator;
  Callback<Status> at_copy;                   // goes on when the copy has answered; empty: it is not asked
  bool hung = false;                          // answered without the copy, which still uses the payload
};

class Core {
 public:
  Core(io::Env& env, NodeOptions options, std::unique_ptr<MarkSink> marks);
  ~Core();

  // ---- core.cc --------------------------------------------------------------------------------
  Status open();
  Status listen(const net::Address& address, const net::TlsFiles& tls);
  uint16_t port() const { return listener_ ? listener_->port() : 0; }
  void stop(UniqueFunction<void()> done);

  // ---- sessions.cc ----------------------------------------------------------------------------
  void accept(std::unique_ptr<net::Stream> stream);

  // ---- status.cc ------------------------------------------------------------------------------
  std::string status_json();
  std::string journal_json() const;
  // ---- resync.cc
  void resync_replica(Callback<Result<std::string>> done);
  std::vector<std::string> unhealthy_reasons() const;
  std::vector<std::string> notes() const;
  bool outdated_here(const Image& image) const;
  bool lacks_writes(const Image& image) const;
  void set_policy(const std::string& image, const std::string& mirror, Callback<Result<std::string>> done);

  // ---- takeover.cc ----------------------------------------------------------------------------
  // `by`: the host whose operator asks, or empty.
  void takeover(const std::string& request, const std::string& by, Callback<Result<std::string>> done);

 private:
  friend struct StatusWriter;   // of status.cc, where JSON is known
  using PeerPtr = std::shared_ptr<Peer>;
  using SessionPtr = std::shared_ptr<Session>;

  // ---- core.cc --------------------------------------------------------------------------------
  Status open_group(const Identity& identity);
  void load_images();
  Status note_loss();
  void note_failed_sync();
  // Runs `then` once the batch, and all before it, is durable. An empty batch waits for those before.
  void commit(kv::WriteBatch batch, UniqueFunction<void()> then);
  void fatal(const Status& status);
  wire::Mark name_mark(wire::MarkKind kind, const Node& node);
  void record_marks(const std::vector<wire::Mark>& marks);
  void note_unsettled(const wire::Mark& mark);
  void settle_marks();
  void settled_up_to(EventNumber event);
  void tick();
  void maybe_stopped();
  void register_metrics();

  // ---- sessions.cc ----------------------------------------------------------------------------
  void on_request(const PeerPtr& peer, wire::Request request);
  void dispatch(const PeerPtr& peer, wire::Request request);
  void hello(const PeerPtr& peer, const wire::Request& request);
  Status check_hello(const Peer& peer, const wire::Hello& hello) const;
  Status check_run(const wire::Hello& hello) const;
  wire::HelloAnswer hello_answer(const wire::Hello& hello) const;   // without a session
  void meet(const PeerPtr& peer, uint64_t id, const wire::Hello& hello);
  void open_session(const PeerPtr& peer, uint64_t id, const wire::Hello& hello);
  void join_session(const PeerPtr& peer, uint64_t id, const wire::Hello& hello);
  void answer_hello(const PeerPtr& peer, uint64_t id, const wire::Hello& hello);
  void send_hello_answer(const PeerPtr& peer, uint64_t id, const wire::Hello& hello, EventNumber event);
  void refuse_hello(Peer& peer, uint64_t id, const Status& status);
  void end_session(const SessionPtr& session, const Status& reason);
  void on_close(const PeerPtr& peer, const Status& reason);
  void when_drained(const std::string& host, UniqueFunction<void()> then);
  Session* session_of(const std::string& host) const;   // null: not connected
  void notify_others(const Session* except, const Change::Name& name);

  // ---- data_requests.cc -----------------------------------------------------------------------
  // Answers kNotFound itself.
  Image* find_image(Peer& peer, const wire::Request& request, const ImageId& id);
  // Decodes the request's body and finds its image. Null: the connection was closed, or kNotFound answered.
  template <class M>
  Image* image_of(const PeerPtr& peer, const wire::Request& request, M& m) {
    if (!peer->link->decode_or_close(request.type, request.body, m)) return nullptr;
    return find_image(*peer, request, m.image);
  }
  std::string label(const Image& image) const;   // "/dir/name (uuid)"
  Status no_mirror(const Image& image) const;
  void note_user(Image& image, Session& session);
  io::IoMode mode_for(const wire::Request& request) const;
  Op* changing_op(const PeerPtr& peer, wire::Request& request, Image* image, Epoch epoch);
  template <typename M>
  Op* changing_op(const PeerPtr& peer, wire::Request& request, M& m) {
    Image* image = image_of(peer, request, m);
    return changing_op(peer, request, image, m.epoch);
  }
  Op* new_op(const PeerPtr& peer, const wire::Request& request, Image& image);
  void write_request(const PeerPtr& peer, wire::Request& request);
  void zero_request(const PeerPtr& peer, wire::Request& request);
  void resize_request(const PeerPtr& peer, wire::Request& request);
  void flush_request(const PeerPtr& peer, wire::Request& request);
  void read_request(const PeerPtr& peer, wire::Request& request);
  void repair_request(const PeerPtr& peer, wire::Request& request);
  void pump_reads(Peer& peer);

  // ---- data.cc --------------------------------------------------------------------------------
  void submit(Op* op);
  void run(Op* op);
  bool is_ready(const Image& image, const Op& op) const;
  void prepare(Op* op);
  void issue(Op* op);
  bool holder_heard(const Image& image) const;
  bool holder_sends(const Image& image) const;
  bool may_be_old(const Image& image, const Op& op) const;
  void submit_read(Op* op);
  void wait_for_holder(Op* op);
  void issue_read(Op* op);
  void issue_resize(Op* op);
  void applied(Op* op, Status status);
  void resized(Op* op, Status status);
  void note_applied(const Op& op);
  CoordinatorSequence applied_up_to(const Image& image) const;
  void sync(Op* op);
  void start_sync(Image& image, std::vector<Op*> joined);
  struct SyncMark { CoordinatorSequence up_to; uint64_t ended = 0; };   // what a sync covers
  void synced(Image& image, SyncMark covered, const Status& status);
  // ---- copies.cc
  Result<std::unique_ptr<image::ImageCopy>> open_copy(Image& image);
  void note_copy(Image& image, const Status& found);
  void copy_damaged(ImageId id, const Status& why);
  void note_cut(Image& image);
  void tell_holder_to_ask(const ImageId& id);
  Status as_it_is(const Image& image);
  static std::string cut_text(const Image& image);
  Status refuse_if_cut(const Image& image, const std::string& by) const;
  Status ensure_copy(Image& image, const std::string& by);
  void adopt_copy_size(Image& image);
  void adopt_size(Image& image, uint64_t size, Generation generation);
  bool in_use(const Image& image) const;
  void close_copy(Image& image);
  void close_idle_copies();
  // ---- hang.cc
  template <typename F>
  Callback<Status> at_copy(Op* op, F then) {
    op->at_copy = std::move(then);
    return [this, op](Status status) { copy_answered(op, std::move(status)); };
  }
  void copy_answered(Op* op, Status status);
  void copy_overdue(ImageId id);
  bool has_whole_copy(const Image& image, const std::string& host) const;
  void hung_ended(Image& image);
  Status refuse_if_hung(const Image& image) const;
  bool leaves_holder_alone(const Op& op, const Status& status) const;
  void outdated_then(Op* op, const Status& status);
  void finish(Op* op);                          // answered: leaves the order and is recycled
  void fail(Op* op, const Status& status);
  void answer_applied(Op* op);
  void run_released();
  bool refuse_range(Op* op);
  void make_cold(Image& image);
  bool is_warm(const Image& image, Extent range) const;
  void set_warm(Image& image, Extent range);
  void mark_behind(Image& image, Extent range, kv::WriteBatch& batch);
  void mark_all_behind(Image& image, kv::WriteBatch& batch);
  void reserve(Image& image, kv::WriteBatch& batch);
  void fit_regions(Image& image, uint64_t size, kv::WriteBatch& batch);

  // ---- scans.cc -------------------------------------------------------------------------------
  struct HashRun;
  void hash_request(const PeerPtr& peer, wire::Request& request);
  void hash_step(std::shared_ptr<HashRun> run);
  void hash_unit(HashRun& run, ByteSpan data, bool hole);
  void issue_hash(Op* op);
  void end_hash(Op* op);   // a piece that was never begun
  void extents_request(const PeerPtr& peer, wire::Request& request);

  // ---- tenures.cc -----------------------------------------------------------------------------
  struct Waiting {
    PeerPtr peer;
    SessionPtr session;
    uint64_t request = 0;
    Image* image = nullptr;
    bool copy_known = false;
    bool held_before = false;                 // by this very host, which has lost what it knew of it
    EventNumber started;                      // the event of the start of the tenure that it is granted
    io::TimerId timer;
  };
  void acquire_request(const PeerPtr& peer, wire::Request& request);
  void resume_request(const PeerPtr& peer, wire::Request& request);
  void yield_request(const PeerPtr& peer, wire::Request& request);
  void yield_now(const PeerPtr& peer, uint64_t id, Image& image, const wire::Yield& message, wire::Type type);
  void stale_map_request(const PeerPtr& peer, wire::Request& request);
  void level_request(const PeerPtr& peer, wire::Request& request);
  void apply(Image& image, fence::Outcome outcome, kv::WriteBatch batch, UniqueFunction<void(bool accepted)> answer);
  wire::Mark tenure_mark(Image& image, const fence::Action& action);
  void carry_out(Image& image, const fence::Action& action);
  std::optional<Waiting> take_waiting(fence::Ticket ticket);
  void grant(fence::Ticket ticket, const fence::Action& action, const Status& sure);
  void refuse_busy(fence::Ticket ticket, const fence::Action& action);
  void refuse_fenced(const fence::Action& action);
  Status refuse_tenure_if_cut(Image& image, const std::string& host);
  void refuse_waiters_if_cut(Image& image);
  void recall(Image& image, const fence::Action& action);
  wire::Grant make_grant(Image& image, const std::string& host, bool copy_known);
  // Gives the host a map of its own if it has none; true if it had been given one before.
  bool register_host(Image& image, const std::string& host, bool copy_absent, kv::WriteBatch& batch);
  void note_resumed(Image& image, const Session& session, uint8_t alone);
  void respond_resumed(Peer& peer, uint64_t id, const Image& image);
  void drop_waiting(const Session& session);
  void level_again(Image& image);

  // ---- takeover.cc ----------------------------------------------------------------------------
  struct TakeoverRun;
  struct Rewrite;
  Image* image_named(const std::string& name);
  std::string describe_takeover(Image& image, const std::string& by, bool accept_loss, TakeoverRun& run);
  void take_as_is(TakeoverRun& run);
  static bool copy_serves(const Image& image);
  bool asks_witness(const Image& image) const;
  void ask_before_takeover(const std::shared_ptr<TakeoverRun>& run);
  void ask_before_taking(Image& image, Epoch epoch, const std::shared_ptr<TakeoverRun>& run);
  void carry_out_takeover(const std::shared_ptr<TakeoverRun>& run);
  void preempt(Image& image, UniqueFunction<void()> then);
  void end_sessions_of(const std::string& host);
  void note_in_doubt(Image& image, bool doubt);
  bool begins_upon_lost(const Image& image) const;
  std::string in_doubt_text(const Image& image) const;   // status.cc
  void write_main_line_again(Image& image, UniqueFunction<void(const Status&)> then);
  void rewrite_next(std::shared_ptr<Rewrite> run);
  void main_line_written(Image& image, const Status& status);
  void sync_main_line(Image& image, UniqueFunction<void()> then);
  void takeover_request(const PeerPtr& peer, wire::Request& request);
  void fence_seen_request(const PeerPtr& peer, wire::Request& request);

  // ---- rebuild.cc -----------------------------------------------------------------------------
  Status open_rebuild();
  Status load_catalogue();
  void report_request(const PeerPtr& peer, wire::Request& request);
  void rebuild();
  void rebuilt();

  // ---- witness.cc -----------------------------------------------------------------------------
  void terms_request(const PeerPtr& peer, wire::Request& request);
  void consider_fencing(Image& image);
  void consider_fencing_in(Image& image, io::Duration delay);
  io::BootTime gone_since(const std::string& host) const;
  // Under which a question is asked: the answer may come when it is another one.
  struct TenureNow {
    Epoch epoch;
    std::string holder;
    uint64_t session = 0;                     // in which the holder last said that its tenure stands
  };
  static TenureNow tenure_now(const Image& image);
  void note_outdated(Image& image, const TenureNow& asked);
  using WitnessAnswer = UniqueFunction<void(Result<std::string> verdict, Generation registered)>;
  void ask_witness(const char* what, const Image& image, WitnessAnswer done);
  void look_for_witness();
  void note_witness(const Status& answered, io::BootTime asked);
  void note_witness_store(const net::HttpResponse& answer);
  void register_terms(const PeerPtr& peer, uint64_t id, Image& image, Epoch epoch, Generation next, bool may_learn);

  // ---- name_requests.cc -----------------------------------------------------------------------
  void name_request(const PeerPtr& peer, wire::Request& request);
  void create_request(const PeerPtr& peer, uint64_t id, const wire::CreateOnce& m, const Origin& origin);
  void set_attr_request(const PeerPtr& peer, uint64_t id, const wire::SetAttr& m, const Origin& origin);
  void mirror_request(const PeerPtr& peer, uint64_t id, const wire::SetXattr& m, const Origin& origin);
  Status check_policy(const wire::SetAttr& m, const Session* by) const;   // null: an operator here
  void remove_given_up(const ImageId& id);
  void answer_change(const PeerPtr& peer, wire::Type type, uint64_t id, Result<Change> change);
  void apply_change(Change change, const Session* by, UniqueFunction<void(const Change&)> then);
  void answer_attr(const PeerPtr& peer, wire::Type type, uint64_t id, const Result<const Node*>& node);
  void read_dir(const PeerPtr& peer, wire::Request& request);
  void dump(const PeerPtr& peer, wire::Request& request);
  void stat_fs(const PeerPtr& peer, const wire::Request& request);
  void drop_request(const PeerPtr& peer, wire::Request& request);
  wire::Attr attr_of(const Node& node, bool fresh);
  void maybe_remove(Image& image);
  void pass_users_on(const std::string& host, Incarnation to);
  void forget_users(const std::string& host, Incarnation newer);

  io::Env& env_;
  NodeOptions options_;
  std::unique_ptr<MarkSink> marks_;
  std::shared_ptr<Core*> self_;               // what timers and callbacks look at: null when gone

  std::unique_ptr<kv::Store> store_;
  std::unique_ptr<image::StorageGroup> group_;
  Identity identity_;
  std::unique_ptr<Rebuild> rebuild_;          // the catalogue was lost, and is made anew from hosts' reports
  std::unique_ptr<Catalogue> catalogue_;      // its images and maps have moved to images_
  NameSpace* names_ = nullptr;
  std::unordered_map<ImageId, std::unique_ptr<Image>> images_;
  std::unique_ptr<net::Listener> listener_;
  std::shared_ptr<wire::PayloadPool> pool_ = wire::PayloadPool::make();   // shared with payloads in use

  std::set<PeerPtr> peers_;
  std::map<uint64_t, SessionPtr> sessions_;
  std::vector<SessionPtr> draining_;          // ended, with requests still under way
  uint64_t next_session_ = 0;
  std::map<std::string, io::BootTime> host_gone_at_;

  bool looking_for_witness_ = false;
  Status witness_fault_;                      // how it failed to answer the last time; OK: it did, or was not asked
  Uuid witness_store_;                        // that answered last; nil: none has said which it is
  io::BootTime witness_silent_since_, witness_heard_at_;   // the former while it fails

  fence::Ticket next_ticket_ = 0;
  std::map<fence::Ticket, Waiting> waiting_;

  std::vector<std::unique_ptr<Op>> all_ops_;
  std::vector<Op*> free_ops_;
  std::vector<Op*> runnable_;                 // what finish() let go, for the outermost run
  bool running_ = false;
  uint32_t ops_ = 0;                          // under way
  uint32_t hung_ = 0;                         // as Image::hung, of all
  uint32_t scans_ = 0;
  std::unordered_map<Op*, std::shared_ptr<HashRun>> scan_reads_;   // pieces being read; shared with their completions
  uint64_t use_clock_ = 0;
  uint32_t copies_open_ = 0;

  uint64_t commits_ = 0, commits_done_ = 0;
  std::deque<std::pair<uint64_t, UniqueFunction<void()>>> after_commit_;
  EventNumber marks_recorded_, marks_settled_;
  struct Unsettled { EventNumber event; uint64_t bytes = 0; };
  std::deque<Unsettled> unsettled_;           // what the catalogue keeps of marks, by number
  uint64_t unsettled_bytes_ = 0;
  bool settling_ = false;
  io::TimerId tick_timer_;
  io::TimerId pump_timer_;
  Status failed_;                             // the catalogue is lost: nothing is answered any more
  bool stopping_ = false;
  UniqueFunction<void()> stopped_;
  io::BootTime started_at_;

  metrics::Counter writes_total_, write_bytes_total_, reads_total_, read_bytes_total_, syncs_total_,
      sync_failures_total_, cold_writes_total_, hung_total_, fenced_total_, grants_total_, busy_total_,
      frames_refused_total_;
};

}  // namespace tidemark::node
