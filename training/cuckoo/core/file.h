// Saves a shard with its index to a file and loads it. Loading hashes and inserts nothing. No TensorFlow here.
//
//   | Head: magic, config, shape, secret, size, tick, checksum |
//   | B buckets, row numbers counted from the first | stash in the last block | the rows of these keys | checksum |
//   | the next B buckets ...
//
// Invariants
//   - A file is written and read from front to back, through one buffer of 2 MB (B follows from a row's size). So a
//     pipe works, and shards may follow each other in one file.
//   - SaveShard holds the shard shared, so its rows are those of one moment. Readers continue; a writer to that shard
//     waits. If the table changes while its shards are saved one by one, each shard shows another moment.
//   - LoadShard fills an empty shard, or throws and leaves it empty. The error names a short, damaged or foreign file.
//     It proves that each key is where Find looks for it.
//   - Numbers have the machine's byte order (little endian on every machine we build for). A row has floats() of 4
//     bytes.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "training/cuckoo/core/table.h"

namespace cuckoo {

struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class ShardFile {
 public:
  ShardFile(const Table& table, int fd)
      : fd_(fd),
        buckets_(std::max<size_t>(kBuffer / FullBytes(table), 16)),
        buffer_((buckets_ + Index::kStash) * FullBytes(table) / sizeof(Bucket) + 1) {}

  void Save(const Table& table, size_t s) {
    const Shard& shard = table.shard(s);
    const std::shared_lock hold(shard.lock);
    const Index& index = shard.index;
    Head head{.config = Config(table, s),
              .shape = index.shape().Pack(),
              .secret = index.secret(),
              .size = index.size(),
              .tick = table.tick()};
    head.checksum = Checksum(&head, offsetof(Head, checksum));
    Write(&head, sizeof head);
    char* data = reinterpret_cast<char*>(buffer_.data());
    for (uint32_t begin = 0; begin < index.buckets(); begin += buckets_) {
      const Part part = PartOf(index.shape(), begin);
      for (uint32_t b = 0; b < part.buckets; ++b) {
        buffer_[b] = b < part.plain ? index.At(begin + b) : index.stash()[b - part.plain];
      }
      const size_t bytes = part.index_bytes() + Rows(part) * RowBytes(table);
      CopyRows(shard.slab, part.buckets, RowBytes(table));
      const uint64_t checksum = Checksum(data, bytes);
      std::memcpy(data + bytes, &checksum, sizeof checksum);
      Write(data, bytes + sizeof checksum);
    }
  }

  void Load(Table* table, size_t s) {
    Head head;
    Read(&head, sizeof head);
    if (std::memcmp(head.magic, Head{}.magic, sizeof head.magic) != 0) throw FileError("not a shard of a table");
    const Shape shape = Shape::Unpack(head.shape);
    if (head.checksum != Checksum(&head, offsetof(Head, checksum)) || !shape.valid()) {
      throw FileError("a shard's head is damaged");
    }
    if (head.config != Config(*table, s)) {
      throw FileError("a shard of another table: segments, optimizers, number of shards or this shard's number differ");
    }
    Shard& shard = table->shard(s);
    const std::unique_lock hold(shard.lock);
    if (shard.index.size() != 0) throw FileError("the shard to load into is not empty");
    try {
      shard.index.Restore(shape, head.secret);
      for (uint32_t begin = 0; begin < shard.index.buckets(); begin += buckets_) {
        LoadPart(*table, s, shape, begin);
        ReadAhead();
      }
      if (shard.index.size() != head.size) throw FileError("a shard is damaged: its size is not what its head says");
    } catch (...) {
      shard.Clear();
      throw;
    }
    table->SetTick(head.tick);
  }

 private:
  static constexpr size_t kBuffer = 2 << 20;

  struct Head {
    char magic[8] = {'c', 'u', 'c', 'k', 'o', 'o', ' ', '2'};
    uint64_t config = 0, shape = 0, secret = 0, size = 0, tick = 0, checksum = 0;
  };

  struct Part {
    uint32_t plain, buckets;  // without and with the stash
    size_t index_bytes() const { return buckets * sizeof(Bucket); }
  };

  // The part of an index of this shape that begins with bucket `begin`.
  Part PartOf(const Shape& shape, uint32_t begin) const {
    const uint32_t plain = std::min(buckets_, shape.buckets() - begin);
    const bool last = begin + plain == shape.buckets();
    return {plain, plain + (last && shape.stashed ? Index::kStash : 0)};
  }

  // A bucket and its rows, where it is full.
  static size_t FullBytes(const Table& table) { return sizeof(Bucket) + Bucket::kSlots * RowBytes(table); }

  // Keys in the buffer's buckets.
  size_t Rows(const Part& part) const {
    size_t rows = 0;
    for (uint32_t b = 0; b < part.buckets; ++b) {
      for (const uint32_t row : buffer_[b].row) rows += row != Slab::kNoRow;
    }
    return rows;
  }

  // What rows mean, and which part of them this is.
  static uint64_t Config(const Table& table, size_t s) {
    uint64_t hash = Mix(table.config().shards) + s;
    for (const Segment& segment : table.layout().segments()) {
      hash = Mix(hash ^ segment.dim) + static_cast<uint64_t>(segment.optimizer.rule);
    }
    return Mix(hash);
  }

  static size_t RowBytes(const Table& table) { return table.layout().floats() * sizeof(float); }

  // The rows of the buffer's buckets behind them; their numbers become 0, 1, 2, ...
  void CopyRows(const Slab& slab, uint32_t buckets, size_t row_bytes) {
    constexpr uint32_t kAhead = 4;
    Bucket* bucket = buffer_.data();
    char* to = reinterpret_cast<char*>(bucket + buckets);
    uint32_t number = 0;
    for (uint32_t b = 0; b < buckets; ++b) {
      if (b + kAhead < buckets) {
        for (const uint32_t row : bucket[b + kAhead].row) {
          if (row == Slab::kNoRow) continue;
          const char* at = reinterpret_cast<const char*>(slab.At(row));
          for (size_t byte = 0; byte < row_bytes; byte += kLine) __builtin_prefetch(at + byte);
        }
      }
      for (uint32_t& row : bucket[b].row) {
        if (row == Slab::kNoRow) continue;
        std::memcpy(to, slab.At(row), row_bytes);
        to += row_bytes;
        row = number++;
      }
    }
  }

  void LoadPart(const Table& table, size_t s, const Shape& shape, uint32_t begin) {
    Shard& shard = table.shard(s);
    const Part part = PartOf(shape, begin);
    char* data = reinterpret_cast<char*>(buffer_.data());
    Read(data, part.index_bytes());
    const size_t bytes = part.index_bytes() + Rows(part) * RowBytes(table);
    Read(data + part.index_bytes(), bytes + sizeof(uint64_t) - part.index_bytes());
    uint64_t checksum;
    std::memcpy(&checksum, data + bytes, sizeof checksum);
    if (checksum != Checksum(data, bytes)) throw FileError("a shard is damaged: a checksum differs");
    const Bucket* from = buffer_.data();
    const char* row = data + part.index_bytes();
    for (uint32_t b = 0; b < part.buckets; ++b) {
      for (int slot = 0; slot < Bucket::kSlots; ++slot) {
        if (from[b].row[slot] == Slab::kNoRow) continue;
        const uint64_t hash = Hash(from[b].key[slot]);
        const uint32_t bucket = begin + b;
        const auto [first, second] = shard.index.Choose(shape, hash);
        if (table.ShardOf(hash) != s || (b < part.plain && bucket != first && bucket != second)) {
          throw FileError("a shard is damaged: a key is not where it would be looked for");
        }
        const uint32_t number = shard.slab.New();
        std::memcpy(shard.slab.At(number), row, RowBytes(table));
        row += RowBytes(table);
        const Entry entry{from[b].key[slot], number, from[b].tick[slot]};
        if (b < part.plain) {
          shard.index.RestoreAt(bucket, slot, entry);
        } else {
          shard.index.RestoreStashed(entry);
        }
      }
    }
  }

  // Four independent lanes, so that it is as fast as memory.
  static uint64_t Checksum(const void* data, size_t bytes) {
    const char* at = static_cast<const char*>(data);
    uint64_t lane[4] = {1, 2, 3, bytes};
    size_t i = 0;
    for (; i + 32 <= bytes; i += 32) {
      for (int l = 0; l < 4; ++l) {
        uint64_t word;
        std::memcpy(&word, at + i + 8 * l, 8);
        lane[l] = (lane[l] ^ word) * kGolden;
        lane[l] ^= lane[l] >> 29;
      }
    }
    uint64_t rest[4] = {};
    std::memcpy(rest, at + i, bytes - i);
    for (int l = 0; l < 4; ++l) lane[l] = Mix(lane[l] ^ rest[l]);
    return Mix(lane[0] ^ Mix(lane[1] ^ Mix(lane[2] ^ lane[3])));
  }

  void Write(const void* data, size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = write(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw FileError(std::string("writing a shard: ") + std::strerror(errno));
      at += n;
      bytes -= n;
    }
  }

  void Read(void* data, size_t bytes) {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t n = read(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw FileError(std::string("reading a shard: ") + std::strerror(errno));
      if (n == 0) throw FileError("a shard is cut short");
      at += n;
      bytes -= n;
    }
  }

  // The disk reads on while a part is put in its place; a pipe has nothing to advise.
  void ReadAhead() const {
    constexpr off_t kAhead = 3 * kBuffer;
    const off_t at = lseek(fd_, 0, SEEK_CUR);
    if (at >= 0) posix_fadvise(fd_, at, kAhead, POSIX_FADV_WILLNEED);
  }

  const int fd_;
  const uint32_t buckets_;  // of a part: what the buffer holds with all their rows
  std::vector<Bucket> buffer_;
};

inline void SaveShard(const Table& table, size_t s, int fd) { ShardFile(table, fd).Save(table, s); }
inline void LoadShard(Table* table, size_t s, int fd) { ShardFile(*table, fd).Load(table, s); }

}  // namespace cuckoo
