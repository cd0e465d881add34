// What all commands share: the configuration, the way to the daemon and to the replica, how to print.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "shared/base/config.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/cli/http.h"
#include "shared/cli/json.h"
#include "shared/cli/replica_client.h"

namespace tidemark::cli {

inline constexpr int kExitDivergence = 4;   // the others come from exit_code_of()
inline constexpr const char* kDefaultConfig = "/etc/tidemark/host.toml";

struct Global {
  std::string config_file;
  bool json = false;
  bool quiet = false;
};

// The parts of a configuration that commands use, whatever the daemon's role.
struct NodeConfig {
  std::string file;
  config::Node node;
  config::Tls tls;
  std::optional<config::ReplicaLink> replica;
  std::string mount;   // of a host; may be empty
  std::optional<config::WitnessLink> witness{};
};

class Context {
 public:
  explicit Context(Global global) : global_(std::move(global)) {}

  const Global& global() const { return global_; }
  bool json() const { return global_.json; }
  bool progress_wanted() const { return !global_.json && !global_.quiet; }

  // The file that --config, TIDEMARK_CONFIG or the default name.
  Result<std::string> config_file() const;
  Result<const NodeConfig*> config();
  // The control socket's answer. kUnavailable, with the remedy, when the daemon is not running.
  Result<Json> control_get(const std::string& target);
  Result<Json> control_post(const std::string& target, const Json& body, int timeout_s = 60);
  Result<ReplicaClient*> replica();

  // The mounted directory: that of the running daemon, else that of the configuration.
  Result<std::string> mount();
  // The same, or kUnavailable: without a live mount a command would see, or fill, the directory below it.
  Result<std::string> live_mount();

  void print(const std::string& text) const;          // to standard output, ended by a line feed
  void note(const std::string& text) const;           // to standard error; not under --quiet
  void result(const Json& json, const std::string& text) const;   // one or the other
  // What was printed has reached standard output. A reader that went away on its own had enough.
  Status printed() const;

 private:
  Result<Http*> control();

  Global global_;
  mutable int print_error_ = 0;   // the first, an errno
  std::optional<NodeConfig> config_;
  std::optional<Http> control_;
  std::optional<ReplicaClient> replica_;
  std::optional<std::string> mount_;
};

// An image as a command names it.
struct ImageName {
  std::string path;             // within the mount, without a leading slash; may be unknown
  std::optional<Uuid> uuid;
};
// A UUID, an absolute path in the mount, or a path relative to it. Looks nothing up but the mount.
Result<ImageName> name_image(Context& context, const std::string& text);
// Its absolute path in the live mount. A UUID is looked up in the daemon's status; kNotFound says what is near.
Result<std::string> image_path(Context& context, const std::string& text);
// Its UUID, from the daemon's status.
Result<Uuid> image_uuid(Context& context, const std::string& text);
Result<NodeConfig> load_any(const std::string& file);

}  // namespace tidemark::cli
