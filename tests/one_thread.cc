// Linked into tests that are said to have one thread (ONE_THREAD in tests/CMakeLists.txt) and are therefore not run under the
// thread sanitizer: one that starts a thread ends here.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>

extern "C" int pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) noexcept {
  std::fputs("a test of one thread starts another: take ONE_THREAD from it, so that it runs under the thread sanitizer\n", stderr);
  std::abort();
}
