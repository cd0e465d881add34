// Reads a daemon's TOML file into its struct. The only place that knows toml++.
//
// Every error is one line: FILE:LINE: [section] key: what is wrong: what to do. The first error ends
// the reading. A key or section that nobody asked for is an error too, so that a misspelt key cannot
// silently leave a default in force.

#include "shared/base/config.h"

#include <toml++/toml.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "shared/base/config_text.h"

namespace tidemark::config {
namespace {

namespace fs = std::filesystem;

struct Range {
  uint64_t low = 0;
  uint64_t high = std::numeric_limits<uint64_t>::max();
  uint64_t multiple = 1;
};

enum class Need { kRequired, kOptional };

// The file being read: the parsed table, the sections asked for, and the first error.
class Document {
 public:
  static Result<Document> open(const std::string& file) {
    Document d;
    d.file_ = file;
    std::error_code error;
    if (fs::exists(file, error) && !fs::is_regular_file(file, error)) {
      return Status(Code::kInvalidArgument, file + ":1: is no regular file: name a configuration file with --config");
    }
    if (!fs::is_regular_file(file, error)) {
      return Status(Code::kInvalidArgument, file + ":1: no such configuration file: name an existing one with --config");
    }
    const Status unreadable(Code::kInvalidArgument, file + ":1: cannot be read: is it this user's to read, and its disk well?");
    try {
      std::ifstream in(file, std::ios::binary);
      if (!in) return unreadable;
      const std::string text{std::istreambuf_iterator<char>(in), {}};
      if (uint32_t line = line_of_dots(text); line != 0) {
        return Status(Code::kInvalidArgument, file + ":" + std::to_string(line) + ": more than " + std::to_string(kConfigDotsMax) +
                                                  " dots in all, which no configuration has: keys are written under their "
                                                  "[section]");
      }
      d.root_ = toml::parse(text, file);
    } catch (const std::ios_base::failure&) {
      return unreadable;
    } catch (const toml::parse_error& e) {
      std::string what(e.description());
      std::replace(what.begin(), what.end(), '\n', ' ');
      return Status(Code::kInvalidArgument,
                    file + ":" + std::to_string(e.source().begin.line) + ": not TOML: " + what + ": correct this line");
    }
    return d;
  }

  void fail(uint32_t line, std::string text) {
    if (status_) status_ = {Code::kInvalidArgument, file_ + ":" + std::to_string(line) + ": " + std::move(text)};
  }
  const toml::table* section(const std::string& name) {
    sections_.push_back(name);
    const toml::node* node = root_.get(name);
    if (node == nullptr) return nullptr;
    if (!node->is_table()) fail(node->source().begin.line, name + ": must be a section: write [" + name + "]");
    return node->as_table();
  }
  std::string absolute(const std::string& path) const {
    fs::path p(path);
    if (p.is_relative()) p = fs::absolute(fs::path(file_)).parent_path() / p;
    return p.lexically_normal().string();
  }
  Status finish() {
    for (const auto& [key, node] : root_) {
      std::string name(key.str());
      if (std::find(sections_.begin(), sections_.end(), name) != sections_.end()) continue;
      fail(key.source().begin.line, (node.is_table() ? "unknown section [" + name + "]" : "unknown key " + name) + ": " +
                                        known_list(name, sections_));
    }
    return status_;
  }
  uint32_t line_of(std::string_view section, std::string_view key) const {
    const toml::node* node = root_.get(section);
    if (node == nullptr) return 1;
    const toml::table* table = node->as_table();
    if (const toml::node* value = table != nullptr ? table->get(key) : nullptr) return value->source().begin.line;
    return node->source().begin.line;
  }
  const std::string& file() const { return file_; }

