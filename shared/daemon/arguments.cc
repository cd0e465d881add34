// The command line that all daemons share.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "shared/base/config.h"
#include "shared/base/version.h"
#include "shared/daemon/daemon.h"

namespace tidemark::daemon {
namespace {

Status check_host(const std::string& file) {
  TM_ASSIGN_OR_RETURN(config::Host c, config::load_host(file));
  return config::check_paths(file, c.tls, &c.storage);
}
Status check_shared(const std::string& file) {
  TM_ASSIGN_OR_RETURN(config::Shared c, config::load_shared(file));
  return config::check_paths(file, c.tls, &c.storage);
}
Status check_replica(const std::string& file) {
  TM_ASSIGN_OR_RETURN(config::Replica c, config::load_replica(file));
  return config::check_paths(file, c.tls, nullptr);
}
Status check_witness(const std::string& file) {
  TM_ASSIGN_OR_RETURN(config::Witness c, config::load_witness(file));
  return config::check_paths(file, c.tls, nullptr);
}
// As the program itself would read it: a file of another role is wrong.
Status check(const std::string& program, const std::string& file) {
  if (program == "tidemark-shared") return check_shared(file);
  if (program == "tidemark-replica") return check_replica(file);
  if (program == "tidemark-witness") return check_witness(file);
  return check_host(file);
}

}  // namespace

std::optional<int> parse_arguments(int argc, char** argv, const ProgramInfo& program, Arguments& out) {
  CLI::App app(program.purpose, program.name);
  app.footer("Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage or configuration.");
  app.add_option("-c,--config", out.config, "configuration file (TOML)")->envname("TIDEMARK_CONFIG")->required();
  app.add_flag("-b,--background", out.background, "return once the daemon is ready");
  bool check_only = false;
  app.add_flag("--check", check_only, "check the configuration and exit");
  app.set_version_flag("-V,--version", program.name + " " + std::string(version()));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);
    std::fprintf(stderr, "%s: %s: see %s --help\n", program.name.c_str(), e.what(), program.name.c_str());
    return 2;
  }
  if (!check_only) return std::nullopt;
  if (Status s = check(program.name, out.config); !s) return fail(program.name, s);
  std::printf("%s: the configuration is good\n", out.config.c_str());
  return 0;
}

int fail(const std::string& program, const Status& status) {
  std::fprintf(stderr, "%s: %s\n", program.c_str(), status.message().c_str());
  return status.code() == Code::kInvalidArgument ? 2 : 1;
}

}  // namespace tidemark::daemon
