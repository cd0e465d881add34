// Reads an LMDB environment's file page by page, without LMDB: what is damaged, and what of it is still sound.
//
// LMDB maps the file and trusts it: a page that is cut off is SIGBUS, a flipped pointer is any answer. So a store is
// looked at before it is opened (check_before_open), and by `tidemark fsck` whole. The file must not change meanwhile.
//
// A store is sound if and only if: a meta page has magic and version; the file holds every page that a tree uses (one
// that was taken and given back in one transaction is never written: the file may end before the last page); each page
// of each tree is reached once, says its own number and kind, has its nodes within itself and its keys ascending, and
// the trees have as many entries as their roots say; and, in sealed stores (README.md), the tables are those listed and
// each value has its checksum.
// Layout: lmdb 0.9's mdb.c, 64-bit, little-endian. Environments of other builds are refused as damaged.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/status.h"

namespace tidemark::kv {

// There: every value ends in its checksum; its keys are the tables' names.
inline constexpr char kSealTable[] = "tidemark.sealed";
inline constexpr size_t kSealBytes = 8;
// `table`: table_seal() of its name, so that a value in another table's place is found too.
uint64_t table_seal(const std::string& name);
uint64_t seal_of(uint64_t table, ByteSpan key, ByteSpan value);

struct StoreCheck {
  std::vector<std::string> problems;           // each names the page, and the table and key where it can; empty: sound
  std::set<std::string> damaged_tables;        // of which something is lost or cannot be trusted
  std::set<std::string> tables;                // found by name, whole or not
  bool catalogue_damaged = false;              // tables may be missing from `tables`
  bool sealed = false;
  uint64_t pages = 0, values = 0;
};
// Called with each entry that is sound, seals taken off; in no order. With `catalogue_damaged` none is to be believed.
using StoreEntry = std::function<void(const std::string& table, ByteSpan key, ByteSpan value)>;

// kNotFound if there is no such store; kIoError if it cannot be read. Damage is in the result.
Result<StoreCheck> check_store(const std::string& directory, const StoreEntry& entry = {});

// By another process; not to be asked of a store that this one has open (closing the lock file gives up its locks).
bool is_open_elsewhere(const std::string& directory);

// The meta pages and the length; the whole of a store that is small or ends before its last page: kCorruption, naming
// what is wrong and what to do. `may_change`: it is opened to read, and may be open elsewhere: looked at whole only if
// it ends too early, and is not.
Status check_before_open(const std::string& directory, bool may_change);

}  // namespace tidemark::kv
