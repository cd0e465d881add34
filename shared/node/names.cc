#include "shared/node/names.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "shared/base/limits.h"
#include "shared/wire/device.h"

namespace tidemark::node {

using wire::NodeKind;

namespace {

constexpr uint32_t kPermissionBits = 07777;
constexpr uint32_t kSetGroupId = 02000;
constexpr uint32_t kRenameNoReplace = 1, kRenameExchange = 2;
constexpr uint32_t kXattrCreate = 1, kXattrReplace = 2;

Status error(int sys_errno, std::string_view what) { return Status::from_errno(sys_errno, std::string(what)); }

Status check_name(const std::string& name) {
  if (name.empty()) return error(ENOENT, "empty name");
  if (name == "." || name == "..") return error(EINVAL, name);
  if (name.size() > limits::kNameBytesMax) return error(ENAMETOOLONG, name.substr(0, 32) + "...");
  if (name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    return error(EINVAL, "name with a slash or a zero byte");
  }
  return Status::ok();
}

}  // namespace

NameSpace::NameSpace(WallTime now) {
  Node root;
  root.attr.inode = root.attr.parent = kRootInode;
  root.attr.kind = NodeKind::kDirectory;
  root.attr.mode = 0755;
  root.attr.nlink = 2;
  root.attr.atime = root.attr.mtime = root.attr.ctime = root.attr.btime = now;
  nodes_.emplace(kRootInode, std::move(root));
}

void NameSpace::load(Node node) { nodes_.insert_or_assign(node.attr.inode, std::move(node)); }

void NameSpace::set_counters(InodeNumber next_inode, EventNumber last_event) {
  next_inode_ = next_inode;
  last_event_ = last_event;
}

Status NameSpace::finish_loading() {
  for (auto& [inode, node] : nodes_) {
    if (inode == kRootInode || node.attr.nlink == 0) continue;
    Node* parent = get(node.attr.parent);
    if (parent == nullptr || parent->attr.kind != NodeKind::kDirectory ||
        !parent->children.emplace(node.name, inode).second) {
      return Status(Code::kCorruption, "catalogue: inode " + std::to_string(inode.value) +
                                           " has no place in its parent " + std::to_string(node.attr.parent.value));
    }
    if (inode >= next_inode_) {
      return Status(Code::kCorruption, "catalogue: inode " + std::to_string(inode.value) + " was never given out");
    }
  }
  return Status::ok();
}

Node* NameSpace::get(InodeNumber inode) {
  auto it = nodes_.find(inode);
  return it == nodes_.end() ? nullptr : &it->second;
}
const Node* NameSpace::get(InodeNumber inode) const {
  auto it = nodes_.find(inode);
  return it == nodes_.end() ? nullptr : &it->second;
}

Result<const Node*> NameSpace::find(InodeNumber inode) const {
  const Node* node = get(inode);
  if (node == nullptr) return error(ENOENT, "inode " + std::to_string(inode.value));
  return node;
}

Result<Node*> NameSpace::directory(InodeNumber inode) {
  Node* node = get(inode);
  if (node == nullptr) return error(ENOENT, "directory inode " + std::to_string(inode.value));
  if (node->attr.kind != NodeKind::kDirectory) return error(ENOTDIR, node->name);
  return node;
}

Result<Node*> NameSpace::child(Node& parent, const std::string& name) {
  auto it = parent.children.find(name);
  if (it == parent.children.end()) return error(ENOENT, name);
  return get(it->second);
}

Result<const Node*> NameSpace::lookup(InodeNumber parent, const std::string& name) const {
  auto* self = const_cast<NameSpace*>(this);  // the same search, nothing is changed
  TM_ASSIGN_OR_RETURN(Node * dir, self->directory(parent));
  if (name.size() > limits::kNameBytesMax) return error(ENAMETOOLONG, name.substr(0, 32) + "...");
  TM_ASSIGN_OR_RETURN(Node * node, self->child(*dir, name));
  return node;
}

Status NameSpace::read_directory(InodeNumber inode, const std::string& after,
                                 const std::function<bool(const Node&)>& take) const {
  TM_ASSIGN_OR_RETURN(Node * dir, const_cast<NameSpace*>(this)->directory(inode));
  auto it = after.empty() ? dir->children.begin() : dir->children.upper_bound(after);
  for (; it != dir->children.end(); ++it) {
    if (!take(*get(it->second))) break;
  }
  return Status::ok();
}

void NameSpace::walk(InodeNumber after, const std::function<bool(const Node&)>& take) const {
  for (auto it = nodes_.upper_bound(after); it != nodes_.end(); ++it) {
    if (!take(it->second)) return;
  }
}

std::string NameSpace::path(InodeNumber inode) const {
  if (inode == kRootInode) return "/";
  std::string out;
  for (const Node* n = get(inode); n != nullptr && n->attr.inode != kRootInode; n = get(n->attr.parent)) {
    if (n->attr.nlink == 0) return "";
    out = "/" + n->name + out;
  }
  return out;
}

bool NameSpace::is_below(InodeNumber inode, InodeNumber ancestor) const {
  for (const Node* n = get(inode); n != nullptr; n = get(n->attr.parent)) {
    if (n->attr.inode == ancestor) return true;
    if (n->attr.inode == kRootInode) return false;
  }
  return false;
}

wire::Mark NameSpace::new_mark(wire::MarkKind kind, const Origin& origin, Node& node) {
  wire::Mark mark;
  mark.kind = kind;
  mark.number = take_event();
  mark.origin = origin.node;
  mark.label = origin.now;
  node.attr.event = mark.number;
  mark.node = node.attr;
  return mark;
}

void NameSpace::touch(Change& change, Node& node, WallTime now, bool content) {
  // A host whose clock is ahead may have told of a change of its own.
  if (node.attr.ctime != now) node.attr.ctime = std::max(now, WallTime{node.attr.ctime.ns + 1});
  if (content) node.attr.mtime = now;
  if (std::find(change.touched.begin(), change.touched.end(), node.attr.inode) == change.touched.end()) {
    change.touched.push_back(node.attr.inode);
  }
}

void NameSpace::place(Node& node, Node& parent, const std::string& name) {
  parent.children[name] = node.attr.inode;
  node.attr.parent = parent.attr.inode;
  node.name = name;
}

Result<Change> NameSpace::create(const wire::Create& r, ImageId image, const Origin& origin) {
  TM_ASSIGN_OR_RETURN(Node * parent, directory(r.parent));
  TM_RETURN_IF_ERROR(check_name(r.name));
  if (parent->children.count(r.name) != 0) return error(EEXIST, r.name);
  bool is_directory = r.kind == NodeKind::kDirectory;
  bool is_symlink = r.kind == NodeKind::kSymlink;
  bool is_device = wire::is_device(r.kind);
  bool is_known = is_directory || is_symlink || wire::is_special(r.kind) || r.kind == NodeKind::kImage;
  if (!is_known) return error(EINVAL, "unknown kind of node");
  if (is_symlink && r.target.empty()) return error(ENOENT, "empty symlink target");
  if (is_device && !wire::parse_device(r.target)) return error(EINVAL, "a device without a number");
  if (!is_device && r.target.size() > (is_symlink ? limits::kSymlinkBytesMax : 0)) return error(ENAMETOOLONG, r.name);

  Node node;
  wire::Attr& a = node.attr;
  a.inode = next_inode_;
  next_inode_ = next_inode_.next();
  a.kind = r.kind;
  a.image = r.kind == NodeKind::kImage ? image : ImageId{};
  a.mode = is_symlink ? 0777 : r.mode & kPermissionBits;
  a.uid = r.uid;
  a.gid = r.gid;
  // As local file systems do: a set-group-ID directory hands its group on.
  if ((parent->attr.mode & kSetGroupId) != 0) {
    a.gid = parent->attr.gid;
    if (is_directory) a.mode |= kSetGroupId;
  }
  a.nlink = is_directory ? 2 : 1;
  a.size = is_symlink ? r.target.size() : 0;
  a.target = r.target;
  a.mirror = r.mirror != 0 ? 1 : 0;
  a.atime = a.mtime = a.ctime = a.btime = origin.now;
  place(node, *parent, r.name);
  Node& stored = nodes_.emplace(a.inode, std::move(node)).first->second;

  Change change;
  if (is_directory) ++parent->attr.nlink;
  touch(change, *parent, origin.now, true);
  touch(change, stored, origin.now, true);
  change.mark = new_mark(wire::MarkKind::kCreate, origin, stored);
  change.mark.name = r.name;
  parent->attr.event = change.mark.number;
  change.invalid.push_back({stored.attr.inode, r.parent, r.name});
  return change;
}

// Takes the node's name away; its parent is the caller's to touch.
void NameSpace::drop_name(Change& change, Node& node, const Origin& origin) {
  Node& parent = *get(node.attr.parent);
  parent.children.erase(node.name);
  if (node.attr.kind == NodeKind::kDirectory) --parent.attr.nlink;
  node.attr.nlink = 0;
  change.invalid.push_back({node.attr.inode, parent.attr.inode, node.name});
  if (node.attr.kind == NodeKind::kImage) {
    node.name.clear();
    touch(change, node, origin.now, false);
    change.nameless.push_back(node.attr.image);
  } else {
    change.erased.push_back(node.attr.inode);
  }
}

Result<Change> NameSpace::unlink(const wire::Unlink& r, const Origin& origin) {
  TM_ASSIGN_OR_RETURN(Node * parent, directory(r.parent));
  TM_ASSIGN_OR_RETURN(Node * node, child(*parent, r.name));
  bool is_directory = node->attr.kind == NodeKind::kDirectory;
  if (r.directory != 0 && !is_directory) return error(ENOTDIR, r.name);
  if (r.directory == 0 && is_directory) return error(EISDIR, r.name);
  if (!node->children.empty()) return error(ENOTEMPTY, r.name);

  Change change;
  drop_name(change, *node, origin);
  touch(change, *parent, origin.now, true);
  change.mark = new_mark(wire::MarkKind::kUnlink, origin, *node);
  change.mark.old_parent = r.parent;
  change.mark.old_name = r.name;
  change.mark.replaced = node->attr.image;
  change.mark.replaced_inode = node->attr.inode;
  parent->attr.event = change.mark.number;
  for (InodeNumber gone : change.erased) nodes_.erase(gone);
  return change;
}

Status NameSpace::check_replace(const Node& moved, const Node& target) const {
  bool moved_directory = moved.attr.kind == NodeKind::kDirectory;
  bool target_directory = target.attr.kind == NodeKind::kDirectory;
  if (moved_directory && !target_directory) return error(ENOTDIR, target.name);
  if (!moved_directory && target_directory) return error(EISDIR, target.name);
  if (!target.children.empty()) return error(ENOTEMPTY, target.name);
  return Status::ok();
}

Result<Change> NameSpace::rename(const wire::Rename& r, const Origin& origin) {
  if (r.flags > kRenameExchange) return error(EINVAL, "rename flags");
  TM_ASSIGN_OR_RETURN(Node * from, directory(r.parent));
  TM_ASSIGN_OR_RETURN(Node * to, directory(r.new_parent));
  TM_ASSIGN_OR_RETURN(Node * node, child(*from, r.name));
  TM_RETURN_IF_ERROR(check_name(r.new_name));
  auto found = to->children.find(r.new_name);
  Node* target = found == to->children.end() ? nullptr : get(found->second);
  if (r.flags == kRenameNoReplace && target != nullptr) return error(EEXIST, r.new_name);
  if (is_below(to->attr.inode, node->attr.inode)) return error(EINVAL, "rename into its own subtree");
  if (r.flags == kRenameExchange) {
    if (target == nullptr) return error(ENOENT, r.new_name);
    return exchange(r, *node, *target, origin);
  }
  if (target != nullptr && target != node) TM_RETURN_IF_ERROR(check_replace(*node, *target));

  Change change;
  InodeNumber replaced_inode;
  ImageId replaced;
  if (target != nullptr && target != node) {
    replaced_inode = target->attr.inode;
    replaced = target->attr.image;
    drop_name(change, *target, origin);
  }
  from->children.erase(r.name);
  place(*node, *to, r.new_name);
  if (node->attr.kind == NodeKind::kDirectory && from != to) {
    --from->attr.nlink;
    ++to->attr.nlink;
  }
  touch(change, *from, origin.now, true);
  touch(change, *to, origin.now, true);
  touch(change, *node, origin.now, false);
  change.mark = new_mark(wire::MarkKind::kRename, origin, *node);
  change.mark.old_parent = r.parent;
  change.mark.old_name = r.name;
  change.mark.name = r.new_name;
  change.mark.replaced = replaced;
  change.mark.replaced_inode = replaced_inode;
  from->attr.event = to->attr.event = change.mark.number;
  change.invalid.push_back({node->attr.inode, r.parent, r.name});
  change.invalid.push_back({node->attr.inode, r.new_parent, r.new_name});
  for (InodeNumber gone : change.erased) nodes_.erase(gone);
  return change;
}

Result<Change> NameSpace::exchange(const wire::Rename& r, Node& a, Node& b, const Origin& origin) {
  Node& from = *get(r.parent);
  Node& to = *get(r.new_parent);
  if (is_below(from.attr.inode, b.attr.inode)) return error(EINVAL, "exchange with a directory above");
  Change change;
  place(a, to, r.new_name);
  place(b, from, r.name);
  if (&a == &b) place(a, from, r.name);
  int moved = (a.attr.kind == NodeKind::kDirectory ? 1 : 0) - (b.attr.kind == NodeKind::kDirectory ? 1 : 0);
  from.attr.nlink -= static_cast<uint32_t>(moved);
  to.attr.nlink += static_cast<uint32_t>(moved);
  touch(change, from, origin.now, true);
  touch(change, to, origin.now, true);
  touch(change, a, origin.now, false);
  touch(change, b, origin.now, false);
  change.mark = new_mark(wire::MarkKind::kRename, origin, a);
  change.mark.old_parent = r.parent;
  change.mark.old_name = r.name;
  change.mark.name = r.new_name;
  change.mark.replaced_inode = b.attr.inode;   // the name was not free
  // The second mark vacates nothing: the name it came from is taken by the first.
  wire::Mark other = new_mark(wire::MarkKind::kRename, origin, b);
  other.name = r.name;
  from.attr.event = to.attr.event = other.number;
  change.others.push_back(std::move(other));
  change.invalid.push_back({a.attr.inode, r.parent, r.name});
  change.invalid.push_back({b.attr.inode, r.new_parent, r.new_name});
  return change;
}

Result<Change> NameSpace::set_attr(const wire::SetAttr& r, const Origin& origin) {
  Node* node = get(r.inode);
  if (node == nullptr) return error(ENOENT, "inode " + std::to_string(r.inode.value));
  if ((r.mask & wire::kSetPolicy) != 0 && node->attr.kind != NodeKind::kImage)
    return error(EINVAL, "policy of no image");
  Change change;
  wire::Attr& a = node->attr;
  const WallTime ctime = a.ctime;
  touch(change, *node, origin.now, false);
  if ((r.mask & wire::kSetMode) != 0) a.mode = r.values.mode & kPermissionBits;
  if ((r.mask & wire::kSetUid) != 0) a.uid = r.values.uid;
  if ((r.mask & wire::kSetGid) != 0) a.gid = r.values.gid;
  if ((r.mask & wire::kSetAtime) != 0) a.atime = r.values.atime;
  if ((r.mask & wire::kSetMtime) != 0) a.mtime = r.values.mtime;
  if ((r.mask & wire::kSetCtime) != 0) a.ctime = std::max(ctime, r.values.ctime);  // times of writes are told late
  if ((r.mask & wire::kSetPolicy) != 0) {
    const uint8_t before = std::exchange(a.mirror, r.values.mirror != 0 ? 1 : 0);
    change.policy = a.mirror != before;
  }
  change.mark = new_mark(wire::MarkKind::kSetAttr, origin, *node);
  change.mark.name = node->name;
  change.invalid.push_back({r.inode, a.parent, node->name});
  return change;
}

Result<Change> NameSpace::set_xattr(const wire::SetXattr& r, const Origin& origin) {
  Node* node = get(r.inode);
  if (node == nullptr) return error(ENOENT, "inode " + std::to_string(r.inode.value));
  if (r.name.empty() || r.name.size() > limits::kNameBytesMax) return error(ERANGE, "xattr name");
  auto& all = node->attr.xattrs;
  auto it = std::find_if(all.begin(), all.end(), [&](const auto& x) { return x.first == r.name; });
  if (r.remove != 0) {
    if (it == all.end()) return error(ENODATA, r.name);
    all.erase(it);
  } else {
    if (r.value.size() > limits::kXattrBytesMax) return error(E2BIG, r.name);
    if ((r.flags & kXattrCreate) != 0 && it != all.end()) return error(EEXIST, r.name);
    if ((r.flags & kXattrReplace) != 0 && it == all.end()) return error(ENODATA, r.name);
    size_t total = r.name.size() + r.value.size();
    for (const auto& x : all) total += x.first == r.name ? 0 : x.first.size() + x.second.size();
    if (total > limits::kXattrTotalBytesMax || (it == all.end() && all.size() >= limits::kXattrsPerNodeMax)) {
      return error(ENOSPC, "extended attributes of one node");
    }
    if (it == all.end()) all.emplace_back(r.name, r.value);
    else it->second = r.value;
  }
  Change change;
  touch(change, *node, origin.now, false);
  change.mark = new_mark(wire::MarkKind::kSetAttr, origin, *node);
  change.mark.name = node->name;
  change.invalid.push_back({r.inode, node->attr.parent, node->name});
  return change;
}

wire::Attr* NameSpace::image_attr(InodeNumber inode) {
  Node* node = get(inode);
  return node == nullptr ? nullptr : &node->attr;
}

void NameSpace::forget(InodeNumber inode) {
  Node* node = get(inode);
  TM_CHECK(node == nullptr || node->attr.nlink == 0, "a node with a name is not forgotten");
  nodes_.erase(inode);
}

}  // namespace tidemark::node