 private:
  std::string file_;
  toml::table root_;
  std::vector<std::string> sections_;
  Status status_;
};

// One section while its keys are read; what was not read when it ends is unknown.
class Section {
 public:
  Section(Document& document, std::string name, Need need)
      : document_(document), name_(std::move(name)), table_(document.section(name_)) {
    if (table_ == nullptr && need == Need::kRequired) document_.fail(1, "section [" + name_ + "] is missing: add it");
  }
  ~Section() {
    if (table_ == nullptr) return;
    for (const auto& [key, node] : *table_) {
      std::string k(key.str());
      if (std::find(known_.begin(), known_.end(), k) == known_.end()) {
        document_.fail(key.source().begin.line, "[" + name_ + "] unknown key " + k + ": " + known_list(k, known_));
      }
    }
  }
  Section(const Section&) = delete;
  Section& operator=(const Section&) = delete;

  bool present() const { return table_ != nullptr; }

  bool text(const std::string& key, std::string& out, Need need = Need::kOptional) {
    const toml::node* node = find(key, need, "\"...\"");
    if (node == nullptr) return false;
    auto value = node->value_exact<std::string>();
    if (!value) return wrong(key, *node, "must be text: write " + key + " = \"...\"");
    if (value->empty() && need == Need::kRequired) return wrong(key, *node, "is empty: give it a value");
    if (value->find('\0') != std::string::npos) return wrong(key, *node, "has a NUL byte: remove it");
    out = *value;
    return true;
  }
  bool path(const std::string& key, std::string& out, Need need = Need::kOptional) {
    if (!text(key, out, need) || out.empty()) return false;
    out = document_.absolute(out);
    return true;
  }
  void paths(const std::string& key, std::vector<std::string>& out) {
    const toml::node* node = find(key, Need::kRequired, "[\"/directory\"]");
    if (node == nullptr) return;
    const std::string remedy = "must be a list of directories: write " + key + " = [\"/directory\"]";
    const toml::array* list = node->as_array();
    if (list == nullptr || list->empty()) { wrong(key, *node, remedy); return; }
    for (const toml::node& item : *list) {
      auto value = item.value_exact<std::string>();
      if (!value || value->empty()) { wrong(key, item, remedy); return; }
      if (value->find('\0') != std::string::npos) { wrong(key, item, "has a NUL byte: remove it"); return; }
      std::string path = document_.absolute(*value);
      if (std::find(out.begin(), out.end(), path) != out.end()) { wrong(key, item, path + " is listed twice: remove one"); return; }
      out.push_back(std::move(path));
    }
  }
  void size(const std::string& key, uint64_t& out, Range range) {
    const toml::node* node = find(key, Need::kOptional, "");
    if (node == nullptr) return;
    uint64_t bytes = 0;
    if (auto integer = node->value_exact<int64_t>()) {
      if (*integer < 0) { wrong(key, *node, "bad size: it must not be negative"); return; }
      bytes = static_cast<uint64_t>(*integer);
    } else if (auto text = node->value_exact<std::string>()) {
      auto parsed = parse_size(*text);
      if (!parsed) { wrong(key, *node, parsed.status().message()); return; }
      bytes = *parsed;
    } else {
      wrong(key, *node, "must be a size: write " + key + " = \"256MiB\"");
      return;
    }
    if (bytes < range.low || bytes > range.high) {
      wrong(key, *node, "size " + format_size(bytes) + " is out of range: between " + format_size(range.low) + " and " +
                            format_size(range.high));
    } else if (bytes % range.multiple != 0) {
      wrong(key, *node, "size is not a multiple of " + std::to_string(range.multiple) + ": round it");
    } else {
      out = bytes;
    }
  }
  void duration(const std::string& key, std::chrono::milliseconds& out, std::chrono::milliseconds low,
                std::chrono::milliseconds high) {
    const toml::node* node = find(key, Need::kOptional, "");
    if (node == nullptr) return;
    auto text = node->value_exact<std::string>();
    if (!text) { wrong(key, *node, "must be a duration: write " + key + " = \"1s\""); return; }
    auto parsed = parse_duration(*text);
    if (!parsed) { wrong(key, *node, parsed.status().message()); return; }
    if (*parsed < low || *parsed > high) {
      wrong(key, *node, "is out of range: between " + std::to_string(low.count()) + "ms and " +
                            std::to_string(high.count()) + "ms");
      return;
    }
    out = *parsed;
  }
  void number(const std::string& key, uint32_t& out, Range range) {
    const toml::node* node = find(key, Need::kOptional, "");
    if (node == nullptr) return;
    auto value = node->value_exact<int64_t>();
    if (!value || *value < static_cast<int64_t>(range.low) || *value > static_cast<int64_t>(range.high)) {
      wrong(key, *node, "must be a whole number between " + std::to_string(range.low) + " and " + std::to_string(range.high));
      return;
    }
    out = static_cast<uint32_t>(*value);
  }
  void flag(const std::string& key, bool& out) {
    const toml::node* node = find(key, Need::kOptional, "");
    if (node == nullptr) return;
    auto value = node->value_exact<bool>();
    if (!value) { wrong(key, *node, "must be true or false"); return; }
    out = *value;
  }
  void address(const std::string& key, std::string& out, Need need) {
    if (!text(key, out, need)) return;
    if (!is_address(out)) wrong(key, *table_->get(key), "bad address \"" + out + "\": write host:port, such as 127.0.0.1:7400");
  }
  bool wrong(const std::string& key, const toml::node& node, const std::string& text) {
    document_.fail(node.source().begin.line, "[" + name_ + "] " + key + ": " + text);
    return false;
  }
  const toml::node* get(const std::string& key) const { return table_->get(key); }

