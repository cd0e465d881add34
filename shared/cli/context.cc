#include "shared/cli/context.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "shared/cli/output.h"

namespace tidemark::cli {

namespace fs = std::filesystem;

Result<Json> parse_json(std::string_view text, const std::string& from) {
  Json j = Json::parse(text, nullptr, false);
  if (j.is_discarded()) return Status(Code::kCorruption, from + ": the answer is not JSON");
  return j;
}

Result<NodeConfig> load_any(const std::string& file) {
  TM_ASSIGN_OR_RETURN(std::string role, config::role_of(file));
  if (role == "host") {
    TM_ASSIGN_OR_RETURN(config::Host c, config::load_host(file));
    return NodeConfig{file, c.node, c.tls, c.replica, c.mount.path, c.witness};
  }
  if (role == "shared") {
    TM_ASSIGN_OR_RETURN(config::Shared c, config::load_shared(file));
    return NodeConfig{file, c.node, c.tls, c.replica, "", c.witness};
  }
  if (role == "witness") {
    TM_ASSIGN_OR_RETURN(config::Witness c, config::load_witness(file));
    return NodeConfig{file, c.node, c.tls, std::nullopt, ""};
  }
  TM_ASSIGN_OR_RETURN(config::Replica c, config::load_replica(file));
  return NodeConfig{file, c.node, c.tls, std::nullopt, ""};
}

Result<std::string> Context::config_file() const {
  if (!global_.config_file.empty()) return global_.config_file;
  if (access(kDefaultConfig, R_OK) == 0) return std::string(kDefaultConfig);
  return Status(Code::kInvalidArgument, "no configuration: " + std::string(kDefaultConfig) +
                                            " cannot be read: give --config FILE or set TIDEMARK_CONFIG");
}

Result<const NodeConfig*> Context::config() {
  if (config_) return &*config_;
  TM_ASSIGN_OR_RETURN(std::string file, config_file());
  TM_ASSIGN_OR_RETURN(config_, load_any(file));
  return &*config_;
}

Result<Http*> Context::control() {
  if (control_) return &*control_;
  TM_ASSIGN_OR_RETURN(const NodeConfig* c, config());
  std::string socket = c->node.control_socket();
  if (access(socket.c_str(), F_OK) != 0) {
    std::string program = c->node.role == "host" ? "tidemark-fs" : "tidemark-" + c->node.role;
    return Status(Code::kUnavailable, program + " of node " + c->node.name + " is not running (no socket " + socket +
                                          "): start it with " + program + " --config " + c->file);
  }
  control_ = Http::to_socket(socket);
  return &*control_;
}

Result<Json> Context::control_get(const std::string& target) {
  TM_ASSIGN_OR_RETURN(Http * http, control());
  return http->get(target);
}

Result<Json> Context::control_post(const std::string& target, const Json& body, int timeout_s) {
  TM_ASSIGN_OR_RETURN(Http * http, control());
  return http->post(target, body, timeout_s);
}

Result<ReplicaClient*> Context::replica() {
  if (replica_) return &*replica_;
  TM_ASSIGN_OR_RETURN(const NodeConfig* c, config());
  if (!c->replica) {
    return Status(Code::kInvalidArgument, c->file + ":1: no section [replica]: add its url, or name another configuration");
  }
  replica_.emplace(Http::to_server(*c->replica, c->tls));
  return &*replica_;
}

Result<std::string> Context::mount() {
  if (mount_) return *mount_;
  TM_ASSIGN_OR_RETURN(const NodeConfig* c, config());
  if (c->node.role != "host") {
    return Status(Code::kInvalidArgument, c->file + ": is the configuration of a " + c->node.role +
                                              " node: image files are reached through a host's (--config)");
  }
  std::string path = c->mount;
  if (auto status = control_get("/v1/status"); status && !text(*status, "mount").empty()) path = text(*status, "mount");
  if (path.empty()) {
    return Status(Code::kUnavailable, "the host's mount is not known: start tidemark-fs, or set [mount] path in " + c->file);
  }
  mount_ = fs::path(path).lexically_normal().string();
  while (mount_->size() > 1 && mount_->back() == '/') mount_->pop_back();
  return *mount_;
}

Result<std::string> Context::live_mount() {
  TM_ASSIGN_OR_RETURN(std::string path, mount());
  struct stat inside {}, above {};
  if (stat(path.c_str(), &inside) != 0) {
    if (errno == ENOTCONN) {
      return Status(Code::kUnavailable, path + ": its tidemark-fs is gone: umount it, then start tidemark-fs");
    }
    std::string why = Status::from_errno(errno, "the directory").message();
    return Status(Code::kUnavailable, path + " is not mounted (" + why + "): start tidemark-fs first");
  }
  if (stat((path + "/..").c_str(), &above) == 0 && inside.st_dev == above.st_dev) {
    return Status(Code::kUnavailable, path + " is not mounted: start tidemark-fs first");
  }
  return path;
}

void Context::print(const std::string& text) const {
  const bool line = text.empty() || text.back() != '\n';
  const bool good = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
                    (!line || std::fputc('\n', stdout) != EOF) && std::fflush(stdout) == 0;
  if (!good && print_error_ == 0) print_error_ = errno;
}

Status Context::printed() const {
  if (print_error_ == 0 || print_error_ == EPIPE) return {};
  return Status::from_errno(print_error_, "standard output");
}

void Context::note(const std::string& text) const {
  if (!global_.quiet) std::fprintf(stderr, "%s\n", printable(text).c_str());
}

void Context::result(const Json& json, const std::string& text) const { print(global_.json ? dump(json) : text); }

Result<ImageName> name_image(Context& context, const std::string& text) {
  if (auto uuid = Uuid::parse(text)) return ImageName{"", uuid};
  if (text.empty()) return Status(Code::kInvalidArgument, "an image's name is empty");
  fs::path path = fs::path(text).lexically_normal();
  if (path.is_absolute()) {
    TM_ASSIGN_OR_RETURN(std::string mount, context.mount());
    std::string relative = path.lexically_relative(mount).string();
    if (relative.empty() || relative == "." || relative.rfind("..", 0) == 0) {
      return Status(Code::kInvalidArgument, text + " is not in the mount " + mount + ": name an image there");
    }
    return ImageName{relative, std::nullopt};
  }
  std::string relative = path.string();
  if (relative == "." || relative.rfind("..", 0) == 0) {
    return Status(Code::kInvalidArgument, text + ": names are relative to the mount and stay in it");
  }
  return ImageName{relative, std::nullopt};
}

namespace {

// The status' entry of an image.
Result<Json> image_entry(Context& context, const ImageName& name, const std::string& asked) {
  TM_ASSIGN_OR_RETURN(Json status, context.control_get("/v1/status"));
  for (const Json& image : at(status, "images")) {
    std::string path = text(image, "path");
    while (!path.empty() && path.front() == '/') path.erase(0, 1);
    bool same = name.uuid ? text(image, "uuid") == name.uuid->to_string() : path == name.path;
    if (!same) continue;
    Json found = image;
    found["path"] = path;
    return found;
  }
  return Status(Code::kNotFound, "no image " + asked + " in the mount: see tidemark image list");
}

}  // namespace

Result<std::string> image_path(Context& context, const std::string& text_in) {
  TM_ASSIGN_OR_RETURN(ImageName name, name_image(context, text_in));
  TM_ASSIGN_OR_RETURN(std::string mount, context.live_mount());
  if (!name.uuid) return mount + "/" + name.path;
  TM_ASSIGN_OR_RETURN(Json entry, image_entry(context, name, text_in));
  if (text(entry, "path").empty()) return Status(Code::kNotFound, "image " + text_in + " has no name any more");
  return mount + "/" + text(entry, "path");
}

Result<Uuid> image_uuid(Context& context, const std::string& text_in) {
  TM_ASSIGN_OR_RETURN(ImageName name, name_image(context, text_in));
  if (name.uuid) return *name.uuid;
  TM_ASSIGN_OR_RETURN(Json entry, image_entry(context, name, text_in));
  auto uuid = Uuid::parse(text(entry, "uuid"));
  if (!uuid) return Status(Code::kCorruption, "the daemon gave no UUID for " + text_in);
  return *uuid;
}

}  // namespace tidemark::cli
