// Memory of the table: an arena of huge pages, arrays that grow piece by piece, slabs of rows. No TensorFlow here.
//
//   Arena (one a table)      2 MB    2 MB    2 MB ...   pieces of all shards, indexes and rows, one after the other:
//                          |.......|.......|..   |      only the last huge page of all is touched in part
//   Pieces (one an array)    directory -> piece 0 | piece 1 | ...   256 or 512 KB; piece 0 begins with one element
//   Slab (one a shard)       row r, `stride` floats: | weights | slots | pad |
//                            a freed row: its first 4 bytes hold the next free row
//
// Invariants
//   - Memory once given to the table is the table's until it ends, so that a glance (lock.h) can follow what is stale.
//     What a growing piece 0 or directory leaves behind is less than the piece.
//   - Reserve() and New() do what they say or throw std::bad_alloc and have changed nothing.
//   - Untouched memory is address space only: memory follows the elements.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace cuckoo {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kIndexPiece = size_t{256} << 10;  // so that all directories stay in a core's own cache: 16 KB of
constexpr size_t kRowPiece = size_t{512} << 10;    // them for 10 M rows of 128 B, where half a piece a shard is 1 %

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

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (void* block : blocks_) std::free(block);
    for (const auto& [data, bytes] : maps_) munmap(data, bytes);
  }

  // `bytes` of memory on a cache line, not set; up to kHeap from the heap, else from huge pages.
  void* Take(size_t bytes) {
    bytes = (bytes + kLine - 1) / kLine * kLine;
    const std::lock_guard hold(mutex_);
    if (bytes <= kHeap) {
      blocks_.reserve(std::max(blocks_.capacity(), std::bit_ceil(blocks_.size() + 1)));
      void* block = std::aligned_alloc(kLine, bytes);
      if (block == nullptr) throw std::bad_alloc();
      blocks_.push_back(block);
      return block;
    }
    if (bytes > left_) Map(std::max(bytes, std::clamp(mapped_ / 2, kHugePage, kMost)));
    void* piece = next_;
    next_ += bytes;
    left_ -= bytes;
    return piece;
  }

 private:
  static constexpr size_t kHeap = size_t{64} << 10;
  static constexpr size_t kMost = size_t{256} << 20;  // of one mapping; what is not touched costs nothing

  void Map(size_t bytes) {
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    maps_.reserve(std::max(maps_.capacity(), std::bit_ceil(maps_.size() + 1)));
    const size_t around = bytes + kHugePage;
    void* mapped = mmap(nullptr, around, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    char* begin = static_cast<char*>(mapped);
    char* data = begin + (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (data > begin) munmap(begin, data - begin);
    if (const size_t after = begin + around - (data + bytes); after > 0) munmap(data + bytes, after);
    madvise(data, bytes, MADV_HUGEPAGE);  // a wish: refused, it is as correct
    maps_.push_back({data, bytes});
    mapped_ += bytes;
    next_ = data;
    left_ = bytes;
  }

  struct Mapping {
    void* data;
    size_t bytes;
  };

  std::mutex mutex_;
  std::vector<void*> blocks_;
  std::vector<Mapping> maps_;
  size_t mapped_ = 0;
  char* next_ = nullptr;
  size_t left_ = 0;
};

// An array of elements of `bytes` each, 2^shift of them a piece. One writer; At() and prefetching from any thread.
class Pieces {
 public:
  Pieces(Arena* arena, size_t bytes, int shift) : arena_(arena), bytes_(bytes), shift_(shift) {}

  // Where piece `piece` begins; element i is number i % 2^shift of piece i / 2^shift.
  char* Piece(size_t piece) const {
    return directory_.load(std::memory_order_acquire)[piece].load(std::memory_order_relaxed);
  }

  void Reserve(size_t elements) {
    if (elements <= reserved_) return;
    const size_t piece = size_t{1} << shift_;
    if (elements > piece) {
      const size_t need = (elements + piece - 1) >> shift_;
      while (reserved_ < need << shift_) AddPiece();
      return;
    }
    size_t first = std::max<size_t>(reserved_, 1);  // 1, 4, 16, ... an eighth, all: what is left behind is a sixth
    while (first < elements) first = first * 8 > piece ? piece : first * 4;
    if (places_ == 0) GrowDirectory(1);
    char* data = static_cast<char*>(arena_->Take(first * bytes_));
    if (reserved_ > 0) std::memcpy(data, Piece(0), reserved_ * bytes_);
    directory_.load()[0].store(data, std::memory_order_release);
    reserved_ = first;
  }

 private:
  using Place = std::atomic<char*>;

  void AddPiece() {
    const size_t piece = size_t{1} << shift_;
    if (reserved_ < piece) return Reserve(piece);
    const size_t n = reserved_ >> shift_;
    if (n == places_) GrowDirectory(n * 2);
    directory_.load()[n].store(static_cast<char*>(arena_->Take(bytes_ << shift_)), std::memory_order_release);
    reserved_ += piece;
  }

  void GrowDirectory(size_t places) {
    auto* grown = static_cast<Place*>(arena_->Take(places * sizeof(Place)));
    for (size_t i = 0; i < places; ++i) new (grown + i) Place(i < places_ ? Piece(i) : nullptr);
    directory_.store(grown, std::memory_order_release);
    places_ = places;
  }

  Arena* const arena_;
  const size_t bytes_;
  const int shift_;
  std::atomic<Place*> directory_{nullptr};
  size_t places_ = 0;    // of the directory
  size_t reserved_ = 0;  // elements
};

class Slab {
 public:
  static constexpr uint32_t kNoRow = 0xffffffff;  // never a row: also the index's mark of an empty slot

  // A stride of whole lines costs a row no line it need not touch; where that would waste over an eighth, 16 bytes.
  static size_t Stride(size_t floats) {
    const size_t lines = (floats + 15) / 16 * 16;
    return (lines - floats) * 8 <= lines ? lines : (floats + 3) / 4 * 4;
  }

  Slab(Arena* arena, size_t row_floats)
      : stride_(Stride(row_floats)),
        shift_(std::bit_width(std::max<size_t>(kRowPiece / (stride_ * sizeof(float)), 1)) - 1),
        rows_(arena, stride_ * sizeof(float), shift_) {}

  float* At(uint32_t row) const {
    return reinterpret_cast<float*>(rows_.Piece(row >> shift_)) + (row & ((uint32_t{1} << shift_) - 1)) * stride_;
  }

  uint32_t New() {
    if (free_ != kNoRow) {
      const uint32_t row = free_;
      std::memcpy(&free_, At(row), sizeof free_);
      return row;
    }
    if (end_ == kNoRow) throw std::bad_alloc();
    rows_.Reserve(end_ + size_t{1});
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
  const int shift_;
  Pieces rows_;
  uint32_t end_ = 0;
  uint32_t free_ = kNoRow;
};

}  // namespace cuckoo