 private:
  const toml::node* find(const std::string& key, Need need, const std::string& example) {
    known_.push_back(key);
    if (table_ == nullptr) return nullptr;
    const toml::node* node = table_->get(key);
    if (node == nullptr && need == Need::kRequired) {
      document_.fail(table_->source().begin.line, "[" + name_ + "] " + key + " is missing: add " + key + " = " + example);
    }
    return node;
  }

  Document& document_;
  const std::string name_;
  const toml::table* table_;
  std::vector<std::string> known_;
};

void read_node(Document& d, const std::string& role, Node& out) {
  Section s(d, "node", Need::kRequired);
  if (s.text("name", out.name, Need::kRequired)) {
    bool good = out.name.size() <= 63 && std::isalnum(static_cast<unsigned char>(out.name[0]));
    for (unsigned char c : out.name) good = good && (std::isalnum(c) || c == '.' || c == '-' || c == '_');
    if (!good) s.wrong("name", *s.get("name"), "bad node name: letters, digits, '.', '-', '_', as in its certificate");
  }
  if (s.text("role", out.role, Need::kRequired) && out.role != role) {
    s.wrong("role", *s.get("role"), "is \"" + out.role + "\" but must be \"" + role + "\" for this program: give it another file");
  }
  s.path("state_dir", out.state_dir, Need::kRequired);
  out.run_dir = out.state_dir;
  s.path("run_dir", out.run_dir);
  s.number("busy_poll_us", out.busy_poll_us, {0, 1000});
}

void read_tls(Document& d, Tls& out) {
  Section s(d, "tls", Need::kRequired);
  s.path("authority", out.authority, Need::kRequired);
  s.path("certificate", out.certificate, Need::kRequired);
  s.path("key", out.key, Need::kRequired);
}

void read_storage(Document& d, Storage& out) {
  Section s(d, "storage", Need::kRequired);
  s.text("group", out.group);
  s.paths("bricks", out.bricks);
  s.size("stripe_unit", out.stripe_unit, {64u << 10, 1u << 30, 4096});
  s.number("stripe_count", out.stripe_count, {1, 256});
  s.duration("io_deadline", out.io_deadline, std::chrono::milliseconds(500), std::chrono::milliseconds(600'000));
  if (s.present() && !out.bricks.empty() && out.stripe_count > out.bricks.size()) {
    const toml::node* at = s.get("stripe_count");
    if (at != nullptr) s.wrong("stripe_count", *at, "is larger than the number of bricks: add bricks or lower it");
  }
}

void check_url(Section& s, std::string& url) {
  constexpr std::string_view kScheme = "https://";
  bool good = url.starts_with(kScheme);
  if (good) {
    std::string place = url.substr(kScheme.size(), url.find('/', kScheme.size()) - kScheme.size());
    const bool port = !place.ends_with(']') && place.find(':') != std::string::npos;
    good = !place.empty() && !place.ends_with(":0") && (!port || is_address(place));
  }
  if (!good) s.wrong("url", *s.get("url"), "bad url \"" + url + "\": write https://name:port");
  while (!url.empty() && url.back() == '/') url.pop_back();
}

// Left out, any node of the role is the peer.
void check_peer(Section& s, const std::string& node) {
  if (node.empty()) s.wrong("node", *s.get("node"), "is empty: name the node of its certificate, or leave the key out");
}

void read_replica_link(Document& d, std::optional<ReplicaLink>& out) {
  Section s(d, "replica", Need::kOptional);
  ReplicaLink link;
  if (s.text("url", link.url, s.present() ? Need::kRequired : Need::kOptional)) check_url(s, link.url);
  if (s.text("node", link.node)) check_peer(s, link.node);
  if (s.present()) out = std::move(link);
}

void read_witness_link(Document& d, std::optional<WitnessLink>& out) {
  Section s(d, "witness", Need::kOptional);
  WitnessLink link;
  if (s.text("url", link.url, s.present() ? Need::kRequired : Need::kOptional)) check_url(s, link.url);
  if (s.text("node", link.node)) check_peer(s, link.node);
  s.flag("in_replica", link.in_replica);
  if (s.present()) out = std::move(link);
}

void read_journal(Document& d, Journal& out) {
  using std::chrono::milliseconds;
  Section s(d, "journal", Need::kOptional);
  s.duration("cut_interval", out.cut_interval, milliseconds(50), milliseconds(3'600'000));
  s.size("cut_bytes", out.cut_bytes, {1u << 20, 64ull << 30, 1});
  s.duration("commit_interval", out.commit_interval, milliseconds(1), milliseconds(10'000));
  s.size("limit_bytes", out.limit_bytes, {16u << 20, 1ull << 50, 1});
  s.duration("limit_age", out.limit_age, milliseconds(10'000), milliseconds(365ll * 24 * 3'600'000));
  s.size("region_bytes", out.region_bytes, {4u << 20, 1ull << 30, 4u << 20});
  s.size("ship_rate", out.ship_rate, {0, 1ull << 40, 64u << 10});
}

void read_metrics(Document& d, Listen& out) {
  Section s(d, "metrics", Need::kOptional);
  s.address("listen", out.address, Need::kOptional);
}

void read_listen(Document& d, Listen& out) {
  Section s(d, "listen", Need::kRequired);
  s.address("address", out.address, Need::kRequired);
}

void read_log(Document& d, Log& out) {
  Section s(d, "log", Need::kOptional);
  if (s.text("level", out.level) && out.level != "debug" && out.level != "info" && out.level != "warning" &&
      out.level != "error") {
    s.wrong("level", *s.get("level"), "bad level \"" + out.level + "\": write debug, info, warning or error");
  }
  s.path("file", out.file);
}

// The sections that daemons have in common, each where `out` has its place.
template <class Out>
void read_common(Document& d, const std::string& role, Out& out) {
  read_node(d, role, out.node);
  read_tls(d, out.tls);
  if constexpr (requires { out.listen; }) read_listen(d, out.listen);
  if constexpr (requires { out.storage; out.journal; }) {
    read_storage(d, out.storage);
    read_replica_link(d, out.replica);
    read_witness_link(d, out.witness);
    read_journal(d, out.journal);
  }
  read_metrics(d, out.metrics);
  read_log(d, out.log);
}

}  // namespace

Result<Host> load_host(const std::string& file) {
  TM_ASSIGN_OR_RETURN(Document d, Document::open(file));
  Host out;
  read_common(d, "host", out);
  {
    Section s(d, "shared", Need::kRequired);
    SharedLink link;
    s.address("address", link.address, Need::kRequired);
    if (s.text("node", link.node)) check_peer(s, link.node);
    s.number("connections", link.connections, {1, 16});
    out.shared = std::move(link);
  }
  {
    Section s(d, "autonomy", Need::kOptional);
    std::string policy = out.witness ? "pause" : "continue";
    if (s.text("policy", policy) && policy != "continue" && policy != "pause") {
      s.wrong("policy", *s.get("policy"), "bad policy \"" + policy + "\": write continue or pause");
    }
    out.may_go_alone = policy == "continue";
  }
  {
    Section s(d, "resync", Need::kOptional);
    s.size("rate", out.resync.rate, {0, 1ull << 40, 1});
    s.number("images", out.resync.images, {1, 64});
  }
  {
    Section s(d, "mount", Need::kOptional);
    if (s.path("path", out.mount.path) && out.mount.path.find_first_not_of('/') == std::string::npos)
      s.wrong("path", *s.get("path"), "is the root directory: name a directory in it");
    s.flag("allow_other", out.mount.allow_other);
    s.number("max_background", out.mount.max_background, {1, 1024});
  }
  TM_RETURN_IF_ERROR(d.finish());
  return out;
}

Result<Shared> load_shared(const std::string& file) {
  TM_ASSIGN_OR_RETURN(Document d, Document::open(file));
  Shared out;
  read_common(d, "shared", out);
  {
    Section s(d, "tenure", Need::kOptional);
    s.duration("wait", out.tenure_wait, std::chrono::milliseconds(0), std::chrono::milliseconds(60'000));
  }
  TM_RETURN_IF_ERROR(d.finish());
  return out;
}

Result<Replica> load_replica(const std::string& file) {
  TM_ASSIGN_OR_RETURN(Document d, Document::open(file));
  Replica out;
  read_common(d, "replica", out);
  {
    Section s(d, "witness", Need::kOptional);
    s.flag("enabled", out.witness);
  }
  {
    Section s(d, "order", Need::kOptional);
    s.duration("missing_wait", out.missing_wait, std::chrono::milliseconds(0), std::chrono::milliseconds(7 * 24 * 3'600'000));
  }
  TM_RETURN_IF_ERROR(d.finish());
  return out;
}

Result<Witness> load_witness(const std::string& file) {
  TM_ASSIGN_OR_RETURN(Document d, Document::open(file));
  Witness out;
  read_common(d, "witness", out);
  TM_RETURN_IF_ERROR(d.finish());
  return out;
}

Result<std::string> role_of(const std::string& file) {
  TM_ASSIGN_OR_RETURN(Document d, Document::open(file));
  std::string role;
  {
    // Only this key is looked at; the loader of the role checks the rest.
    const toml::table* node = d.section("node");
    if (node == nullptr) d.fail(1, "section [node] is missing: add it");
    else role = node->get_as<std::string>("role") != nullptr ? **node->get_as<std::string>("role") : "";
  }
  if (role != "host" && role != "shared" && role != "replica" && role != "witness") {
    d.fail(d.line_of("node", "role"), "[node] role must be \"host\", \"shared\", \"replica\" or \"witness\": set it");
    return d.finish();
  }
  return role;
}

std::string locate(const std::string& file, std::string_view section, std::string_view key) {
  auto d = Document::open(file);
  std::string line = d ? std::to_string(d->line_of(section, key)) : "1";
  return file + ":" + line + ": [" + std::string(section) + "] " + std::string(key);
}

Status check_paths(const std::string& file, const Tls& tls, const Storage* storage) {
  std::error_code error;
  const std::pair<const char*, const std::string*> pem[] = {
      {"authority", &tls.authority}, {"certificate", &tls.certificate}, {"key", &tls.key}};
  for (const auto& [key, path] : pem) {
    if (fs::is_regular_file(*path, error)) continue;
    return {Code::kInvalidArgument, locate(file, "tls", key) + ": " + *path + " is missing: make it with tidemark pki issue"};
  }
  constexpr fs::perms kOthers = fs::perms::group_all | fs::perms::others_all;
  if ((fs::status(tls.key, error).permissions() & kOthers) != fs::perms::none) {
    return {Code::kInvalidArgument,
            locate(file, "tls", "key") + ": " + tls.key + " may be read by others than its owner: chmod 600 it"};
  }
  if (storage == nullptr) return {};
  for (const std::string& brick : storage->bricks) {
    if (fs::is_directory(brick, error)) continue;
    return {Code::kInvalidArgument,
            locate(file, "storage", "bricks") + ": brick " + brick + " is missing: mount or create the directory"};
  }
  return {};
}

}  // namespace tidemark::config
