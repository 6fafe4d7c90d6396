// Measures what the memory allows: copies of random rows with prefetching, and nothing else. See ceiling.py.
//
//   row_copy     place i ------------------------------> row ---copy---> out[i]
//   index_line   key i --hash--> a random 64-byte line --> row ---copy---> out[i]
//
// Rows have the table's layout (a stride of weights and slots, of which the weights are copied) and lie in huge pages.
// The output is written as the table's. There are no shards, no locks, no second bucket, and no keys to compare.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr size_t kHuge = size_t{2} << 20;

uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

template <class T>
T* Allocate(size_t bytes) {
  bytes = (bytes + kHuge - 1) / kHuge * kHuge;
  void* data = std::aligned_alloc(kHuge, bytes);
  if (data == nullptr) throw std::bad_alloc();
  madvise(data, bytes, MADV_HUGEPAGE);
  return static_cast<T*>(data);
}

struct Rows {
  size_t n, dim, stride, lines;
  float* rows;
  uint32_t* index;  // 16 numbers a line: each a row
};

void Fetch(const char* at, size_t bytes) {
  for (size_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(at + byte);
}

// kDim is a usual dimension, so that the compiler knows the size of a copy, or 0 for any other.
template <size_t kDim>
void RowCopy(const Rows& r, const int64_t* places, size_t n, size_t ahead, float* out) {
  const size_t dim = kDim != 0 ? kDim : r.dim, bytes = dim * sizeof(float);
  for (size_t i = 0; i < ahead && i < n; ++i) {
    Fetch(reinterpret_cast<const char*>(r.rows + places[i] * r.stride), bytes);
  }
  for (size_t i = 0; i < n; ++i) {
    if (i + ahead < n) Fetch(reinterpret_cast<const char*>(r.rows + places[i + ahead] * r.stride), bytes);
    std::memcpy(out + i * dim, r.rows + places[i] * r.stride, bytes);
  }
}

const uint32_t* Line(const Rows& r, int64_t key) {
  const uint64_t hash = Mix(static_cast<uint64_t>(key));
  return r.index + (((hash & 0xffffffff) * r.lines) >> 32) * 16;
}

// A key is hashed two distances ahead. Its line is read one distance ahead.
template <size_t kDim>
void IndexLine(const Rows& r, const int64_t* keys, size_t n, size_t ahead, float* out) {
  constexpr size_t kRing = 128;  // over twice the longest distance
  const size_t dim = kDim != 0 ? kDim : r.dim, bytes = dim * sizeof(float);
  const uint32_t* lines[kRing];
  const float* rows[kRing];
  for (size_t i = 0; i < n + 2 * ahead; ++i) {
    if (i < n) __builtin_prefetch(lines[i % kRing] = Line(r, keys[i]));
    if (i >= ahead && i - ahead < n) {
      const size_t j = i - ahead;
      rows[j % kRing] = r.rows + lines[j % kRing][8 + (keys[j] & 3)] * r.stride;
      Fetch(reinterpret_cast<const char*>(rows[j % kRing]), bytes);
    }
    if (i >= 2 * ahead) std::memcpy(out + (i - 2 * ahead) * dim, rows[(i - 2 * ahead) % kRing], bytes);
  }
}

}  // namespace

extern "C" {

// `per_line`: the keys in a line of the index, on average.
void* ceiling_new(size_t n, size_t dim, size_t stride, double per_line) {
  try {
    const size_t lines = static_cast<size_t>(n / per_line) + 1;
    Rows* r = new Rows{n, dim, stride, lines, Allocate<float>(n * stride * 4), Allocate<uint32_t>(lines * 64)};
    for (size_t i = 0; i < n * stride; ++i) r->rows[i] = static_cast<float>(i % 1021);
    for (size_t i = 0; i < lines * 16; ++i) r->index[i] = ((Mix(i + 1) & 0xffffffff) * n) >> 32;
    return r;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void ceiling_row_copy(void* rows, const int64_t* places, size_t n, size_t ahead, float* out) {
  const Rows& r = *static_cast<Rows*>(rows);
  r.dim == 16 ? RowCopy<16>(r, places, n, ahead, out)
  : r.dim == 32 ? RowCopy<32>(r, places, n, ahead, out)
                : RowCopy<0>(r, places, n, ahead, out);
}

void ceiling_index_line(void* rows, const int64_t* keys, size_t n, size_t ahead, float* out) {
  const Rows& r = *static_cast<Rows*>(rows);
  r.dim == 16 ? IndexLine<16>(r, keys, n, ahead, out)
  : r.dim == 32 ? IndexLine<32>(r, keys, n, ahead, out)
                : IndexLine<0>(r, keys, n, ahead, out);
}
}
