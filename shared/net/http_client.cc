#include "shared/net/http_client.h"

#include <curl/curl.h>

#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "shared/net/curl_transfer.h"

namespace tidemark::net {
namespace {

constexpr long kConnectionsKept = 8;
// Requests under way, each on a connection of its own: a server closes what is beyond limits::kHttpConnectionsMax,
// of all its clients together. The others wait here, where no timeout of curl's runs.
constexpr size_t kAtOnce = 20;
constexpr int kPollMs = 1000;

using Done = Callback<Result<HttpResponse>>;

// Where results go. The callbacks live and die on the loop.
struct Replies {
  bool open = true;
  std::unordered_map<uint64_t, Done> waiting;

  void tell(uint64_t number, Result<HttpResponse> result) {
    if (!open) return;
    auto found = waiting.find(number);
    Done done = std::move(found->second);
    waiting.erase(found);
    done(std::move(result));
  }
};

struct Job {
  uint64_t number = 0;
  uint64_t newest = 0;                 // that was asked for when this one was given to curl
  std::unique_ptr<CurlTransfer> transfer;
};

class Client final : public HttpClient {
 public:
  Client(io::Env& env, const HttpClientOptions& options) : env_(env), options_(options) {
    initialize_curl();
    multi_ = curl_multi_init();
    TM_CHECK(multi_ != nullptr, "curl has no handle left");
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, kConnectionsKept);
    thread_ = std::thread([this] { run(); });
  }

  ~Client() override {
    replies_->open = false;
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    curl_multi_wakeup(multi_);
    thread_.join();
    for (auto& [easy, job] : running_) curl_multi_remove_handle(multi_, easy);
    running_.clear();
    curl_multi_cleanup(multi_);
    auto dropped = std::move(replies_->waiting);
    replies_->waiting.clear();
  }

  void request(HttpRequest request, Done done) override {
    uint64_t number = ++requests_;
    replies_->waiting.emplace(number, std::move(done));
    Job job{number, 0, std::make_unique<CurlTransfer>(options_, std::move(request), env_.wall())};
    if (Status status = job.transfer->prepare(); !status) return reply(number, std::move(status));
    {
      std::lock_guard lock(mutex_);
      newest_ = number;
      added_.push_back(std::move(job));
    }
    curl_multi_wakeup(multi_);
  }

 private:
  void run() {
    while (take_orders()) {
      int active = 0;
      curl_multi_perform(multi_, &active);
      if (!collect_finished()) curl_multi_poll(multi_, nullptr, 0, kPollMs, nullptr);
    }
  }

  bool take_orders() {
    std::vector<Job> added;
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return false;
      while (!added_.empty() && running_.size() + added.size() < kAtOnce) {
        added.push_back(std::move(added_.front()));
        added.back().newest = newest_;
        added_.pop_front();
      }
    }
    for (Job& job : added) {
      CURL* easy = job.transfer->handle();
      CURLMcode code = curl_multi_add_handle(multi_, easy);
      if (code == CURLM_OK) running_.emplace(easy, std::move(job));
      else reply(job.number, Status(Code::kUnavailable, curl_multi_strerror(code)));
    }
    return true;
  }

  bool collect_finished() {
    bool any = false;
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      any = true;
      CURL* easy = message->easy_handle;
      int code = message->data.result;
      curl_multi_remove_handle(multi_, easy);
      auto found = running_.find(easy);
      Job job = std::move(found->second);
      running_.erase(found);
      Result<HttpResponse> result = job.transfer->finish(code);
      if (code == CURLE_OPERATION_TIMEDOUT) give_up_until(job.newest, result.status());
      reply(job.number, std::move(result));
    }
    return any;
  }

  // A server that does not answer: what has waited here for as long as that took does not wait for its own turn, too.
  void give_up_until(uint64_t newest, const Status& why) {
    std::deque<Job> late;
    {
      std::lock_guard lock(mutex_);
      while (!added_.empty() && added_.front().number <= newest) {
        late.push_back(std::move(added_.front()));
        added_.pop_front();
      }
    }
    for (Job& job : late) reply(job.number, why);
  }

  void reply(uint64_t number, Result<HttpResponse> result) {
    env_.post([replies = replies_, number, result = std::move(result)]() mutable {
      replies->tell(number, std::move(result));
    });
  }

  io::Env& env_;
  const HttpClientOptions options_;
  const std::shared_ptr<Replies> replies_ = std::make_shared<Replies>();  // shared with results on their way
  CURLM* multi_ = nullptr;
  uint64_t requests_ = 0;                      // loop thread
  std::unordered_map<CURL*, Job> running_;     // background thread
  std::mutex mutex_;
  std::deque<Job> added_;                      // guarded by mutex_; in order of their numbers
  uint64_t newest_ = 0;                        // guarded by mutex_; the last one's
  bool stopping_ = false;                      // guarded by mutex_
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<HttpClient>> make_http_client(io::Env& env, const HttpClientOptions& options) {
  bool https = options.url.starts_with("https://");
  if (!https && !options.url.starts_with("http://")) {
    return Status(Code::kInvalidArgument, "url " + options.url + " begins with neither https:// nor http://");
  }
  if (https != options.tls.has_value()) {
    return Status(
        Code::kInvalidArgument,
        "url " + options.url + (https ? " needs certificate files" : " takes no certificate files: use https://"));
  }
  if (options.tls) {
    if (auto context = TlsContext::load(*options.tls); !context) return context.status();
  }
  return std::unique_ptr<HttpClient>(new Client(env, options));
}

}  // namespace tidemark::net
