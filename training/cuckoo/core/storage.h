// Memory of the table: ranges that grow in place, slabs of rows. No TensorFlow here.
//
//   Range (two a shard: index, rows)   | 4 KB pages ... | 2 MB | 2 MB | ...  address space only, reserved once  |
//                                      data()           ^ head          ^ committed                      most ^
//   Slab (one a shard)                 row r, `stride` floats: | weights | slots | pad |
//                                      a freed row: its first 4 bytes hold the next free row
//
// Invariants
//   - Nothing ever moves. An address is a base and a number, and a glance (lock.h) may follow a stale one. It reads no
//     directory on the way; that cost find a quarter of its time.
//   - Reserve() and New() succeed, or throw std::bad_alloc and have changed nothing.
//   - Untouched memory is address space only. Memory follows the elements. Up to `head` it grows by pages of 4 KB, and
//     each 2 MB become one page when half full. From `head` on it grows by pages of 2 MB. The kernel takes milliseconds
//     for such a page, so a thread asks for it before it is needed (pager.h). Shards of one size begin pages in turn.
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

#include "training/cuckoo/core/pager.h"

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
  Range(size_t most, size_t turn, Pager* pager) : pager_(pager), turn_(turn / kPage * kPage) {
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
    data_ = mapping_ + (Up(address, kHugePage) - address) + turn_;
    most_ = mapping_ + mapped_ - data_;
    head_ = Up(turn_ + kHead, kHugePage) - turn_;
    // A first page that would be empty for the most part stays in small ones.
    wanted_ = turn_ > kHugePage / 2 ? kHugePage : 0;
    madvise(data_ + head_, most_ - head_, MADV_HUGEPAGE);  // a wish: refused, it is as correct
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  ~Range() { munmap(mapping_, mapped_); }

  char* data() const { return data_; }

  // Makes the first `bytes` memory; what is new reads as zeros.
  void Reserve(size_t bytes) {
    if (bytes > reserved_) Commit(bytes);
  }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kHead = size_t{16} << 20;    // in small pages first: a tail of 2 MB is an eighth of it
  static constexpr size_t kAhead = size_t{256} << 10;  // a huge page is wanted so long before it is written to

  static size_t Up(size_t x, size_t step) { return (x + step - 1) / step * step; }

  void Commit(size_t bytes) {
    if (bytes > most_) throw std::bad_alloc();
    const size_t need = bytes + kAhead > head_ ? bytes + kAhead : bytes;
    if (need > committed_) {
      const size_t end = Up(turn_ + need, kHugePage) - turn_;
      char* const from = committed_ == 0 ? data_ - turn_ : data_ + committed_;
      if (end > most_ || mprotect(from, data_ + end - from, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
      committed_ = end;
    }
    // In the head a page is to be a huge one when half of it is in use.
    for (; wanted_ < turn_ + committed_; wanted_ += kHugePage) {
      const bool in_head = wanted_ < turn_ + head_;
      if (in_head && turn_ + bytes <= wanted_ + kHugePage / 2) break;
      pager_->Want(data_ - turn_ + wanted_, in_head ? Pager::What::kCollapse : Pager::What::kNew);
    }
    reserved_ = committed_ < head_ ? committed_ : committed_ - kAhead;
    if (wanted_ < turn_ + committed_) reserved_ = std::min(reserved_, wanted_ + kHugePage / 2 - turn_);
  }

  Pager* const pager_;
  const size_t turn_;
  char* mapping_ = nullptr;
  char* data_ = nullptr;
  size_t wanted_;  // the next huge page to want, from data() - turn
  size_t mapped_ = 0, most_ = 0, head_ = 0;
  size_t committed_ = 0;  // may be read and written
  size_t reserved_ = 0;   // up to here nothing is to be done
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
  Slab(size_t row_floats, size_t most, size_t turn, Pager* pager)
      : stride_(Stride(row_floats)), range_(most, turn, pager), rows_(reinterpret_cast<float*>(range_.data())) {}

  size_t stride_bytes() const { return stride_ * sizeof(float); }
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
