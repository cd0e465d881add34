// The daemon's end of its holder (holder.h): what it was given at its start, and the words that pass between the two.
//
// The holder starts the daemon with TIDEMARK_HOLDER=SOCKET,MEMORY,SESSION: descriptors of a socket to the holder, of
// the survivor's memory, and of /dev/fuse (-1: nothing is mounted yet). A word is one datagram: a letter, then text.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fs/survivor.h"
#include "shared/base/function.h"
#include "shared/base/status.h"
#include "shared/io/real_env.h"

namespace tidemark::fs {

inline constexpr char kHolderVariable[] = "TIDEMARK_HOLDER";
inline constexpr char kHolderAsks[] = "check";   // its value beside --check: could it follow the daemon that runs?

enum class Word : char {
  kMounted = 'M',    // daemon: the mount stands; the descriptor of its session comes with it
  kReady = 'R',      // daemon: it serves
  kStopping = 'S',   // daemon: it ends for good
  kReplace = 'U',    // daemon: somebody asks for the program on disk
  kHandOver = 'H',   // holder: finish what is under way and end, a successor waits
  kRefused = 'F',    // holder: no successor, and why
};
// How a daemon that has a holder ends, other than for good.
enum : int {
  kExitHandedOver = 77,   // as it was told
  kExitStartAnew = 78,    // it can no longer go on, and its start recovers
  kExitCannotFollow = 79, // it is of no use as the successor of what it found
};

Status send_word(int socket, Word word, std::string_view text = {}, int descriptor = -1);
struct Heard {
  Word word;
  std::string text;
  int descriptor = -1;   // the caller's to close
};
// Does not wait. kUnavailable: nothing there; kNotFound: the other end is gone.
Result<Heard> hear_word(int socket);

class Holding {
 public:
  static bool asks_for_successor();
  // Null without a holder.
  static Result<std::unique_ptr<Holding>> from_environment();
  ~Holding();
  Holding(const Holding&) = delete;
  Holding& operator=(const Holding&) = delete;

  Survivor& survivor() { return survivor_; }
  bool successor() const { return session_ >= 0; }
  int session() const { return session_; }           // of /dev/fuse; stays the caller's to duplicate
  bool can_restart() { return survivor_.can_resend(); }
  std::string refusal() const { return refusal_; }   // of the last replacement asked for; empty: none
  uint32_t refusals() const { return refusals_; }

  void mounted(int session);
  void ready(bool background);
  void stopping();
  Status ask_replacement();
  // Once the loop exists; `hand_over` runs on it.
  Status watch(io::RealEnv& env, UniqueFunction<void()> hand_over);

 private:
  Holding(int socket, int session, MutableByteSpan memory, Survivor survivor)
      : socket_(socket), session_(session), memory_(memory), survivor_(survivor) {}
  void hear();

  const int socket_, session_;
  const MutableByteSpan memory_;
  Survivor survivor_;
  io::RealEnv* env_ = nullptr;
  UniqueFunction<void()> hand_over_;
  std::string refusal_;
  uint32_t refusals_ = 0;
};

}  // namespace tidemark::fs
