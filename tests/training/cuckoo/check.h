// CHECK for the core's tests: says where and which values, and ends the process. Alive in every build, unlike assert.
#pragma once

#include <cstdlib>
#include <iostream>

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
