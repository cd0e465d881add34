// `tidemark`: the command line of a cluster.
#include "shared/cli/commands.h"

int main(int argc, char** argv) { return tidemark::cli::run(argc, argv); }
