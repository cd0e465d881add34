#include "shared/base/version.h"

namespace tidemark {

std::string_view version() { return TIDEMARK_VERSION; }

}  // namespace tidemark
