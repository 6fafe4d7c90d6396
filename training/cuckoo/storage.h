// Memory of the table: blocks, and slabs of rows that never move. No TensorFlow here.
//
//   Slab (one a shard)                              row r, `stride` floats
//   chunk 0: rows 0..3     |r0|r1|r2|r3|            | weights: dim | slot 0: dim | slot 1: dim | pad |
//   chunk 1: rows 4..7     |r4|r5|r6|r7|
//   chunk 2: rows 8..15    |r8 ......... r15|       a freed row: its first 4 bytes hold the next free row
//   chunk k: as many rows as all before it
//
// Invariants
//   - A row's address is fixed from New() to Free(): index growth never touches rows.
//   - A small slab is some hundred bytes. A doubled chunk is address space until touched: memory follows the rows.
//   - New() either returns a row or throws std::bad_alloc and has changed nothing.
#pragma once

#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace cuckoo {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

// `bytes` of uninitialised memory, on a cache line; in huge pages where it is big enough for one.
class Block {
 public:
  Block() = default;
  explicit Block(size_t bytes) {
    const size_t align = bytes >= kHugePage ? kHugePage : kLine;
    bytes = (bytes + align - 1) / align * align;
    data_ = std::aligned_alloc(align, bytes);
    if (data_ == nullptr) throw std::bad_alloc();
    if (align == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);  // a wish: refused, it is as correct
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

class Slab {
 public:
  static constexpr uint32_t kNoRow = 0xffffffff;  // never a row: also the index's mark of an empty slot

  // A stride of whole lines costs a row no line it need not touch; where that would waste over an eighth, 16 bytes.
  static size_t Stride(size_t floats) {
    const size_t lines = (floats + 15) / 16 * 16;
    return (lines - floats) * 8 <= lines ? lines : (floats + 3) / 4 * 4;
  }

  explicit Slab(size_t row_floats) : stride_(Stride(row_floats)) {}

  float* At(uint32_t row) const {
    const int chunk = std::bit_width(row / kFirst);
    return static_cast<float*>(chunks_[chunk].data()) + (row - Begin(chunk)) * stride_;
  }

  uint32_t New() {
    if (free_ != kNoRow) {
      const uint32_t row = free_;
      std::memcpy(&free_, At(row), sizeof free_);
      return row;
    }
    if (end_ == kNoRow) throw std::bad_alloc();
    const int chunk = std::bit_width(end_ / kFirst);
    if (chunks_[chunk].data() == nullptr) {
      chunks_[chunk] = Block((chunk == 0 ? kFirst : Begin(chunk)) * stride_ * sizeof(float));
    }
    return end_++;
  }

  void Free(uint32_t row) {
    std::memcpy(At(row), &free_, sizeof free_);
    free_ = row;
  }

  // Bytes of the rows ever handed out.
  size_t bytes() const { return end_ * stride_ * sizeof(float); }

 private:
  static constexpr uint32_t kFirst = 4;  // rows of the first chunk: a table of ten ids costs kilobytes
  static size_t Begin(int chunk) { return chunk == 0 ? 0 : size_t{kFirst} << (chunk - 1); }

  size_t stride_;
  uint32_t end_ = 0;
  uint32_t free_ = kNoRow;
  std::array<Block, 32> chunks_;
};

}  // namespace cuckoo
