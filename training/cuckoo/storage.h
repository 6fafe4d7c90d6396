// Memory of the table: ranges that grow in place, slabs of rows. No TensorFlow here.
//
//   Range (two a shard: index, rows)   | 4 KB pages ... | 2 MB | 2 MB | ...  address space only, reserved once  |
//                                      data()           ^ head          ^ committed                      most ^
//   Slab (one a shard)                 row r, `stride` floats: | weights | slots | pad |
//                                      a freed row: its first 4 bytes hold the next free row
//
// Invariants
//   - Nothing ever moves: an address is a base and a number, and a glance (lock.h) can follow what is stale. No line of
//     a directory is read on the way: that cost find a quarter of its time.
//   - Reserve() and New() do what they say or throw std::bad_alloc and have changed nothing.
//   - Untouched memory is address space only: memory follows the elements, a page of 4 KB at a time up to `head`, of
//     2 MB from there on, when the head becomes such pages too. Shards of one size pass from page to page in turn, and
//     not all in one batch: the kernel takes milliseconds for each page of 2 MB.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace cuckoo {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

// `bytes` of memory of its own on a cache line, not set.
class Block {
 public:
  Block() = default;
  explicit Block(size_t bytes) : data_(std::aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine)) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Block() { std::free(data_); }

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// `share` of `shares` equal parts of the address space of a table: four times the machine's memory.
inline size_t SpaceOf(size_t shares) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  return std::max<size_t>((size_t{4} << 30) / shares, size_t{64} << 20);  // they shadow it
#else
  const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return std::max<size_t>(4 * memory / shares, size_t{64} << 20);
#endif
}

// An array that grows in place, up to `most` bytes; less where the process may not have as much address space.
class Range {
 public:
  // `turn`, under 2 MB, is where in a huge page it begins.
  Range(size_t most, size_t turn) {
    most = Up(most, kHugePage);
    for (;; most /= 2) {
      mapped_ = most + kHead + 2 * kHugePage;
      void* mapped = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped != MAP_FAILED) {
        mapping_ = static_cast<char*>(mapped);
        break;
      }
      if (most <= kHugePage) throw std::bad_alloc();
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(mapping_);
    begin_ = mapping_ + (Up(address, kHugePage) - address);
    data_ = begin_ + turn / kPage * kPage;
    most_ = mapping_ + mapped_ - data_;
    head_ = begin_ + Up(data_ + kHead - begin_, kHugePage) - data_;
    madvise(data_ + head_, most_ - head_, MADV_HUGEPAGE);  // a wish: refused, it is as correct
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  ~Range() { munmap(mapping_, mapped_); }

  char* data() const { return data_; }

  // Makes the first `bytes` memory; what is new reads as zeros.
  void Reserve(size_t bytes) {
    if (bytes > committed_) Commit(bytes);
  }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kStep = size_t{16} << 10;
  static constexpr size_t kHead = size_t{1} << 20;  // at least so much in small pages: a small table is small

  static size_t Up(size_t x, size_t step) { return (x + step - 1) / step * step; }

  void Commit(size_t bytes) {
    if (bytes > most_) throw std::bad_alloc();
    const size_t end = bytes <= head_ ? std::min(Up(bytes, kStep), head_) : head_ + Up(bytes - head_, kHugePage);
    char* from = committed_ == 0 ? begin_ : data_ + committed_;
    if (end > most_ || mprotect(from, data_ + end - from, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    if (end > head_ && !collapsed_) {
      collapsed_ = true;
#ifndef MADV_COLLAPSE
      constexpr int MADV_COLLAPSE = 25;  // Linux 6.1
#endif
      madvise(begin_, data_ + head_ - begin_, MADV_COLLAPSE);  // a wish, too
    }
    committed_ = end;
  }

  char* mapping_ = nullptr;
  char* begin_ = nullptr;  // the first huge page's
  char* data_ = nullptr;
  bool collapsed_ = false;  // the head, into huge pages
  size_t mapped_ = 0, most_ = 0, head_ = 0, committed_ = 0;
};

class Slab {
 public:
  static constexpr uint32_t kNoRow = 0xffffffff;  // never a row: also the index's mark of an empty slot

  // A stride of whole lines costs a row no line it need not touch; where that would waste over an eighth, 16 bytes.
  static size_t Stride(size_t floats) {
    const size_t lines = (floats + 15) / 16 * 16;
    return (lines - floats) * 8 <= lines ? lines : (floats + 3) / 4 * 4;
  }

  // Up to `most` bytes of rows.
  Slab(size_t row_floats, size_t most, size_t turn)
      : stride_(Stride(row_floats)), range_(most, turn), rows_(reinterpret_cast<float*>(range_.data())) {}

  float* At(uint32_t row) const { return rows_ + row * stride_; }

  uint32_t New() {
    if (free_ != kNoRow) {
      const uint32_t row = free_;
      std::memcpy(&free_, At(row), sizeof free_);
      return row;
    }
    if (end_ == kNoRow) throw std::bad_alloc();
    range_.Reserve((end_ + size_t{1}) * stride_ * sizeof(float));
    return end_++;
  }

  void Free(uint32_t row) {
    std::memcpy(At(row), &free_, sizeof free_);
    free_ = row;
  }

  // Bytes of the rows ever handed out.
  size_t bytes() const { return end_ * stride_ * sizeof(float); }

 private:
  const size_t stride_;
  Range range_;
  float* const rows_;
  uint32_t end_ = 0;
  uint32_t free_ = kNoRow;
};

}  // namespace cuckoo
