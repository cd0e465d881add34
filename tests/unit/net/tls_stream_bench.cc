// How many frames of 4 KiB one TLS stream carries over loopback, both ends on one loop thread, and
// what one costs in processor time. Frames go out in batches, and are answered by small ones.
//   tls_stream_bench [frames] [batch] [payload]
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "shared/io/real_env.h"
#include "shared/net/pki.h"
#include "shared/net/real_network.h"

using namespace tidemark;
using namespace tidemark::net;

namespace {

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t frames = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 400'000;
  const uint64_t depth = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 32;
  const size_t payload_size = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 4096;
  constexpr size_t kHead = 96, kAnswer = 48;
  std::string dir = (std::filesystem::temp_directory_path() / "tidemark_bench_XXXXXX").string();
  if (::mkdtemp(dir.data()) == nullptr || !pki::init_authority(dir, {})) return 1;
  auto shared = pki::issue({.authority_directory = dir, .node = "shared1", .role = Role::kShared});
  auto host = pki::issue({.authority_directory = dir, .node = "host1", .role = Role::kHost});
  if (!shared || !host) return 1;
  {
    io::RealEnv env({.make_network = make_real_network});
    Bytes head(kHead), payload(payload_size, 0x5a), answer(kAnswer);
    uint64_t received = 0, partial = 0, answered_bytes = 0, sent = 0;
    std::unique_ptr<Stream> server, client;
    Network::ListenOptions listening;
    listening.address = {"127.0.0.1", 0};
    listening.tls = *shared;
    listening.roles_accepted = {Role::kHost};
    auto listener = env.network().listen(listening, [&](std::unique_ptr<Stream> s) {
          server = std::move(s);
          server->start({.on_data = [&](ByteSpan data) {
                           partial += data.size();
                           for (; partial >= kHead + payload_size; partial -= kHead + payload_size) {
                             ++received;
                             server->send(answer);
                           }
                         },
                         .on_close = [](Status) {}});
        });
    if (!listener) return 1;
    auto fill = [&] {
      while (sent < frames && sent - answered_bytes / kAnswer < depth) {
        client->send(head, payload);
        ++sent;
      }
    };
    Network::ConnectOptions connecting;
    connecting.address = {"127.0.0.1", (*listener)->port()};
    connecting.tls = *host;
    env.network().connect(connecting, [&](Result<std::unique_ptr<Stream>> s) {
                            if (!s) std::exit(1);
                            client = std::move(s).value();
                            client->start({.on_data = [&](ByteSpan data) { answered_bytes += data.size(); fill(); },
                                           .on_close = [](Status) {}});
                          });
    if (!env.run_until([&] { return server && client; }, std::chrono::seconds(5))) return 1;
    double cpu = cpu_seconds();
    io::BootTime begun = env.now();
    fill();
    if (!env.run_until([&] { return answered_bytes == frames * kAnswer; }, std::chrono::seconds(120))) return 1;
    double seconds = static_cast<double>((env.now() - begun).count()) * 1e-9;
    cpu = cpu_seconds() - cpu;
    std::printf("%llu frames of %zu B, depth %llu: %.0f frames/s, %.0f MB/s, %.2f us processor a frame (both ends)\n",
                static_cast<unsigned long long>(received), payload_size, static_cast<unsigned long long>(depth),
                static_cast<double>(frames) / seconds, static_cast<double>(frames * payload_size) / seconds * 1e-6,
                cpu / static_cast<double>(frames) * 1e6);
    server.reset();
    client.reset();
    listener = Status(Code::kCancelled, "before its Env");
  }
  std::filesystem::remove_all(dir);
  return 0;
}
