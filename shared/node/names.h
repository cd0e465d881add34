// NameSpace: the tree of names over all images, in memory. Pure: no I/O, no clock.
//
// Each operation checks everything first, then changes the tree and says what it touched; the caller
// stores that durably before it answers. There are no hard links: a node has one name or none.
// An image that lost its name stays as a node with nlink 0 until forget().
//
// Errors carry the errno that POSIX wants: ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL, ENAMETOOLONG...
#pragma once

#include <functional>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/wire/messages.h"

namespace tidemark::node {

inline constexpr InodeNumber kRootInode{1};

struct Node {
  wire::Attr attr;                               // holder and epoch are the caller's to fill in
  std::string name;                              // in attr.parent; empty for the root and nameless images
  std::map<std::string, InodeNumber> children;   // of a directory
};

// What an operation did.
struct Change {
  wire::Mark mark;
  std::vector<wire::Mark> others;         // of an exchange: the other name's
  std::vector<InodeNumber> touched;       // to be stored
  std::vector<InodeNumber> erased;        // to be erased: all but images that lost their name
  std::vector<ImageId> nameless;          // images that lost their name
  struct Name { InodeNumber inode, parent; std::string name; };
  std::vector<Name> invalid;              // what other hosts must forget
  bool policy = false;                    // the mirror policy was set
  uint64_t number = 0;                    // of a create: that of the request, if it has one
};

// Who asks, and when.
struct Origin {
  std::string node;
  WallTime now;
};

class NameSpace {
 public:
  // An empty tree: the root directory, owned by root, 0755.
  explicit NameSpace(WallTime now);

  // ---- loading: nodes in any order, then finish_loading() checks that they form a tree ---------
  void load(Node node);
  void set_counters(InodeNumber next_inode, EventNumber last_event);
  Status finish_loading();

  // ---- asking ---------------------------------------------------------------------------------
  Result<const Node*> lookup(InodeNumber parent, const std::string& name) const;
  Result<const Node*> find(InodeNumber inode) const;
  // Entries of a directory after `after`, in name order, as long as `take` says true.
  Status read_directory(InodeNumber inode, const std::string& after,
                        const std::function<bool(const Node&)>& take) const;
  // All nodes after `after`, by inode.
  void walk(InodeNumber after, const std::function<bool(const Node&)>& take) const;
  // "/dir/name", or "" for a nameless image.
  std::string path(InodeNumber inode) const;
  size_t size() const { return nodes_.size(); }
  InodeNumber next_inode() const { return next_inode_; }
  EventNumber last_event() const { return last_event_; }
  EventNumber take_event() { return last_event_ = last_event_.next(); }

  // ---- changing -------------------------------------------------------------------------------
  // `image` names the new image; nil for other kinds.
  Result<Change> create(const wire::Create& request, ImageId image, const Origin& origin);
  Result<Change> unlink(const wire::Unlink& request, const Origin& origin);
  Result<Change> rename(const wire::Rename& request, const Origin& origin);
  Result<Change> set_attr(const wire::SetAttr& request, const Origin& origin);
  Result<Change> set_xattr(const wire::SetXattr& request, const Origin& origin);
  // Not events: what writes and resizes do to an image's node. Null if there is none.
  wire::Attr* image_attr(InodeNumber inode);
  // A nameless image's blocks are gone.
  void forget(InodeNumber inode);

 private:
  using Nodes = std::map<InodeNumber, Node>;
  Node* get(InodeNumber inode);
  const Node* get(InodeNumber inode) const;
  Result<Node*> directory(InodeNumber inode);
  Result<Node*> child(Node& parent, const std::string& name);
  bool is_below(InodeNumber inode, InodeNumber ancestor) const;
  wire::Mark new_mark(wire::MarkKind kind, const Origin& origin, Node& node);
  void touch(Change& change, Node& node, WallTime now, bool content);
  void place(Node& node, Node& parent, const std::string& name);
  void drop_name(Change& change, Node& node, const Origin& origin);
  Result<Change> exchange(const wire::Rename& request, Node& a, Node& b, const Origin& origin);
  Status check_replace(const Node& moved, const Node& target) const;

  Nodes nodes_;
  InodeNumber next_inode_{2};
  EventNumber last_event_;
};

}  // namespace tidemark::node
