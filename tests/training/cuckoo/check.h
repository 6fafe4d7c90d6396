// CHECK for the core's tests: says where and which values, and ends the process. Alive in every build, unlike assert.
#pragma once

#include <cstdlib>
#include <iostream>

#ifdef __SANITIZE_THREAD__
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

// How often a loop of one thread runs. The thread sanitizer makes it twenty times as slow and has only the pager's
// thread to watch beside it: there it runs a tenth. The other builds check the same values in all of it.
constexpr int Rounds(int n) { return kThreadSanitizer ? n / 10 : n; }

#define CHECK(condition)                                                                  \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::cerr << __FILE__ << ":" << __LINE__ << ": not true: " #condition << std::endl; \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

#define CHECK_EQ(a, b)                                                                                            \
  do {                                                                                                            \
    const auto left = (a);                                                                                        \
    const auto right = (b);                                                                                       \
    if (!(left == right)) {                                                                                       \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #a " is " << left << ", " #b " is " << right << std::endl; \
      std::abort();                                                                                               \
    }                                                                                                             \
  } while (false)
